"""Looking for damage in papers.db, and saving what is whole.

SQLite notices when its own structure is broken, not when a bit of a text has flipped; the CRC of each row does.
"""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.crash_points import crash_point
from agent.errors import CorpusError
from agent.store.connection import ThreadConnections
from agent.store.faults import corpus_error, is_damage, shortage_of
from agent.store.papers import PaperStore
from agent.store.rows import INSERT_PAPER, is_whole_paper, is_whole_vector

SHOWN: Final = 20
READ_ROWS: Final = 512
GIVE_UP_ROWS: Final = 20_000
"""So many numbers in a row at which nothing can be read, and no more of a table is looked for."""
MAX_NUMBER: Final = 1 << 40
COMMIT_ROWS: Final = 4_096
"""Copied in one transaction: what is not committed yet stands twice on the disk."""
PAGE_BYTES: Final = 4_096
# Where the header of a database keeps them (sqlite.org/fileformat2.html).
CHANGES_IN_HEADER: Final = slice(24, 28)
PAGES_IN_HEADER: Final = slice(28, 32)
VALID_FOR_IN_HEADER: Final = slice(92, 96)

Row = tuple[Any, ...]


class NothingReadableError(CorpusError):
    """Not a single paper of a damaged file can be read."""


class Salvaged(NamedTuple):
    """What could be saved; how many rows were read but damaged, and how many papers are known to be missing."""

    papers: int
    vectors: int
    lost: int
    missing: int


def problems_of(path: Path) -> list[str]:
    """What is wrong with a papers.db, in words; nothing for a whole one. Reads all of it."""
    connections = ThreadConnections(path, read_only=True)
    try:
        db = connections.get()
        found = [str(row[0]) for row in db.execute(f"PRAGMA integrity_check({SHOWN})")]
        problems = [f"{path.name}: {line}" for line in found if line != "ok"]
        for name, rows in (("paper", _bad_papers(db)), ("vector", _bad_vectors(db))):
            bad = list(rows)
            if bad:
                shown = ", ".join(map(str, bad[:SHOWN])) + (" .." if len(bad) > SHOWN else "")
                problems.append(f"{path.name}: {len(bad)} damaged {name} rows: {shown}")
    except (sqlite3.Error, CorpusError) as error:
        return [f"{path.name}: {error}"]
    finally:
        connections.close()
    return problems


def _bad_papers(db: sqlite3.Connection) -> Iterator[str]:
    for row in db.execute("SELECT * FROM papers"):
        if not is_whole_paper(row):
            yield str(row[1])


def _bad_vectors(db: sqlite3.Connection) -> Iterator[int]:
    for seq, blob, crc in db.execute("SELECT seq, vector, crc FROM vectors"):
        if not is_whole_vector(blob, crc):
            yield int(seq)


def scrub(path: Path) -> Iterator[str | None]:
    """Read every row of a papers.db once, in slices: after each, what was wrong in it, or None.

    Ends after the first that is damaged. Never raises for damage; other errors of SQLite come as they are.
    """
    papers = "SELECT * FROM papers WHERE key > ? ORDER BY key LIMIT ?"
    vectors = "SELECT seq, vector, crc FROM vectors WHERE seq > ? ORDER BY seq LIMIT ?"
    queries = ((papers, is_whole_paper), (vectors, lambda row: is_whole_vector(*row[1:])))
    with closing(ThreadConnections(path, read_only=True)) as connections:
        try:
            for query, is_whole in queries:
                last = -1
                while rows := connections.get().execute(query, [last, READ_ROWS]).fetchall():
                    last = rows[-1][0]
                    bad = sum(not is_whole(row) for row in rows)
                    yield f"{bad} rows do not match their checksums" if bad else None
                    if bad:
                        return
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            yield str(error)


def salvage(damaged: Path, target: Path) -> Salvaged:
    """Copy every whole row of a damaged papers.db into a new one at `target`, in a little memory.

    The new file is another corpus by name, since change numbers that were lost will be given again. What can be read
    of a file that was made shorter is read; where its head is lost, that of a new papers.db takes the place. Raises
    CorpusError when nothing at all can be read, and ShortageError when the disk is full.
    """
    try:
        return _salvage(damaged, target)
    except NothingReadableError:
        pass
    for path in files_of(target):
        path.unlink(missing_ok=True)
    headed = target.with_name(f".{target.name}.headed")
    try:
        with shortage_of(str(headed)):
            _copy_with_new_head(damaged, headed)
        return _salvage(headed, target)
    finally:
        for path in files_of(headed):
            path.unlink(missing_ok=True)


