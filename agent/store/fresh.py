"""A papers.db read as it stands at one moment, in order; and one written once, in order.

The same rows make the same bytes, with the same version of SQLite.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self

from agent.domain import Paper
from agent.errors import CorpusError, DamagedPapersError
from agent.store.faults import corpus_error
from agent.store.papers import PaperStore
from agent.store.rows import INSERT_PAPER, blob_crc, is_whole_paper, is_whole_vector, paper_of, row_of

BATCH: Final = 2_000
NO_TIME: Final = "1970-01-01 00:00:00+00:00"


class Snapshot:
    """One moment of a papers.db, whatever is written to it meanwhile; read in the order of arXiv ids."""

    def __init__(self, path: Path, model: str, dimensions: int) -> None:
        """Raises CorpusError."""
        self._papers: Final = PaperStore(path, read_only=True)
        self._model: Final = model
        self._dimensions: Final = dimensions
        try:
            db = self._papers.db
            db.execute("BEGIN")
            found = db.execute("SELECT id FROM models WHERE name = ?", [model]).fetchone()  # this begins the moment
            self._model_id: Final = int(found[0]) if found else 0
        except sqlite3.Error as error:
            self._papers.close()
            raise corpus_error(path, error) from error

    def rows(self) -> Iterator[tuple[Paper, bytes | None]]:
        """Every paper, and its vector where it has one. Raises DamagedPapersError at one that is damaged."""
        path = self._papers.path
        try:
            for *row, vector, crc in self._papers.db.execute(
                """SELECT papers.*, vectors.vector, vectors.crc FROM papers
                   LEFT JOIN vectors ON vectors.key = papers.key AND vectors.model = ? ORDER BY arxiv_id""",
                [self._model_id],
            ):
                if not is_whole_paper(row) or (crc is not None and not is_whole_vector(vector, crc)):
                    raise DamagedPapersError(f"{path} is damaged: paper {row[1]!s:.40}", hint="corpus verify")
                if vector is not None and len(vector) != self._dimensions:
                    raise CorpusError(f"{path}: the vector of {row[1]} has not {self._dimensions} dimensions")
                yield paper_of(row), vector
        except sqlite3.Error as error:
            raise corpus_error(path, error) from error

    def facts(self) -> Iterator[tuple[str, str]]:
        """Of every paper what a selection asks for: categories as stored, and when it was published."""
        try:
            yield from self._papers.db.execute("SELECT categories, published FROM papers ORDER BY arxiv_id")
        except sqlite3.Error as error:
            raise corpus_error(self._papers.path, error) from error

    def removals(self) -> Iterator[str]:
        """The arXiv ids in its table of removals, in order."""
        try:
            for row in self._papers.db.execute("SELECT arxiv_id FROM removals ORDER BY change"):
                yield row[0]
        except sqlite3.Error as error:
            raise corpus_error(self._papers.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._papers.close()


def copy_papers(path: Path, copy: Path) -> None:
    """Copy a papers.db that may be in use, as it stands at one moment. Raises CorpusError."""
    copy.touch()  # SQLite itself gives a group no right to write
    try:
        with closing(PaperStore(path, read_only=True)) as papers, closing(sqlite3.connect(copy)) as target:
            papers.db.backup(target)
    except sqlite3.Error as error:
        raise corpus_error(copy, error) from error


class FreshPapers:
    """A papers.db that nobody else has open, and that is thrown away unless it is finished."""

    def __init__(self, path: Path) -> None:
        """Raises CorpusError."""
        self._store: Final = PaperStore(path)
        self.last_key = 0
        self._run("PRAGMA journal_mode = OFF")
        self._run("PRAGMA synchronous = OFF")

    def add(self, papers: Iterable[Paper]) -> None:
        """Papers, keyed from 1 as they come."""
        for batch in _batches(papers):
            keyed = enumerate(batch, self.last_key + 1)
            self._insert(INSERT_PAPER, [row_of(key, paper) for key, paper in keyed])
            self.last_key += len(batch)

    def add_vectors(self, model: str, vectors: Iterable[tuple[int, bytes]]) -> None:
        """Vectors of papers by their keys, all in one place of the file: a scan of them pages through no texts."""
        self._run("INSERT OR IGNORE INTO models VALUES (1, ?)", [model])
        for batch in _batches(vectors):
            rows = [(key, vector, blob_crc(vector)) for key, vector in batch]
            self._insert("INSERT INTO vectors (key, model, vector, crc) VALUES (?, 1, ?, ?)", rows)

    def add_removals(self, arxiv_ids: Iterable[str]) -> None:
        for batch in _batches(arxiv_ids):
            rows = [(number, name) for number, name in enumerate(batch, self.last_key + 1)]
            self._insert("INSERT INTO removals VALUES (?, ?)", rows)
            self.last_key += len(batch)

    def finish(self, corpus: str) -> None:
        """Name the corpus; the file is complete after that, though not synced."""
        self._run("UPDATE corpus SET id = ?", [corpus])
        self._run("UPDATE _sqlite_migrations SET applied_at = ?", [NO_TIME])
        self._run("PRAGMA journal_mode = WAL")
        self._store.close()

    def close(self) -> None:
        self._store.close()

    def _insert(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        self._run("BEGIN")
        try:
            self._store.db.executemany(statement, rows)
        except sqlite3.Error as error:
            raise corpus_error(self._store.path, error) from error
        self._run("COMMIT")

    def _run(self, statement: str, values: Sequence[Any] = ()) -> None:
        try:
            self._store.db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise corpus_error(self._store.path, error) from error


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
