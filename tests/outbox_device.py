"""A device's outbox over several runs of its agent, for tests of it."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.config import OutboxConfig
from agent.store.agent_db import AgentDatabase
from agent.store.moment import PLAUSIBLE_S, Moment
from agent.store.outbox import Kept, Kind, Outbox

START = Moment("first", 100.0, PLAUSIBLE_S + 1e6)
REST = {"retain": False, "correlation": "00ff", "user_properties": [["a", "b"]]}


class Device:
    """agent.db over several runs of an agent, on a clock that the test sets."""

    def __init__(self, path: Path, *, max_messages: int = 1_000, **config: Any) -> None:
        self.path, self.now = path, START
        self.max_messages, self.config = max_messages, OutboxConfig(**config)
        self.database: AgentDatabase | None = None
        self.restart()

    def restart(self) -> None:
        self.close()
        self.database = AgentDatabase(self.path)
        self.outbox = Outbox(self.database, self.config, now=lambda: self.now, max_messages=self.max_messages)
        self.outbox.load()

    def close(self) -> None:
        if self.database:
            self.database.close()

    def later(self, seconds: float, *, boot: str | None = None, wall: float | None = None) -> None:
        uptime = self.now.uptime_s + seconds if boot is None else 10.0
        self.now = Moment(boot or self.now.boot, uptime, self.now.wall_s + seconds if wall is None else wall)

    def waiting(self, kind: Kind = "answer", link: str = "local") -> list[bytes]:
        return [one.payload for one in self.outbox.next(link, kind, 10_000)]


def answer(payload: bytes, *, link: str = "local", kind: Kind = "answer", **more: Any) -> Kept:
    return Kept(link, kind, "arxplorer/responses/x", payload, REST, **more)


@contextmanager
def troubled(mount: Path, trouble: str) -> Iterator[None]:
    """A disk to which nothing can be written."""
    ballast = mount / "ballast"
    if trouble == "full":
        ballast.write_bytes(bytes(shutil.disk_usage(mount).free))
    else:
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", mount], check=True)
    ballast.unlink(missing_ok=True)