def files_of(path: Path) -> list[Path]:
    """A database and what SQLite may keep beside it."""
    return [path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")]


def _copy_with_new_head(damaged: Path, target: Path) -> None:
    """Copy a file and its log, with the first page of a new papers.db, in which every table lies at the same place."""
    PaperStore(target).close()
    head = bytearray(target.read_bytes()[:PAGE_BYTES])
    pages = damaged.stat().st_size // PAGE_BYTES
    head[PAGES_IN_HEADER] = pages.to_bytes(4, "big")
    head[VALID_FOR_IN_HEADER] = head[CHANGES_IN_HEADER]  # else the number of pages is not believed
    for source, copy in zip(files_of(damaged)[:2], files_of(target)[:2], strict=True):
        if source.exists():
            shutil.copyfile(source, copy)
    with target.open("r+b") as file:
        file.write(head)


def _salvage(damaged: Path, target: Path) -> Salvaged:
    with closing(ThreadConnections(damaged, read_only=True)) as connections, closing(PaperStore(target)) as store:
        try:
            source, db = connections.get(), store.db
            source.execute("PRAGMA writable_schema = ON")  # else SQLite reads nothing of a file that is too short
            count = _counted(source)
            db.execute("BEGIN IMMEDIATE")
            lost = _copy(source, "models", "id", db, "INSERT INTO models VALUES (?, ?)", lambda _: True)
            lost += _copy(source, "removals", "change", db, "INSERT INTO removals VALUES (?, ?)", lambda _: True)
            lost += _copy(source, "papers", "key", db, INSERT_PAPER, is_whole_paper)
            lost += _copy(
                source,
                "vectors",
                "seq",
                db,
                "INSERT INTO vectors SELECT ?, ?, ?, ?, ?",
                lambda row: is_whole_vector(*row[3:]),
            )
            db.execute("DELETE FROM vectors WHERE key NOT IN (SELECT key FROM papers)")
            saved = [int(db.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for name in ("papers", "vectors")]  # noqa: S608
            crash_point("inspection.salvage:before-commit")
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if is_damage(error):
                raise NothingReadableError(f"{damaged} cannot be read at all: {error}") from error
            raise corpus_error(target, error) from error
        if not saved[0]:
            raise NothingReadableError(f"nothing of {damaged} can be read", hint="import the papers again")
        return Salvaged(saved[0], saved[1], lost, max(0, count - saved[0]))


def _counted(source: sqlite3.Connection) -> int:
    """How many papers there were, as far as the file can still tell."""
    for counting in ("arxiv_id", "+key"):  # by the index, by the table
        with suppress(sqlite3.DatabaseError):
            return int(source.execute(f"SELECT count({counting}) FROM papers").fetchone()[0])  # noqa: S608
    return 0


def _copy(
    source: sqlite3.Connection,
    table: str,
    key: str,
    target: sqlite3.Connection,
    insert: str,
    whole: Callable[[Row], bool],
) -> int:
    """Copy the whole rows of a table; returns how many were there and damaged."""
    try:
        last = int(source.execute(f"SELECT ifnull(max({key}), 0) FROM {table}").fetchone()[0])  # noqa: S608
    except sqlite3.OperationalError:
        return 0  # the table is not there
    except sqlite3.DatabaseError:
        last = MAX_NUMBER
    lost = 0
    copied = 0
    for row in _readable(source, f"SELECT * FROM {table} WHERE {key} BETWEEN ? AND ?", 0, min(last, MAX_NUMBER)):  # noqa: S608
        try:
            if not whole(row):
                lost += 1
                continue
            target.execute(insert, row)
        except (sqlite3.IntegrityError, TypeError, IndexError):
            lost += 1  # a second row under the same key or id, or of another shape: damaged
        copied += 1
        if copied % COMMIT_ROWS == 0:
            target.execute("COMMIT")
            target.execute("BEGIN IMMEDIATE")
    return lost


def _readable(source: sqlite3.Connection, query: str, first: int, last: int) -> Iterator[Row]:
    """The rows from `first` to `last` that can be read."""
    in_vain = 0
    for start in range(first, last + 1, READ_ROWS):
        end = min(start + READ_ROWS - 1, last)
        rows = _rows(source, query, start, end)
        if rows is None:
            single = [_rows(source, query, number, number) for number in range(start, end + 1)]
            rows = [row for found in single if found for row in found]
        yield from rows
        in_vain = 0 if rows else in_vain + READ_ROWS
        if in_vain >= GIVE_UP_ROWS and last == MAX_NUMBER:
            return


def _rows(source: sqlite3.Connection, query: str, first: int, last: int) -> list[Row] | None:
    try:
        return source.execute(query, [first, last]).fetchall()
    except sqlite3.DatabaseError:
        return None
