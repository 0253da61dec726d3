"""Looking for damage in papers.db, and saving what is whole.

SQLite notices when its own structure is broken, not when a bit of a text has flipped; the CRC of each row does.
"""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.crash_points import crash_point
from agent.errors import CorpusError
from agent.store.connection import ThreadConnections
from agent.store.papers import INSERT_PAPER, PaperStore, blob_crc, row_crc

SHOWN: Final = 20
READ_ROWS: Final = 512
GIVE_UP_ROWS: Final = 20_000
"""So many numbers in a row at which nothing can be read, and no more of a table is looked for."""
MAX_NUMBER: Final = 1 << 40

Row = tuple[Any, ...]


class Salvaged(NamedTuple):
    """What could be saved, and how many rows were read but damaged (what could not be read at all is not counted)."""

    papers: int
    vectors: int
    lost: int


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
        if not _whole_paper(row):
            yield str(row[1])


def _bad_vectors(db: sqlite3.Connection) -> Iterator[int]:
    for row in db.execute("SELECT seq, vector, crc FROM vectors"):
        if blob_crc(row[1]) != row[2]:
            yield int(row[0])


def _whole_paper(row: Row) -> bool:
    return bool(row_crc(row[:-1]) == row[-1])


def salvage(damaged: Path, target: Path) -> Salvaged:
    """Copy every whole row of a damaged papers.db into a new one at `target`.

    The new file is another corpus by name, since change numbers that were lost will be given again. Raises
    CorpusError when nothing at all can be read.
    """
    connections = ThreadConnections(damaged, read_only=True)
    store = PaperStore(target)
    try:
        source, db = connections.get(), store.db
        db.execute("BEGIN IMMEDIATE")
        lost = _copy(source, "models", "id", db, "INSERT INTO models VALUES (?, ?)", lambda _: True)
        lost += _copy(source, "removals", "change", db, "INSERT INTO removals VALUES (?, ?)", lambda _: True)
        lost += _copy(source, "papers", "key", db, INSERT_PAPER, _whole_paper)
        lost += _copy(
            source,
            "vectors",
            "seq",
            db,
            "INSERT INTO vectors SELECT ?, ?, ?, ?, ?",
            lambda row: blob_crc(row[3]) == row[4],
        )
        db.execute("DELETE FROM vectors WHERE key NOT IN (SELECT key FROM papers)")
        counts = [int(db.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for name in ("papers", "vectors")]  # noqa: S608
        crash_point("inspection.salvage:before-commit")
        db.execute("COMMIT")
        if not counts[0]:
            raise CorpusError(f"nothing of {damaged} can be read", hint="import the papers again")
        return Salvaged(counts[0], counts[1], lost)
    except sqlite3.Error as error:
        raise CorpusError(f"{damaged} cannot be read at all: {error}") from error
    finally:
        store.close()
        connections.close()


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
    for row in _readable(source, f"SELECT * FROM {table} WHERE {key} BETWEEN ? AND ?", 0, min(last, MAX_NUMBER)):  # noqa: S608
        if not whole(row):
            lost += 1
            continue
        try:
            target.execute(insert, row)
        except sqlite3.IntegrityError:
            lost += 1  # a second row under the same key or id: one of them is damaged
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
