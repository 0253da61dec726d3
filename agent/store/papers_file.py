"""The file of a papers.db: its connections, its transactions, and what is noticed against it."""

import functools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from agent.crash_points import crash_point
from agent.errors import CorpusError, DamagedPapersError, NotReadyError, ShortageError, SupersededError
from agent.store.connection import ThreadConnections, unmapped
from agent.store.faults import corpus_error, identity, is_damage
from agent.store.generations import SCHEMA_LOCK, FolderLock
from agent.store.schema import ensure_schema

F = TypeVar("F", bound=Callable[..., Any])


def named(method: F) -> F:
    """Let what SQLite says against a file reach the caller as a CorpusError that names it; damage is remembered."""

    @functools.wraps(method)
    def wrapped(self: "PapersFile", *arguments: Any, **options: Any) -> Any:
        try:
            return method(self, *arguments, **options)
        except sqlite3.Error as error:
            raise self.told(error) from error

    return cast("F", wrapped)


class PapersFile:
    """One papers.db, opened. Usable from any thread: each gets a connection of its own.

    Every method raises DamagedPapersError when the file is damaged, ShortageError when the disk is full or read-only,
    and CorpusError when it is locked for long.
    """

    def __init__(self, path: Path, *, read_only: bool = False, mapped_bytes: Callable[[int], int] = unmapped) -> None:
        """Open, and create or migrate unless `read_only`. Raises DamagedPapersError when the file is no corpus.

        `mapped_bytes` says how much of a file of so many bytes to read through a memory map.
        """
        self.path: Final = path
        self.read_only: Final = read_only
        self.damage: str | None = None  # what was found damaged first, in words
        self.held: str | None = None  # why nothing may be written, in words
        self.refused: str | None = None  # why the disk did not take what was last written, in words
        self._current: Path | None = None
        self._connections: Final = ThreadConnections(path, read_only=read_only, mapped_bytes=mapped_bytes)
        try:
            if not read_only:
                # SQLite does not wait for another process that is just turning the file to WAL.
                with FolderLock(path.with_name(SCHEMA_LOCK)) as lock:
                    lock.acquire(wait=True)
                    ensure_schema(self.db)
            self.corpus_id()
            self._file: Final = identity(path)
            self._folder: Final = identity(path.parent)
        except sqlite3.Error as error:
            self.close()
            raise corpus_error(path, error) from error
        except TypeError as error:
            self.close()
            raise DamagedPapersError(f"{path} is damaged: it names no corpus") from error
        except CorpusError:
            self.close()
            raise

    @property
    def db(self) -> sqlite3.Connection:
        """This thread's connection."""
        return self._connections.get()

    def close(self) -> None:
        """Close every thread's connection; no other thread may be using the store any more."""
        self._connections.close()

    @named
    def corpus_id(self) -> str:
        """Names this corpus for good; whatever was derived from another one is of no use here."""
        return str(self.db.execute("SELECT id FROM corpus").fetchone()[0])

    # -- transactions -----------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction that takes its lock at the start, so that it cannot fail half-way as busy.

        Within one of this thread's it is a part of that. Raises SupersededError where another generation has taken
        this one's place.
        """
        if self.held:
            raise NotReadyError(self.held)
        db = self.db
        if db.in_transaction:
            yield db
            return
        try:
            db.execute("BEGIN IMMEDIATE")
            self._require_its_place()
            yield db
            crash_point("papers.transaction:before-commit")
            db.commit()
            crash_point("papers.transaction:after-commit")
            self.refused = None
        except BaseException as error:
            with suppress(sqlite3.Error):
                db.rollback()
            if isinstance(error, sqlite3.Error):
                raise self.told(error) from error
            raise

    def told(self, error: sqlite3.Error) -> CorpusError:
        """What SQLite says against the file, as an error that names it; it is remembered for whoever mends that."""
        if is_damage(error):
            self.note_damage(str(error))
        told = corpus_error(self.path, error)
        if isinstance(told, ShortageError):
            self.refused = told.message
        return told

    def bind(self, current: Path) -> None:
        """From here on take changes only while the link `current` leads to this folder."""
        self._current = current

    def is_superseded(self) -> bool:
        """Whether another generation has become the current one, so that nobody would find what is written here."""
        found = identity(self._current) if self._current else None
        return found is not None and found != self._folder

    def _require_its_place(self) -> None:
        if self.is_superseded():
            raise SupersededError(f"{self.path} is of a generation that another one has just taken the place of")
        if self.is_replaced():
            raise CorpusError(f"{self.path} was replaced by another one meanwhile", hint="try again")

    # -- damage -----------------------------------------------------------------------------------------------

    def note_damage(self, reason: str) -> None:
        """Remember that the file is damaged, for whoever heals it."""
        self.damage = self.damage or reason

    def is_replaced(self) -> bool:
        """Whether another file, or none, stands where this one stood: what is written now would be lost."""
        return identity(self.path) != self._file

    def hold(self, reason: str) -> None:
        """Let nobody write from here on: this process is told `reason`, others wait as long as the file has locks."""
        self.held = reason
        with suppress(sqlite3.Error):
            self.db.execute("BEGIN IMMEDIATE")

    def release(self, *, writable: bool) -> None:
        """End what `hold` began, in the same thread; others find out by themselves when the file was replaced."""
        self.held = None if writable else self.held
        with suppress(sqlite3.Error):
            self.db.rollback()

    @named
    def prove_writable(self) -> None:
        """Write something that changes nothing. Raises ShortageError where the disk still takes nothing."""
        with self.transaction() as db:
            db.execute("UPDATE corpus SET id = id")

    @named
    def rescue(self, target: Path) -> None:
        """Copy a file that was deleted, from what this thread still has open."""
        with closing(sqlite3.connect(target)) as copy:
            self.db.backup(copy)
