"""A harvest to be killed: python tests/harvest_worker.py URL DATA_DIR. Prints the counts of each update once it is done."""

import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from agent.config import Config, load_config
from agent.corpus.harvest import HarvestReport, harvester_of
from agent.corpus.updates import LiveUpdates
from agent.search import SearchAPI
from agent.store import agent_db
from agent.store.agent_db import AgentDatabase
from agent.store.journal import Journal

CONTACT = "mailto:ada@example.org"
SPACING_S = 0.002


def config_of(url: str, data_dir: Path, categories: str = "[cs.LG]", interval_s: str = "0") -> Config:
    given = {"URL": url, "CONTACT": CONTACT, "CATEGORIES": categories, "INTERVAL_S": interval_s}
    environment = {f"ARXPLORER__CORPUS__HARVEST__{name}": value for name, value in given.items()}
    return load_config(environment=environment, data_dir=data_dir)


def harvest(
    url: str,
    data_dir: Path,
    *,
    categories: str = "[cs.LG]",
    since: str = "",
    spacing_s: float = SPACING_S,
    **options: Any,
) -> HarvestReport:
    """A harvest as the command does it, with shorter pauses."""
    with (
        SearchAPI(config_of(url, data_dir, categories)) as api,
        closing(AgentDatabase(data_dir / agent_db.NAME)) as database,
    ):
        api.open(owner=True, model=False)
        harvester = harvester_of(
            api, LiveUpdates(api, Journal(database)).apply, database, spacing_s=spacing_s, **options
        )
        return harvester.harvest(since=since)


def telling(progress: int) -> None:
    print(progress, flush=True)


if __name__ == "__main__":
    print(harvest(sys.argv[1], Path(sys.argv[2]), progress=telling, stop=threading.Event()).complete)
