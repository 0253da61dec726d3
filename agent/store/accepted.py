"""The settings last accepted from the Device Shadow, kept in agent.db: they hold without a network.

Where they are lost, the shadow still has the wishes, and says them again at the next connect.
"""

import json
import sqlite3
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.errors import SettingsError, StateError
from agent.store.agent_db import AgentDatabase, DamageFoundError


class Accepted(NamedTuple):
    """A document of wishes, and the version of the shadow in which it was first seen."""

    document: Any
    version: int


class AcceptedSettings:
    """One row of agent.db. Usable from any thread."""

    def __init__(self, database: AgentDatabase) -> None:
        self._database: Final = database

    @property
    def path(self) -> Path:
        return self._database.path

    def load(self) -> Accepted | None:
        """What was saved last; None where there is nothing, or nothing that can be read. Never raises."""
        return self._database.read(_load)

    def save(self, document: Any, version: int) -> None:
        """Keep it durably, in one transaction. Raises SettingsError where that is not possible."""
        try:
            text = json.dumps(document, separators=(",", ":"))
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"the document is too large to be kept: {error}") from error
        row = [version, text, _crc(version, text)]
        try:
            self._database.write(lambda db: _save(db, row))
        except StateError as error:
            raise SettingsError(error.message, hint=error.hint) from error


def _load(db: sqlite3.Connection) -> Accepted | None:
    row = db.execute("SELECT version, document, crc FROM accepted_settings").fetchone()
    if row is None:
        return None
    version, text, crc = row
    if crc != _crc(version, text):
        raise DamageFoundError("the accepted settings do not match their checksum")
    return Accepted(json.loads(text), version)


def _save(db: sqlite3.Connection, row: list[Any]) -> None:
    db.execute("INSERT OR REPLACE INTO accepted_settings (id, version, document, crc) VALUES (1, ?, ?, ?)", row)


def _crc(version: Any, text: Any) -> int:
    return zlib.crc32(f"{version} {text}".encode("utf-8", "replace"))
