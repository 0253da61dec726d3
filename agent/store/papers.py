"""papers.db: metadata, text and vectors of one corpus.

Every change (a new paper, a new version, a removal) takes the next **change number**. A paper's row is keyed by
the number of its latest change, so an updated paper has a new key and whatever an index remembers under the old
key is recognised as stale. Vectors stand in a table of their own, in the order in which they came (`seq`), since a
vector may follow its paper by hours.

Several processes may write; each write is one short transaction.
"""

import functools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from agent.crash_points import crash_point
from agent.domain import Paper
from agent.errors import CorpusError, DamagedPapersError, NotReadyError, ShortageError
from agent.store.connection import ThreadConnections, unmapped
from agent.store.faults import corpus_error, identity, is_damage
from agent.store.generations import SCHEMA_LOCK, FolderLock
from agent.store.rows import (
    INSERT_PAPER,
    Change,
    Int8Matrix,
    PutReport,
    StoredVectors,
    blob_crc,
    compare,
    is_whole_paper,
    is_whole_vector,
    paper_of,
    row_of,
)
from agent.store.schema import ensure_schema

IN_CLAUSE: Final = 500

F = TypeVar("F", bound=Callable[..., Any])


def _named(method: F) -> F:
    """Let what SQLite says against a file reach the caller as a CorpusError that names it; damage is remembered."""

    @functools.wraps(method)
    def wrapped(self: "PaperStore", *arguments: Any, **options: Any) -> Any:
        try:
            return method(self, *arguments, **options)
        except sqlite3.Error as error:
            if is_damage(error):
                self.note_damage(str(error))
            told = corpus_error(self.path, error)
            if isinstance(told, ShortageError):
                self.refused = told.message
            raise told from error

    return cast("F", wrapped)


