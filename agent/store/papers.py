"""papers.db: metadata, text and vectors of one corpus.

Every change (a new paper, a new version, a removal) takes the next **change number**. A paper's row is keyed by
the number of its latest change, so an updated paper has a new key and whatever an index remembers under the old
key is recognised as stale. Vectors stand in a table of their own, in the order in which they came (`seq`), since a
vector may follow its paper by hours.

Several processes may write; each write is one short transaction.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agent.crash_points import crash_point
from agent.domain import Paper
from agent.errors import CorpusError, DamagedPapersError
from agent.store.faults import is_damage
from agent.store.papers_file import PapersFile, named
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

IN_CLAUSE: Final = 500


class PaperStore(PapersFile):
    """The papers, vectors and removals of one papers.db. Usable from any thread."""

    # -- writing ----------------------------------------------------------------------------------------------

    @named
    def put(self, papers: Sequence[Paper]) -> PutReport:
        """Add papers, or replace older versions of them, in one transaction. The same input again changes nothing.

        An update that leaves title and abstract alone keeps its vector.
        """
        keys: list[int | None] = []
        counts = dict.fromkeys(("added", "updated", "unchanged", "older"), 0)
        with self.transaction() as db:
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

    @named
    def remove(self, arxiv_ids: Sequence[str]) -> list[str]:
        """Remove papers; returns the ids that were there."""
        removed: list[str] = []
        with self.transaction() as db:
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

    @named
    def put_vectors(self, model: str, keys: Sequence[int], matrix: Int8Matrix) -> int:
        """Store vectors of papers that still have none of this model; returns how many were stored."""
        stored = 0
        with self.transaction() as db:
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

    @named
    def last_change(self) -> int:
        """The number of the latest change, 0 for a corpus that never held a paper."""
        return _last_change(self.db)

    @named
    def data_version(self) -> int:
        """Changes whenever another connection has written to the file; cheap enough to ask every second."""
        return int(self.db.execute("PRAGMA data_version").fetchone()[0])

    @named
    def last_vector(self) -> int:
        """The sequence number of the newest vector, 0 where none was ever stored."""
        row = self.db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'vectors'").fetchone()
        return int(row[0]) if row else 0

    @named
    def count(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM papers").fetchone()[0])

    @named
    def count_embedded(self, model: str) -> int:
        model_id = _model_id(self.db, model)
        return int(self.db.execute("SELECT count(*) FROM vectors WHERE model = ?", [model_id]).fetchone()[0])

    @named
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

    @named
    def keys(self) -> NDArray[np.int64]:
        """The keys of all papers, rising."""
        return np.fromiter((row[0] for row in self.db.execute("SELECT key FROM papers ORDER BY key")), np.int64)

    @named
    def existing(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the keys that papers still have."""
        found: list[int] = []
        for part in _parts(keys.tolist()):
            marks = ",".join("?" * len(part))
            found += [row[0] for row in self.db.execute(f"SELECT key FROM papers WHERE key IN ({marks})", part)]  # noqa: S608
        return np.array(found, np.int64)

    @named
    def find(self, arxiv_id: str) -> tuple[int, Paper] | None:
        """The key and the paper of an arXiv id. Raises DamagedPapersError where its row is damaged."""
        return self._by_ids(self.db, [arxiv_id]).get(arxiv_id)

    @named
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

    @named
    def without_vector(self, model: str, limit: int) -> list[tuple[int, str]]:
        """Keys and texts of the next papers to embed, the newest changes first."""
        rows = self.db.execute(
            """SELECT key, title, abstract FROM papers
               WHERE NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.key = papers.key AND vectors.model = ?)
               ORDER BY key DESC LIMIT ?""",
            [_model_id(self.db, model), limit],
        )
        return [(key, Paper("", title, abstract).text) for key, title, abstract in rows]

    @named
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

    @named
    def vectors_of(self, model: str, arxiv_ids: Sequence[str]) -> dict[str, tuple[str, Int8Matrix]]:
        """The texts of those papers that have a whole vector of `model`, and these vectors."""
        found: dict[str, tuple[str, Int8Matrix]] = {}
        for part in _parts(list(dict.fromkeys(arxiv_ids))):
            marks = ",".join("?" * len(part))
            rows = self.db.execute(
                f"""SELECT papers.*, vectors.vector, vectors.crc FROM papers JOIN vectors USING (key)
                    WHERE arxiv_id IN ({marks}) AND model = ?""",  # noqa: S608  only marks
                [*part, _model_id(self.db, model)],
            )
            for *row, vector, crc in rows:
                if self._is_whole(row) and is_whole_vector(vector, crc):
                    found[row[1]] = (paper_of(row).text, np.frombuffer(vector, np.int8))
        return found

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
