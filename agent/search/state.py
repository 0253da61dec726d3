"""The small file beside an index that says of what it is made, and how far it reaches; it knows when it is damaged."""

import json
import zlib
from pathlib import Path
from typing import Any

from agent.paths import write_file


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
