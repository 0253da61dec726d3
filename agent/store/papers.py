"""papers.db: metadata, text and vectors of one corpus.

Every change (a new paper, a new version, a removal) takes the next **change number**. A paper's row is keyed by
the number of its latest change, so an updated paper has a new key and whatever an index remembers under the old
key is recognised as stale. Vectors stand in a table of their own, in the order in which they came (`seq`), since a
vector may follow its paper by hours.

Several processes may write; each write is one short transaction.
"""

import functools
import json
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.crash_points import crash_point
from agent.domain import Paper
from agent.errors import CorpusError
from agent.store.connection import ThreadConnections, unmapped
from agent.store.generations import SCHEMA_LOCK, FolderLock
from agent.store.schema import ensure_schema

IN_CLAUSE: Final = 500
INSERT_PAPER: Final = "INSERT INTO papers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_names: Final = msgspec.json.Decoder(tuple[str, ...])

F = TypeVar("F", bound=Callable[..., Any])

Int8Matrix = NDArray[np.int8]
"""Shape (n, dimensions): each vector scaled by its own largest component to +-127."""


class Change(NamedTuple):
    """One step of the corpus: `paper` is None when `arxiv_id` was removed."""

    number: int
    arxiv_id: str
    paper: Paper | None


class PutReport(NamedTuple):
    """What became of a batch. `keys[i]` is the row key of the i-th paper, None where a newer version stood."""

    keys: list[int | None]
    added: int
    updated: int
    unchanged: int
    older: int


class StoredVectors(NamedTuple):
    """A run of vectors in order of arrival; `last_seq` is where the next run continues."""

    keys: NDArray[np.int64]
    matrix: Int8Matrix
    last_seq: int


def _named(method: F) -> F:
    """Let what SQLite says against a file reach the caller as a CorpusError that names it."""

    @functools.wraps(method)
    def wrapped(self: "PaperStore", *arguments: Any, **options: Any) -> Any:
        try:
            return method(self, *arguments, **options)
        except sqlite3.Error as error:
            raise CorpusError(f"{self.path}: {error}", hint="arxplorer-agent corpus verify") from error

    return cast("F", wrapped)


class PaperStore:
    """One papers.db. Usable from any thread: each gets a connection of its own.

    Every method raises CorpusError when the file is damaged, locked for long, or the disk is full.
    """

    def __init__(self, path: Path, *, read_only: bool = False, mapped_bytes: Callable[[int], int] = unmapped) -> None:
        """Open, and create or migrate unless `read_only`. Raises CorpusError when the file is no corpus.

        `mapped_bytes` says how much of a file of so many bytes to read through a memory map.
        """
        self.path: Final = path
        self.read_only: Final = read_only
        self._connections: Final = ThreadConnections(path, read_only=read_only, mapped_bytes=mapped_bytes)
        try:
            if not read_only:
                # SQLite does not wait for another process that is just turning the file to WAL.
                with FolderLock(path.with_name(SCHEMA_LOCK)) as lock:
                    lock.acquire(wait=True)
                    ensure_schema(self.db)
            self.corpus_id()
        except (sqlite3.Error, CorpusError, TypeError) as error:
            self.close()
            raise CorpusError(f"{path} cannot be opened as a corpus: {error.__cause__ or error}") from error

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
        db = self.db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            crash_point("papers.transaction:before-commit")
            db.commit()
            crash_point("papers.transaction:after-commit")
        except BaseException:
            db.rollback()
            raise

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
                    db.execute(INSERT_PAPER, _row(number, paper))
                present[paper.arxiv_id] = (number, paper)
                keys.append(number)
        return PutReport(keys, **counts)

    @staticmethod
    def _supersede(db: sqlite3.Connection, stored: tuple[int, Paper], number: int, paper: Paper) -> None:
        old_key, old_paper = stored
        db.execute("DELETE FROM papers WHERE key = ?", [old_key])
        crash_point("papers.supersede:old-row-gone")
        db.execute(INSERT_PAPER, _row(number, paper))
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
        """The papers of those keys that are still current."""
        found: dict[int, Paper] = {}
        for part in _parts(keys):
            marks = ",".join("?" * len(part))
            rows = self.db.execute(f"SELECT * FROM papers WHERE key IN ({marks})", part)  # noqa: S608  only marks
            found.update((row[0], _paper(row)) for row in rows)
        return found

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
        """The key and the paper of an arXiv id."""
        return self._by_ids(self.db, [arxiv_id]).get(arxiv_id)

    @_named
    def changes_since(self, number: int, limit: int) -> list[Change]:
        """The next `limit` changes after `number`, in order; superseded ones have left no trace."""
        db = self.db
        db.execute("BEGIN")  # one snapshot for both, or a change between them would be passed over
        try:
            papers = db.execute("SELECT * FROM papers WHERE key > ? ORDER BY key LIMIT ?", [number, limit])
            changes = [Change(row[0], row[1], _paper(row)) for row in papers]
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
            "SELECT seq, key, vector FROM vectors WHERE seq > ? AND model = ? ORDER BY seq LIMIT ?",
            [seq, _model_id(self.db, model), limit],
        ).fetchall()
        keys = np.fromiter((row[1] for row in rows), np.int64, len(rows))
        matrix = np.frombuffer(b"".join(row[2] for row in rows), np.int8)
        if matrix.size != len(rows) * dimensions:
            raise CorpusError(f"{self.path}: a stored vector of {model} has not {dimensions} dimensions")
        return StoredVectors(keys, matrix.reshape(len(rows), dimensions), rows[-1][0] if rows else seq)

    def papers(self) -> Iterator[tuple[int, Paper]]:
        """Every key and paper, oldest change first."""
        for row in self.db.execute("SELECT * FROM papers ORDER BY key"):
            yield row[0], _paper(row)

    @staticmethod
    def _by_ids(db: sqlite3.Connection, arxiv_ids: Iterable[str]) -> dict[str, tuple[int, Paper]]:
        found: dict[str, tuple[int, Paper]] = {}
        for part in _parts(list(dict.fromkeys(arxiv_ids))):
            marks = ",".join("?" * len(part))
            for row in db.execute(f"SELECT * FROM papers WHERE arxiv_id IN ({marks})", part):  # noqa: S608  only marks
                found[row[1]] = (row[0], _paper(row))
        return found


