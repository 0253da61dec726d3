"""Logging to standard error: one line an event, for a journal or a terminal."""

import logging
from typing import Final

FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

_library: Final = {"logs": False}  # the MQTT library's log can be opened once in a process


def set_up_logging(level: str) -> None:
    """`debug` reaches the MQTT library's own log as well."""
    logging.basicConfig(format=FORMAT)
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
