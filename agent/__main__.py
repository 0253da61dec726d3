"""`arxplorer-agent`, or `python -m agent`."""

import errno
import os
import sys
from contextlib import suppress
from typing import Final

from agent.cli import cli
from agent.errors import AgentError
from agent.logs import to_journal

UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What a disk has against being written to."""


def main() -> None:
    """Run the command line. An error of ours is printed with its hint, and the exit code is 1."""
    try:
        cli(prog_name="arxplorer-agent")
    except AgentError as error:
        _fail(error.message, error.hint)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what could not be printed would be tried again at the end
        _fail(f"{error.filename or 'the output'}: {error.strerror}", "is a disk full, broken, or read-only?")


def _fail(message: str, hint: str | None) -> None:
    priority = "<3>" if to_journal(2) else ""
    with suppress(OSError):  # a full disk may be behind this as well
        print(f"{priority}Error: {message}", file=sys.stderr)  # noqa: T201
        if hint:
            print(f"{priority}Hint:  {hint}", file=sys.stderr)  # noqa: T201
    sys.exit(1)


if __name__ == "__main__":
    main()
