"""kill -9 between any two steps of a switch, a way back, a trial: wholly the one corpus or the other, own changes and all."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import run_command
from crash_cases import cases, killed_at
from generations import built, current, held_back, install, is_whole, lay, manifest, numbers, papers_in, record, update

from agent.domain import CorpusUpdate
from agent.store.generations import ON_TRIAL, pack_of

OWN = {"arxiv_id": "2401.00001", "title": "A zebra of this device", "version": 1}
LATER = {"arxiv_id": "2401.00002", "title": "A quagga of this device", "version": 1}
OLD = [record(number) for number in range(12)]
NEW = [record(number, 2 if number < 6 else 1) for number in range(20)]


def with_own_changes(records: list[dict[str, Any]]) -> dict[str, int]:
    """What a generation of these records holds once this device's changes are in it."""
    papers = {one["arxiv_id"]: one["version"] for one in records} | {OWN["arxiv_id"]: 1, "2301.00003": 3}
    return {name: version for name, version in papers.items() if name not in ("2301.00004", "2301.00015")}


EXPECTED = {None: with_own_changes(OLD), "new": with_own_changes(NEW), "newer": with_own_changes(NEW[:16])}

SWITCH = """
import sys
from pathlib import Path
from agent.config import load_config
from agent.corpus import replay
from agent.corpus.switching import activate, sweep_quietly
from agent.search import SearchAPI
from agent.store.generations import update_lock
from agent.store.journal import journal_of
replay.BATCH = 2
data_dir = Path(sys.argv[1])
with update_lock(data_dir):
    api = SearchAPI(load_config(data_dir=data_dir))
    activate(api, data_dir / "generations" / ".incoming", journal_of(data_dir))
sweep_quietly(data_dir)
"""
START = """
import sys
from pathlib import Path
from agent.config import load_config
from agent.corpus.keeper import CorpusKeeper
from agent.corpus.trials import HeldBackPacks
from agent.domain import SearchRequest
from agent.search import SearchAPI
from agent.store.agent_db import NAME, AgentDatabase
from agent.store.journal import Journal
data_dir = Path(sys.argv[1])
api, database = SearchAPI(load_config(data_dir=data_dir)), AgentDatabase(data_dir / NAME)
keeper = CorpusKeeper(
    api, Journal(database), HeldBackPacks(database), stop=lambda: False, changed=lambda: None
)
keeper.open()
api.engine.search(SearchRequest(query="the first question"))
keeper.proven()
keeper.turn()
keeper.end_trial()
keeper.close()
api.close()
"""
"""What an agent does that starts, answers its own first question, and stops."""


