"""Named moments between two durable steps, at which the tests have the process killed.

`ARXPLORER_CRASH_AT=papers.transaction:before-commit` kills it at the first passing of that point, `..:3` at the third.
Nothing is done first, as with a power cut: no buffer is flushed, no file closed, no lock given back.
"""

import os
import signal
from itertools import count
from typing import Final

VARIABLE: Final = "ARXPLORER_CRASH_AT"


def _parsed(text: str) -> tuple[str, int]:
    """The name of a point, and which passing of it is meant."""
    name, _, number = text.rpartition(":")
    return (name, int(number)) if number.isdecimal() else (text, 1)


_NAME, _NUMBER = _parsed(os.environ.get(VARIABLE, ""))
_passings: Final = count(1)


def crash_point(name: str) -> None:
    """Where the process dies if `name` is asked for; else one comparison."""
    if name == _NAME and next(_passings) == _NUMBER:
        os.kill(os.getpid(), signal.SIGKILL)
