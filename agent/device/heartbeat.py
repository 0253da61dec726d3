"""A file that says when the agent was last seen alive, for a container's health check: it starts no client.

It lies in the runtime folder that systemd made ($RUNTIME_DIRECTORY), else in the data folder. It holds monotonic time,
so that neither a wrong clock nor one that is set makes an agent look dead. The boot's id is not in it: in a container,
systemd's sandbox shows the service another one.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from agent.crash_points import crash_point
from agent.errors import NotReadyError
from agent.paths import SYSTEM_RUNTIME_DIR, shut_out

NAME: Final = "alive"


class HeartbeatFile:
    """Written by the agent of `data_dir`; nothing is synced, since no reader outlives the machine."""

    def __init__(self, data_dir: Path, *, environment: Mapping[str, str] = os.environ) -> None:
        self._data_dir: Final = data_dir
        # systemd separates several folders by colons.
        runtime = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        self.path: Final = (Path(runtime) if runtime else data_dir) / NAME

    def beat(self, good_for_s: float) -> None:
        """Say that the agent is alive, and when to doubt it. Raises OSError."""
        beat = {"data_dir": _real(self._data_dir), "at": time.monotonic(), "good_for_s": good_for_s}
        beside = self.path.with_name(f".{NAME}.new")
        beside.write_text(json.dumps(beat), "utf-8")
        crash_point("heartbeat.beat:before-rename")
        beside.replace(self.path)
        crash_point("heartbeat.beat:after-rename")

    def remove(self) -> None:
        with suppress(OSError):
            self.path.unlink()


def seconds_since_beat(data_dir: Path, *, environment: Mapping[str, str] = os.environ) -> float:
    """How long ago the agent of `data_dir` was seen alive. Raises NotReadyError where that is too long, or never."""
    places = [HeartbeatFile(data_dir, environment=environment).path, SYSTEM_RUNTIME_DIR / NAME, data_dir / NAME]
    beats = [beat for beat in map(_read, places) if beat.get("data_dir") == _real(data_dir)]
    if not beats:
        raise NotReadyError(f"no agent runs on {data_dir}, or none that could say so", hint=shut_out(data_dir))
    now = time.monotonic()
    # What lies ahead is from before the last boot.
    latest = min(beats, key=lambda beat: (beat["at"] > now, now - beat["at"]))
    age: float = now - latest["at"]
    if age < 0:
        raise NotReadyError(f"the agent of {data_dir} has not run since the last boot")
    if age > latest["good_for_s"]:
        raise NotReadyError(f"the agent of {data_dir} was last seen alive {age:.0f} s ago", hint="see its log")
    return age


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        beat = json.loads(path.read_bytes())
        if isinstance(beat, dict) and all(isinstance(beat.get(name), float | int) for name in ("at", "good_for_s")):
            return beat
    return {}


def _real(folder: Path) -> str:
    return os.path.realpath(folder)