def compare(stored: Paper, given: Paper) -> str:
    """What `given` is beside the stored version: `unchanged`, `older` or `updated`.

    arXiv's version number decides where both have one, else the date of the update; `2020-05` is not older than
    `2020-05-12`. At the same age the one that came last wins, so that a corrected record can be imported again.
    """
    if stored == given:
        return "unchanged"
    if stored.version and given.version and stored.version != given.version:
        return "older" if given.version < stored.version else "updated"
    if given.updated < stored.updated and not stored.updated.startswith(given.updated):
        return "older"
    return "updated"


def _last_change(db: sqlite3.Connection) -> int:
    row = db.execute(
        "SELECT max(ifnull((SELECT max(key) FROM papers), 0), ifnull((SELECT max(change) FROM removals), 0))"
    ).fetchone()
    return int(row[0])


def _model_id(db: sqlite3.Connection, model: str) -> int:
    """The model's row, 0 where no vector of it was ever stored."""
    row = db.execute("SELECT id FROM models WHERE name = ?", [model]).fetchone()
    return int(row[0]) if row else 0


def _row(key: int, paper: Paper) -> list[Any]:
    row = [
        key,
        paper.arxiv_id,
        paper.title,
        paper.abstract,
        json.dumps(paper.authors, ensure_ascii=False),
        json.dumps(paper.categories, ensure_ascii=False),
        paper.published,
        paper.updated,
        paper.version,
    ]
    return [*row, row_crc(row)]


def row_crc(row: Sequence[Any]) -> int:
    """CRC-32 of a paper's row, its crc left out: bits may rot on a card, and SQLite does not notice that in a text."""
    return zlib.crc32("\x1f".join(map(str, row)).encode("utf-8", "surrogatepass"))


def blob_crc(blob: bytes) -> int:
    return zlib.crc32(blob)


def _paper(row: Sequence[Any]) -> Paper:
    _, arxiv_id, title, abstract, authors, categories, published, updated, version, _ = row
    return Paper(
        arxiv_id,
        title,
        abstract,
        _names.decode(authors),
        _names.decode(categories),
        published,
        updated,
        version,
    )


def _parts(values: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), IN_CLAUSE):
        yield list(values[start : start + IN_CLAUSE])
