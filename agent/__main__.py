"""`arxplorer-agent`, or `python -m agent`."""

import sys

from agent.cli import cli
from agent.errors import AgentError
from agent.logs import to_journal


def main() -> None:
    """Run the command line. An error of ours is printed with its hint, and the exit code is 1."""
    try:
        cli(prog_name="arxplorer-agent")
    except AgentError as error:
        priority = "<3>" if to_journal(2) else ""
        print(f"{priority}Error: {error.message}", file=sys.stderr)  # noqa: T201
        if error.hint:
            print(f"{priority}Hint:  {error.hint}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


if __name__ == "__main__":
    main()
