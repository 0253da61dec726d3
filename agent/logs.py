"""Logging to standard error: one line an event, for a journal or a terminal."""

import logging

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def set_up_logging(level: str) -> None:
    """`debug` reaches the MQTT library's own log as well."""
    logging.basicConfig(level=level.upper(), format=FORMAT)
    if level == "debug":
        from awscrt import io

        io.init_logging(io.LogLevel.Debug, "stderr")
