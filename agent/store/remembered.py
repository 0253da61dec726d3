"""Small documents that the agent remembers by name in agent.db: how far a harvest came, what became of an update.

Each is replaced as a whole. One that is lost or damaged counts as never written.
"""

import json
import sqlite3
import zlib
from typing import Any, Final

from agent.store.agent_db import AgentDatabase, DamageFoundError


class Remembered:
    """One named document. Usable from any thread."""

    def __init__(self, database: AgentDatabase, name: str) -> None:
        self._database: Final = database
        self._name: Final = name

    def load(self) -> Any:
        """What was saved last, any JSON value; None where nothing is there, or can be read. Never raises."""

        def read(db: sqlite3.Connection) -> Any:
            row = db.execute("SELECT document, crc FROM remembered WHERE name = ?", [self._name]).fetchone()
            if row is None:
                return None
            if _crc(self._name, row[0]) != row[1]:
                raise DamageFoundError(f"what is remembered of {self._name} does not match its checksum")
            return json.loads(row[0])

        return self._database.read(read)

    def save(self, document: Any) -> None:
        """Replace it, durably when this returns. Raises StateError."""
        text = json.dumps(document, ensure_ascii=False, sort_keys=True)
        row = [self._name, text, _crc(self._name, text)]
        self._database.write(lambda db: db.execute("INSERT OR REPLACE INTO remembered VALUES (?, ?, ?)", row))


def _crc(name: str, document: str) -> int:
    return zlib.crc32(f"{name}\x1f{document}".encode("utf-8", "surrogatepass"))
