"""The journal: the changes that were made on this device, kept in agent.db so that every generation can be given them.

One row per arXiv id says what became of that paper here: its newest record, or that it was removed. It is written
before the change in papers.db is committed, and under the lock of papers.db, so that both have the same order. It
grows by about 1.5 KB a paper, and nothing is forgotten: another generation may lack what this one holds.
"""

import json
import logging
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from agent.domain import Paper
from agent.errors import ShortageError, StateError
from agent.store.agent_db import NAME, AgentDatabase
from agent.store.faults import lack_of
from agent.store.rows import Int8Matrix, compare

log = logging.getLogger(__name__)

Row = tuple[int, str, str | None, str | None, bytes | None, int]
"""seq, arxiv_id, paper, model, vector, crc, as in the table."""
_paper: Final = msgspec.json.Decoder(Paper)


class OwnChange(NamedTuple):
    """A paper as it was given here, or its removal (None).

    `vector`, shape (dimensions,), of `model`: where one was given with it.
    """

    arxiv_id: str
    paper: Paper | None
    model: str | None = None
    vector: Int8Matrix | None = None


class Entry(NamedTuple):
    """A row of the journal: its number, and what it says."""

    seq: int
    change: OwnChange


class Recorded(NamedTuple):
    """The numbers of what `record` has written, and what stood there before: enough to take it back."""

    seqs: tuple[int, ...] = ()
    before: tuple[Row, ...] = ()


