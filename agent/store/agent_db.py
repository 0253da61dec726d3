"""agent.db: what the agent itself has to remember. One connection an owner, one user of it at a time.

Commands write it beside the agent: the journal of this device's changes, and what is remembered of updates.

Nothing here is worth stopping for. A file that is damaged is put aside under another name and begun anew.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, TypeVar

from agent.crash_points import crash_point
from agent.errors import StateError
from agent.store.connection import ThreadConnections
from agent.store.faults import is_damage
from agent.store.schema import ensure_agent_schema

log = logging.getLogger(__name__)

NAME: Final = "agent.db"
BUSY_TIMEOUT_S: Final = 5.0
"""A command that writes it is done sooner; a person who looks at it must not hold up the agent."""
MAX_PUT_ASIDE: Final = 5
"""Damaged files that are kept; a later one takes the place of the last."""
LOG_BYTES: Final = 1024 * 1024
"""What SQLite's log may keep of the disk once it has been written back."""

Result = TypeVar("Result")
Action = Callable[[sqlite3.Connection], Result]


class DamageFoundError(Exception):
    """What was read is not what was written."""


class AgentDatabase:
    """Usable from any thread. The file is made, and opened, when something has to be written for the first time."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._guard: Final = threading.Lock()
        self._opened: ThreadConnections | None = None  # of one connection, which threads use in turn
        self._connection: sqlite3.Connection
        self._inode = 0
        self._on_open: list[Action[None]] = []

    def on_open(self, action: "Action[None]") -> None:
        """Do this whenever the file is opened: it may be another one than before."""
        self._on_open.append(action)

    def write(self, action: "Action[Result]", then: Callable[[Result], None] = lambda _: None) -> Result:
        """Do it in one transaction; if the file turns out to be damaged, with a new one.

        `then` is called with what came of it, before anybody else gets at the file. `action` may raise
        DamageFoundError. Raises StateError where nothing can be written.
        """
        with self._guard:
            result = self._once_or_anew(action)
            then(result)
            return result

    def read(self, action: "Action[Result]") -> Result | None:
        """The same, where nothing needs to be written; None where there is no file, or nothing that can be read."""
        if self._opened is None and not self.path.exists():
            return None
        try:
            return self.write(action)
        except StateError as error:
            log.warning("%s", error.message)
        return self.read_only(action)

    def read_only(self, action: "Action[Result]", then: Callable[[Result], None] = lambda _: None) -> Result | None:
        """As `write`, where nothing can be written. None where nothing can be read either.

        A full disk may have no room for what reading beside a writer needs; then the file counts without its log.
        """
        with self._guard:
            for mode in ("mode=ro", "mode=ro&immutable=1"):
                alone = f"{self.path.absolute().as_uri()}?{mode}"
                with suppress(sqlite3.Error, DamageFoundError), closing(sqlite3.connect(alone, uri=True)) as db:
                    result = action(db)
                    then(result)
                    return result
        return None

    def compact(self, beyond_bytes: int = 0) -> None:
        """Give back to the disk what is free in the file, if it is more than so much, and its log.

        Never raises: it can wait for the next time.
        """
        with self._guard:
            if self._opened is None:
                return
            try:
                db = self._connection
                pages, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_size"))
                if beyond_bytes and pages * size <= beyond_bytes:
                    return
                db.executescript("PRAGMA incremental_vacuum")  # `execute` would stop after the first page
                crash_point("agent_db.compact:before-checkpoint")
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.Error as error:
                log.info("%s stays as large as it is: %s", self.path, error)

    def close(self) -> None:
        with self._guard:
            self._close()

    # -- inside, under the guard --------------------------------------------------------------------------------------

    def _once_or_anew(self, action: "Action[Result]") -> Result:
        try:
            return self._once(action)
        except (sqlite3.Error, DamageFoundError, OSError) as error:
            if not _is_full(error):  # else it can still be read, which a full disk has no room to open it for
                self._close()
            if not self._is_damaged(error):
                raise self._refused(error) from error
            self._put_aside(str(error))
        try:
            return self._once(action)
        except (sqlite3.Error, DamageFoundError, OSError) as error:
            self._close()
            raise self._refused(error) from error

    def _once(self, action: "Action[Result]") -> Result:
        db = self._open()
        db.execute("BEGIN IMMEDIATE")
        try:
            result = action(db)
            crash_point("agent_db.write:before-commit")
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # what failed may have rolled back by itself
                db.execute("ROLLBACK")
            raise
        crash_point("agent_db.write:after-commit")
        return result

    def _open(self) -> sqlite3.Connection:
        """The connection; another one where the file was replaced or removed since."""
        with suppress(OSError):
            if self._opened and self.path.stat().st_ino == self._inode:
                return self._connection
        self._close()
        self._opened = ThreadConnections(self.path, read_only=False)
        self._connection = db = self._opened.get()
        db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1e3:.0f}")
        db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        ensure_agent_schema(db)
        for action in self._on_open:
            action(db)
        self._inode = self.path.stat().st_ino
        return db

    def _close(self) -> None:
        if self._opened:
            with suppress(sqlite3.Error):
                self._opened.close()
            self._opened, self._inode = None, 0

    def _is_damaged(self, error: Exception) -> bool:
        if isinstance(error, sqlite3.Error):
            return is_damage(error) or self.path.is_dir()
        return isinstance(error, DamageFoundError)

    def _put_aside(self, reason: str) -> None:
        names = [self.path.with_name(f"{self.path.name}.damaged-{number + 1}") for number in range(MAX_PUT_ASIDE)]
        target = next((name for name in names if not name.exists()), names[-1])
        try:
            self.path.rename(target)
            crash_point("agent_db.put_aside:renamed")
            for ending in ("-wal", "-shm"):  # they belong to it, and would spoil a new file
                beside = self.path.with_name(self.path.name + ending)
                if beside.exists():
                    beside.rename(target.with_name(target.name + ending))
        except OSError as error:
            raise StateError(f"{self.path} is damaged and cannot be put aside: {error}") from error
        log.error("%s is damaged (%s): put aside as %s, begun anew", self.path, reason, target.name)

    def _refused(self, error: Exception) -> StateError:
        return StateError(f"{self.path} cannot be used: {error}", hint="is the disk full, or the folder read-only?")


def _is_full(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


def is_busy(error: StateError) -> bool:
    """Whether somebody else has the file to himself for now, and nothing is wrong with it."""
    return getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
