"""Logging to standard error: one line an event, for a journal or a terminal.

A journal has the time already, and takes the priority from a `<N>` before each line (sd-daemon(3)).
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final

FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
JOURNAL_FORMAT: Final = "%(name)s: %(message)s"
PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
REPEAT_AFTER_S: Final = 60.0
MAX_REMEMBERED: Final = 100

_library: Final = {"logs": False}  # the MQTT library's log can be opened once in a process


class JournalFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(JOURNAL_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


class RepeatFilter(logging.Filter):
    """Lets the same warning or error pass once a minute: what is tried every second must not fill a disk."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock: Final = clock
        self._said: Final[dict[tuple[str, str], float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        said, now = (record.name, record.getMessage()), self._clock()
        if now - self._said.get(said, -REPEAT_AFTER_S) < REPEAT_AFTER_S:
            return False
        self._said.pop(said, None)
        self._said[said] = now
        while len(self._said) > MAX_REMEMBERED:
            self._said.pop(next(iter(self._said)))
        return True


def to_journal(descriptor: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether what is written to `descriptor` goes to systemd's journal."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def set_up_logging(level: str) -> None:
    """`debug` reaches the MQTT library's own log as well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JournalFormatter() if to_journal(2) else logging.Formatter(FORMAT))
    handler.addFilter(RepeatFilter())
    logging.basicConfig(handlers=[handler])
    set_level(level)


def set_level(level: str) -> None:
    """Log what is at least this important, `debug`, `info`, `warning` or `error`, from now on; at any time."""
    logging.getLogger().setLevel(level.upper())
    if level != "debug" and not _library["logs"]:
        return
    from awscrt import io

    wanted = io.LogLevel.Debug if level == "debug" else io.LogLevel.NoLogs
    if _library["logs"]:
        io.set_log_level(wanted)
    else:
        io.init_logging(wanted, "stderr")
        _library["logs"] = True