class Journal:
    """The table `journal` of agent.db. Usable from any thread; commands and the agent may write it at the same time."""

    def __init__(self, database: AgentDatabase) -> None:
        self._database: Final = database

    def record(self, changes: Sequence[OwnChange], *, only_known: bool = False) -> Recorded:
        """Write down changes, durably when this returns, in one transaction; each is the newest word on its paper.

        What the journal knows in the same or a newer version is left as it stands. With `only_known` papers are passed
        over of which the journal says nothing. Raises ShortageError where agent.db cannot be written.
        """
        if not changes or (only_known and not self._database.path.exists()):
            return Recorded()
        try:
            return self._database.write(lambda db: _record(db, changes, only_known=only_known))
        except StateError as error:
            lack = lack_of(self._database.path.parent)
            message = f"{self._database.path}: {lack}" if lack else error.message
            raise ShortageError(message, hint=error.hint) from error

    def take_back(self, recorded: Recorded) -> None:
        """Undo a `record` whose change was not made after all, as well as it goes. Never raises."""

        def write(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM journal WHERE seq = ?", [[seq] for seq in recorded.seqs])
            # Somebody may have written of the same paper since: that stands. As a new entry, since whoever follows the
            # journal may be past the old one.
            columns = "(arxiv_id, paper, model, vector, crc) VALUES (?, ?, ?, ?, ?)"
            rows = [row[1:] for row in recorded.before]
            db.executemany(f"INSERT OR IGNORE INTO journal {columns}", rows)

        if not recorded.seqs:
            return
        try:
            self._database.write(write)
        except StateError as error:
            log.warning("the journal keeps a change that was not made: %s", error.message)

    def since(self, seq: int, limit: int) -> list[Entry]:
        """The next `limit` entries after `seq`, in order; damaged ones are left out, with a line in the log.

        An empty list is the end. Raises ShortageError where agent.db cannot be read.
        """
        while True:
            rows = self._read(partial(_rows_after, seq=seq, limit=limit))
            entries = [entry for entry in map(_entry_of, rows) if entry]
            if entries or not rows:
                return entries
            seq = rows[-1][0]

    def removed(self, arxiv_ids: Sequence[str]) -> set[str]:
        """Which of these papers were removed here. Raises ShortageError where agent.db cannot be read."""
        query = "SELECT * FROM journal WHERE paper IS NULL AND arxiv_id IN (SELECT value FROM json_each(?))"
        rows = self._read(lambda db: db.execute(query, [json.dumps(list(arxiv_ids))]).fetchall())
        return {entry.change.arxiv_id for entry in map(_entry_of, rows) if entry}

    def _read(self, action: Callable[[sqlite3.Connection], list[Row]]) -> list[Row]:
        if not self._database.path.exists():
            return []
        found = self._database.read(action)
        if found is None:
            raise ShortageError(f"{self._database.path} cannot be read", hint="is the disk full, or read-only?")
        return found


def journal_of(data_dir: Path) -> Journal:
    """That of a data folder, with a connection of its own."""
    return Journal(AgentDatabase(data_dir / NAME))


def _record(db: sqlite3.Connection, changes: Sequence[OwnChange], *, only_known: bool) -> Recorded:
    before: dict[str, Row] = {}
    for arxiv_id in {change.arxiv_id for change in changes}:
        for row in db.execute("SELECT * FROM journal WHERE arxiv_id = ?", [arxiv_id]):
            before[arxiv_id] = row
    entries = filter(None, map(_entry_of, before.values()))
    known = {entry.change.arxiv_id: entry.change for entry in entries}
    fresh: dict[str, OwnChange] = {}
    for change in changes:
        if only_known and change.arxiv_id not in before:
            continue
        newest = merged(known.get(change.arxiv_id), change)
        if newest is not known.get(change.arxiv_id):
            known[change.arxiv_id] = fresh[change.arxiv_id] = newest
    seqs = tuple(_insert(db, change) for change in fresh.values())
    return Recorded(seqs, tuple(before[arxiv_id] for arxiv_id in fresh if arxiv_id in before))


def merged(known: OwnChange | None, change: OwnChange) -> OwnChange:
    """What holds after two changes of the same paper: one of the two, by the rules of papers.db."""
    if known is None:
        return change
    if known.paper is None or change.paper is None:
        return known if known.paper is change.paper else change
    verdict = compare(known.paper, change.paper)
    given = change.vector is not None
    if verdict == "older" or (verdict == "unchanged" and (not given or _same_vector(known, change))):
        return known
    if known.paper.text == change.paper.text and not given:
        return change._replace(model=known.model, vector=known.vector)
    return change


def _same_vector(one: OwnChange, other: OwnChange) -> bool:
    if one.vector is None or other.vector is None:
        return one.vector is other.vector
    return one.model == other.model and np.array_equal(one.vector, other.vector)


def _insert(db: sqlite3.Connection, change: OwnChange) -> int:
    paper = msgspec.json.encode(change.paper).decode() if change.paper else None
    vector = change.vector.tobytes() if change.vector is not None else None
    row = [change.arxiv_id, paper, change.model if vector else None, vector]
    query = "INSERT OR REPLACE INTO journal (arxiv_id, paper, model, vector, crc) VALUES (?, ?, ?, ?, ?)"
    return int(db.execute(query, [*row, _crc(row)]).lastrowid or 0)


def _rows_after(db: sqlite3.Connection, seq: int, limit: int) -> list[Row]:
    return db.execute("SELECT * FROM journal WHERE seq > ? ORDER BY seq LIMIT ?", [seq, limit]).fetchall()


def _entry_of(row: Row) -> Entry | None:
    seq, arxiv_id, paper, model, vector, crc = row
    try:
        if crc != _crc(row[1:-1]):
            raise ValueError("it does not match its checksum")  # noqa: TRY301  as what decoding finds
        read = None if paper is None else _paper.decode(paper)
        given = None if vector is None else np.frombuffer(vector, np.int8)
        return Entry(seq, OwnChange(arxiv_id, read, model, given))
    except (ValueError, TypeError, AttributeError) as error:
        log.error("a change made on this device, to %.40r, is passed over: %s", arxiv_id, error)  # noqa: TRY400  the message says it all
        return None


def _crc(row: Sequence[Any]) -> int:
    arxiv_id, paper, model, vector = row
    crc = zlib.crc32("\x1f".join(map(str, (arxiv_id, paper, model))).encode("utf-8", "surrogatepass"))
    return zlib.crc32(vector or b"", crc)