class PaperStore:
    """One papers.db. Usable from any thread: each gets a connection of its own.

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
        self._connections: Final = ThreadConnections(path, read_only=read_only, mapped_bytes=mapped_bytes)
        try:
            if not read_only:
                # SQLite does not wait for another process that is just turning the file to WAL.
                with FolderLock(path.with_name(SCHEMA_LOCK)) as lock:
                    lock.acquire(wait=True)
                    ensure_schema(self.db)
            self.corpus_id()
            self._file: Final = identity(path)
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

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction that takes its lock at the start, so that it cannot fail half-way as busy."""
        if self.held:
            raise NotReadyError(self.held)
        db = self.db
        db.execute("BEGIN IMMEDIATE")
        try:
            if self.is_replaced():
                raise CorpusError(f"{self.path} was replaced by another one meanwhile", hint="try again")  # noqa: TRY301
            yield db
            crash_point("papers.transaction:before-commit")
            db.commit()
            crash_point("papers.transaction:after-commit")
            self.refused = None
        except BaseException:
            db.rollback()
            raise

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

    @_named
    def prove_writable(self) -> None:
        """Write something that changes nothing. Raises ShortageError where the disk still takes nothing."""
        with self._transaction() as db:
            db.execute("UPDATE corpus SET id = id")

    @_named
    def rescue(self, target: Path) -> None:
        """Copy a file that was deleted, from what this thread still has open."""
        with closing(sqlite3.connect(target)) as copy:
            self.db.backup(copy)

    # -- writing ----------------------------------------------------------------------------------------------

    @_named
    def put(self, papers: Sequence[Paper]) -> PutReport:
        """Add papers, or replace older versions of them, in one transaction. The same input again changes nothing.

        An update that leaves title and abstract alone keeps its vector.
        """
        keys: list[int | None] = []
        counts = dict.fromkeys(("added", "updated", "unchanged", "older"), 0)
        with self._transaction() as db:
            present = self._by_ids(db, [paper.arxiv_id for paper in papers])
            number = _last_change(db)
            for paper in papers:
                stored = present.get(paper.arxiv_id)
                verdict = compare(stored[1], paper) if stored else "added"
                counts[verdict] += 1
                if stored and verdict in ("unchanged", "older"):
                    keys.append(stored[0] if verdict == "unchanged" else None)
                    continue
                number += 1
                if stored:
                    self._supersede(db, stored, number, paper)
                else:
                    db.execute(INSERT_PAPER, row_of(number, paper))
                present[paper.arxiv_id] = (number, paper)
                keys.append(number)
        return PutReport(keys, **counts)

    @staticmethod
    def _supersede(db: sqlite3.Connection, stored: tuple[int, Paper], number: int, paper: Paper) -> None:
        old_key, old_paper = stored
        db.execute("DELETE FROM papers WHERE key = ?", [old_key])
        crash_point("papers.supersede:old-row-gone")
        db.execute(INSERT_PAPER, row_of(number, paper))
        if old_paper.text == paper.text:
            db.execute(
                "INSERT INTO vectors (key, model, vector, crc) SELECT ?, model, vector, crc FROM vectors WHERE key = ?",
                [number, old_key],
            )
        db.execute("DELETE FROM vectors WHERE key = ?", [old_key])

    @_named
    def remove(self, arxiv_ids: Sequence[str]) -> list[str]:
        """Remove papers; returns the ids that were there."""
        removed: list[str] = []
        with self._transaction() as db:
            present = self._by_ids(db, arxiv_ids)
            number = _last_change(db)
            for arxiv_id, (key, _) in present.items():
                number += 1
                db.execute("INSERT INTO removals VALUES (?, ?)", [number, arxiv_id])
                crash_point("papers.remove:row-still-there")
                db.execute("DELETE FROM papers WHERE key = ?", [key])
                db.execute("DELETE FROM vectors WHERE key = ?", [key])
                removed.append(arxiv_id)
        return removed

    @_named
    def put_vectors(self, model: str, keys: Sequence[int], matrix: Int8Matrix) -> int:
        """Store vectors of papers that still have none of this model; returns how many were stored."""
        stored = 0
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO models (name) VALUES (?)", [model])
            model_id = _model_id(db, model)
            for key, vector in zip(keys, matrix, strict=True):
                found = db.execute(
                    "SELECT vectors.model FROM papers LEFT JOIN vectors USING (key) WHERE papers.key = ?",
                    [key],
                ).fetchone()
                if found is None or found[0] == model_id:
                    continue
                db.execute("DELETE FROM vectors WHERE key = ?", [key])
                crash_point("papers.put_vectors:between-vectors")
                blob = vector.tobytes()
                db.execute(
                    "INSERT INTO vectors (key, model, vector, crc) VALUES (?, ?, ?, ?)",
                    [key, model_id, blob, blob_crc(blob)],
                )
                stored += 1
        return stored

    # -- reading ----------------------------------------------------------------------------------------------

    @_named
    def corpus_id(self) -> str:
        """Names this corpus for good; whatever was derived from another one is of no use here."""
        return str(self.db.execute("SELECT id FROM corpus").fetchone()[0])

    @_named
    def last_change(self) -> int:
        """The number of the latest change, 0 for a corpus that never held a paper."""
        return _last_change(self.db)

    @_named
    def data_version(self) -> int:
        """Changes whenever another connection has written to the file; cheap enough to ask every second."""
        return int(self.db.execute("PRAGMA data_version").fetchone()[0])

    @_named
    def last_vector(self) -> int:
        """The sequence number of the newest vector, 0 where none was ever stored."""
        row = self.db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'vectors'").fetchone()
        return int(row[0]) if row else 0

    @_named
    def count(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM papers").fetchone()[0])

    @_named
    def count_embedded(self, model: str) -> int:
        model_id = _model_id(self.db, model)
        return int(self.db.execute("SELECT count(*) FROM vectors WHERE model = ?", [model_id]).fetchone()[0])

    @_named
    def get(self, keys: Sequence[int]) -> dict[int, Paper]:
        """The papers of those keys that are still current, and not damaged."""
        return {
            row[0]: paper_of(row) for part in _parts(keys) for row in self._readable_rows(part) if self._is_whole(row)
        }

    def _readable_rows(self, keys: list[int]) -> list[Any]:
        marks = ",".join("?" * len(keys))
        try:
            return self.db.execute(f"SELECT * FROM papers WHERE key IN ({marks})", keys).fetchall()  # noqa: S608  only marks
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self.note_damage(str(error))
            return [row for key in keys for row in self._readable_rows([key])] if len(keys) > 1 else []

    def _is_whole(self, row: Sequence[Any]) -> bool:
        """Whether a row of papers is as it was written."""
        whole = is_whole_paper(row)
        if not whole:
            self.note_damage(f"the row of paper {row[1]!s:.40} does not match its checksum")
        return whole

    @_named
    def keys(self) -> NDArray[np.int64]:
        """The keys of all papers, rising."""
        return np.fromiter((row[0] for row in self.db.execute("SELECT key FROM papers ORDER BY key")), np.int64)

    @_named
    def existing(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the keys that papers still have."""
        found: list[int] = []
        for part in _parts(keys.tolist()):
            marks = ",".join("?" * len(part))
            found += [row[0] for row in self.db.execute(f"SELECT key FROM papers WHERE key IN ({marks})", part)]  # noqa: S608
        return np.array(found, np.int64)

    @_named
    def find(self, arxiv_id: str) -> tuple[int, Paper] | None:
        """The key and the paper of an arXiv id. Raises DamagedPapersError where its row is damaged."""
        return self._by_ids(self.db, [arxiv_id]).get(arxiv_id)

    @_named
    def changes_since(self, number: int, limit: int) -> list[Change]:
        """The next `limit` changes after `number`, in order; superseded ones have left no trace."""
        db = self.db
        db.execute("BEGIN")  # one snapshot for both, or a change between them would be passed over
        try:
            papers = db.execute("SELECT * FROM papers WHERE key > ? ORDER BY key LIMIT ?", [number, limit])
            changes = [Change(row[0], row[1], paper_of(row)) for row in papers if self._is_whole(row)]
            removals = db.execute(
                "SELECT change, arxiv_id FROM removals WHERE change > ? ORDER BY change LIMIT ?", [number, limit]
            )
            changes += [Change(change, arxiv_id, None) for change, arxiv_id in removals]
        finally:
            db.execute("COMMIT")
        return sorted(changes)[:limit] if len(changes) > 1 else changes

    @_named
    def without_vector(self, model: str, limit: int) -> list[tuple[int, str]]:
        """Keys and texts of the next papers to embed, the newest changes first."""
        rows = self.db.execute(
            """SELECT key, title, abstract FROM papers
               WHERE NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.key = papers.key AND vectors.model = ?)
               ORDER BY key DESC LIMIT ?""",
            [_model_id(self.db, model), limit],
        )
        return [(key, Paper("", title, abstract).text) for key, title, abstract in rows]

    @_named
    def vectors_since(self, seq: int, model: str, dimensions: int, limit: int) -> StoredVectors:
        """The next `limit` vectors of `model` after `seq`."""
        rows = self.db.execute(
            "SELECT seq, key, vector, crc FROM vectors WHERE seq > ? AND model = ? ORDER BY seq LIMIT ?",
            [seq, _model_id(self.db, model), limit],
        ).fetchall()
        last = rows[-1][0] if rows else seq
        whole = [row for row in rows if is_whole_vector(row[2], row[3])]
        if len(whole) != len(rows):
            self.note_damage(f"{len(rows) - len(whole)} vectors do not match their checksums")
        keys = np.fromiter((row[1] for row in whole), np.int64, len(whole))
        matrix = np.frombuffer(b"".join(row[2] for row in whole), np.int8)
        if matrix.size != len(whole) * dimensions:
            raise CorpusError(f"{self.path}: a stored vector of {model} has not {dimensions} dimensions")
        return StoredVectors(keys, matrix.reshape(len(whole), dimensions), last)

    def papers(self) -> Iterator[tuple[int, Paper]]:
        """Every key and paper, oldest change first; damaged ones are left out."""
        for row in self.db.execute("SELECT * FROM papers ORDER BY key"):
            if self._is_whole(row):
                yield row[0], paper_of(row)

    def _by_ids(self, db: sqlite3.Connection, arxiv_ids: Iterable[str]) -> dict[str, tuple[int, Paper]]:
        found: dict[str, tuple[int, Paper]] = {}
        for part in _parts(list(dict.fromkeys(arxiv_ids))):
            marks = ",".join("?" * len(part))
            for row in db.execute(f"SELECT * FROM papers WHERE arxiv_id IN ({marks})", part):  # noqa: S608  only marks
                if not self._is_whole(row):
                    raise DamagedPapersError(f"{self.path} is damaged: {self.damage}")
                found[row[1]] = (row[0], paper_of(row))
        return found


def _last_change(db: sqlite3.Connection) -> int:
    row = db.execute(
        "SELECT max(ifnull((SELECT max(key) FROM papers), 0), ifnull((SELECT max(change) FROM removals), 0))"
    ).fetchone()
    return int(row[0])


def _model_id(db: sqlite3.Connection, model: str) -> int:
    """The model's row, 0 where no vector of it was ever stored."""
    row = db.execute("SELECT id FROM models WHERE name = ?", [model]).fetchone()
    return int(row[0]) if row else 0


def _parts(values: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), IN_CLAUSE):
        yield list(values[start : start + IN_CLAUSE])
