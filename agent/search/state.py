"""The small file beside an index that says of what it is made, and how far it reaches; it knows when it is damaged."""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from agent.errors import CorpusError
from agent.paths import write_file

DISK_HINT: Final = "is the disk full or broken, or the folder read-only? Nothing is lost: the next start goes on"


@contextmanager
def files_used() -> Iterator[None]:
    """What the system says against a file reaches the caller as a CorpusError."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        raise CorpusError(f"the files of the indexes cannot be used: {reason}", hint=DISK_HINT) from error


def read_state(path: Path) -> dict[str, Any]:
    """Read a state file. Raises OSError where there is none, ValueError and its like where it is damaged."""
    document: dict[str, Any] = json.loads(path.read_bytes())
    if _crc(document["state"]) != document["crc32"]:
        raise ValueError(f"{path.name}: its checksum does not match")
    state: dict[str, Any] = document["state"]
    return state


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace a state file durably."""
    write_file(path, json.dumps({"state": state, "crc32": _crc(state)}).encode())


def _crc(state: Any) -> int:
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())
