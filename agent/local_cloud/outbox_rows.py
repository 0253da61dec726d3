"""Whether an agent has an answer stored: its agent.db, read from outside and by no code of the agent's own."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from agent.local_cloud.audit import Key

log = logging.getLogger(__name__)

PATIENCE_S: Final = 5.0
MODES: Final = ("mode=ro", "mode=ro&immutable=1")
"""Beside the agent; and where a full disk has no room for what that needs, the file alone."""
BY_CORRELATION: Final = "SELECT 1 FROM outbox WHERE kind = 'answer' AND json_extract(rest, '$.correlation') = ?"
BY_PAYLOAD: Final = "SELECT 1 FROM outbox WHERE kind = 'answer' AND instr(payload, ?)"


def holds(data_dir: Path, key: Key) -> bool:
    """Whether a row of the outbox in `data_dir` answers this request. A file that cannot be read holds nothing."""
    by_payload = BY_PAYLOAD, (key.request_id or "").encode()
    rows, value = by_payload if key.correlation is None else (BY_CORRELATION, key.correlation.hex())
    path = data_dir / "agent.db"
    if not path.exists():
        return False
    for mode in MODES:
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=PATIENCE_S)) as db:
                return db.execute(rows, [value]).fetchone() is not None
        except sqlite3.Error as error:
            if "no such table" in str(error):  # the file was made a moment ago
                break
            log.warning("%s, %s: %s", path, mode, error)
    return False