def start(data_dir: Path) -> None:
    done = subprocess.run([sys.executable, "-c", START, str(data_dir)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """No process loads a model: what is asked here, keywords answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARXPLORER__LIMITS__MEMORY_MB", "64")
        yield


class Made:
    """Data folders to begin with, made once."""

    def __init__(self, folder: Path) -> None:
        self.new, self.newer = built(folder / "new", NEW), built(folder / "newer", NEW[:16])
        self.base, self.installed = folder / "base", folder / "installed"
        built(self.base, OLD)
        update(self.base, CorpusUpdate(add=(OWN, record(3, 3)), remove=("2301.00004", "2301.00015")))
        shutil.copytree(self.base, self.installed, symlinks=True)
        install(self.installed, self.new, "new")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def check(data_dir: Path) -> str | None:
    """Wholly one generation, before and after the next start; which one."""
    pack = pack_of((data_dir / "current").resolve())
    version = pack.version if pack else None
    assert papers_in((data_dir / "current").resolve()) == EXPECTED[version]
    start(data_dir)
    assert papers_in((data_dir / "current").resolve()) == EXPECTED[version]
    assert is_whole(data_dir)
    assert len(numbers(data_dir)) <= 2, "the current one and its previous one"
    return version


@pytest.mark.parametrize(("scenario", "point"), cases("switch"))
def test_a_switch_that_is_killed_leaves_the_old_or_the_new_corpus_and_can_be_done_again(
    scenario: str, point: str, made: Made, data_dir: Path
) -> None:
    shutil.copytree(made.installed, data_dir, symlinks=True)
    lay(data_dir, made.newer, manifest("newer"))
    killed_at(point, "-c", SWITCH, str(data_dir))
    swapped = point.startswith(("generations.activate:after", "switching.activate:swapped", "generations.sweep"))
    assert check(data_dir) == ("newer" if swapped else "new")
    install(data_dir, made.newer, "newest")
    assert papers_in((data_dir / "current").resolve()) == EXPECTED["newer"]
    assert run_command("corpus", "rollback", data_dir=data_dir).returncode == 0
    assert check(data_dir) == ("newer" if swapped else "new")


@pytest.mark.parametrize(("scenario", "point"), cases("rollback"))
def test_a_way_back_that_is_killed_leaves_the_one_or_the_other_and_can_be_gone_again(
    scenario: str, point: str, made: Made, data_dir: Path
) -> None:
    shutil.copytree(made.installed, data_dir, symlinks=True)
    killed_at(point, "-m", "agent", "--data-dir", str(data_dir), "corpus", "rollback")
    version = check(data_dir)
    swapped = point.startswith(("generations.activate:after", "switching.activate:swapped", "switching.roll_back:sw"))
    assert version == (None if swapped else "new")
    assert run_command("corpus", "rollback", data_dir=data_dir).returncode == 0
    assert check(data_dir) == ("new" if swapped else None)
    assert held_back(data_dir) == ({} if swapped else {"new": "rolled back by hand"})


@pytest.mark.parametrize(("scenario", "point"), cases("own"))
def test_a_change_that_is_killed_is_whole_or_not_there_and_whole_after_it_was_sent_again(
    scenario: str, point: str, made: Made, data_dir: Path
) -> None:
    shutil.copytree(made.base, data_dir, symlinks=True)
    command = ["corpus", "add", json.dumps(LATER)]
    killed_at(point, "-m", "agent", "--data-dir", str(data_dir), *command)
    assert check(data_dir) is None
    assert run_command(*command, data_dir=data_dir).returncode == 0
    install(data_dir, made.new, "new")
    assert papers_in((data_dir / "current").resolve()) == EXPECTED["new"] | {LATER["arxiv_id"]: 1}
    assert run_command("corpus", "rollback", data_dir=data_dir).returncode == 0
    assert papers_in((data_dir / "current").resolve()) == EXPECTED[None] | {LATER["arxiv_id"]: 1}


@pytest.mark.parametrize(("scenario", "point"), cases("forget"))
def test_what_was_being_made_is_forgotten_in_spite_of_a_kill(
    scenario: str, point: str, made: Made, data_dir: Path
) -> None:
    shutil.copytree(made.base, data_dir, symlinks=True)
    lay(data_dir, made.new, manifest("new"))
    killed_at(point, "-c", START, str(data_dir))
    assert check(data_dir) is None
    assert numbers(data_dir) == ["0001"]


@pytest.mark.parametrize(("scenario", "point"), cases("start"))
def test_a_generation_on_which_the_agent_is_killed_twice_is_given_back_and_not_a_start_sooner(
    scenario: str, point: str, made: Made, data_dir: Path
) -> None:
    shutil.copytree(made.installed, data_dir, symlinks=True)
    for _ in range(2):
        killed_at(point, "-c", START, str(data_dir))
        assert (current(data_dir), held_back(data_dir)) == ("0002", {})
    start(data_dir)
    assert check(data_dir) is None
    assert "ended 2 times" in held_back(data_dir)["new"]


@pytest.mark.parametrize(("scenario", "point"), cases("stop"))
def test_a_generation_that_has_answered_until_the_agent_stopped_is_no_longer_on_trial(
    scenario: str, point: str, made: Made, data_dir: Path
) -> None:
    shutil.copytree(made.installed, data_dir, symlinks=True)
    assert (data_dir / "current" / ON_TRIAL).read_text() == "0"
    killed_at(point, "-c", START, str(data_dir))
    assert not (data_dir / "current" / ON_TRIAL).exists()
    assert check(data_dir) == "new"
