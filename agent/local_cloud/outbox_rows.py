"""Whether an agent has an answer stored: its agent.db, read from outside and by no code of the agent's own."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from agent.local_cloud.audit import Key

PATIENCE_S: Final = 5.0
BY_CORRELATION: Final = "SELECT 1 FROM outbox WHERE json_extract(rest, '$.correlation') = ?"
BY_PAYLOAD: Final = "SELECT 1 FROM outbox WHERE instr(payload, ?)"


def holds(data_dir: Path, key: Key) -> bool:
    """Whether a row of the outbox in `data_dir` answers this request. A file that cannot be read holds nothing."""
    by_payload = BY_PAYLOAD, (key.request_id or "").encode()
    rows, value = by_payload if key.correlation is None else (BY_CORRELATION, key.correlation.hex())
    try:
        uri = f"{(data_dir / 'agent.db').absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE_S)) as db:
            found = db.execute(rows, [value]).fetchone()
    except sqlite3.Error:
        return False
    return found is not None
