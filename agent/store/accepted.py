"""The settings last accepted from the Device Shadow, kept in agent.db: they hold without a network.

Nothing here is worth stopping for. A file that is damaged is put aside under another name and begun anew: the shadow
still has the wishes, and says them again at the next connect.
"""

import json
import logging
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from agent.errors import SettingsError
from agent.store.connection import ThreadConnections
from agent.store.schema import ensure_agent_schema

log = logging.getLogger(__name__)

MAX_PUT_ASIDE: Final = 5
"""Damaged files that are kept; a later one takes the place of the last."""

NOT_THE_FILES_FAULT: Final = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    )
)
"""Everything else that SQLite may say, of statements that never change, is said of a file that is not what it was."""

Result = TypeVar("Result")


class Accepted(NamedTuple):
    """A document of wishes, and the version of the shadow in which it was first seen."""

    document: Any
    version: int


class AcceptedSettings:
    """One row of agent.db. Usable from any thread: every call opens the file and closes it again."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path

    def load(self) -> Accepted | None:
        """What was saved last; None where there is nothing, or nothing that can be read. Never raises."""
        if not self.path.exists():
            return None
        try:
            return self._with_file(_load)
        except SettingsError as error:
            log.warning("%s", error.message)
        # A full disk has no room for what reading beside a writer needs; the file alone will do.
        alone = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
        with suppress(sqlite3.Error, ValueError), closing(sqlite3.connect(alone, uri=True)) as db:
            return _load(db)
        return None

    def save(self, document: Any, version: int) -> None:
        """Keep it durably, in one transaction. Raises SettingsError where that is not possible."""
        try:
            text = json.dumps(document, separators=(",", ":"))
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"the document is too large to be kept: {error}") from error
        row = [version, text, _crc(version, text)]
        self._with_file(lambda db: _save(db, row))

    def _with_file(self, action: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do it; if the file turns out to be damaged, with a new one."""
        try:
            return self._once(action)
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise self._refused(error) from error
            self._put_aside(str(error))
        except ValueError as error:
            self._put_aside(str(error))
        try:
            return self._once(action)
        except (sqlite3.Error, ValueError) as error:
            raise self._refused(error) from error

    def _once(self, action: Callable[[sqlite3.Connection], Result]) -> Result:
        with closing(ThreadConnections(self.path, read_only=False)) as connections:
            db = connections.get()
            ensure_agent_schema(db)
            return action(db)

    def _put_aside(self, reason: str) -> None:
        names = [self.path.with_name(f"{self.path.name}.damaged-{number + 1}") for number in range(MAX_PUT_ASIDE)]
        target = next((name for name in names if not name.exists()), names[-1])
        try:
            self.path.rename(target)
            for ending in ("-wal", "-shm"):  # they belong to it, and would spoil a new file
                self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        except OSError as error:
            raise SettingsError(f"{self.path} is damaged and cannot be put aside: {error}") from error
        log.error("%s is damaged (%s): put aside as %s, begun anew", self.path, reason, target.name)

    def _refused(self, error: Exception) -> SettingsError:
        return SettingsError(f"{self.path} cannot be used: {error}", hint="is the disk full, or the folder read-only?")


def _load(db: sqlite3.Connection) -> Accepted | None:
    row = db.execute("SELECT version, document, crc FROM accepted_settings").fetchone()
    if row is None:
        return None
    version, text, crc = row
    if crc != _crc(version, text):
        raise ValueError("the accepted settings do not match their checksum")
    return Accepted(json.loads(text), version)


def _save(db: sqlite3.Connection, row: list[Any]) -> None:
    db.execute("INSERT OR REPLACE INTO accepted_settings (id, version, document, crc) VALUES (1, ?, ?, ?)", row)


def _crc(version: Any, text: Any) -> int:
    return zlib.crc32(f"{version} {text}".encode("utf-8", "replace"))


def _is_damage(error: sqlite3.Error) -> bool:
    # The low byte is the kind, the rest details; an error of Python's own, such as of text that is no UTF-8, has none.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in NOT_THE_FILES_FAULT
