"""sqlite-vec and FTS5 in one SQLite file, fused by reciprocal ranks."""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.bare import int8_of
from benchmarks.peers.engine import FUSION_DEPTH, Engine, Question, Source, reciprocal_ranks

BATCH = 5_000
SCHEMA = """
CREATE TABLE papers (id INTEGER PRIMARY KEY, arxiv_id, title, abstract, authors, categories, published);
CREATE VIRTUAL TABLE words USING fts5 (title, abstract, content = papers, content_rowid = id, tokenize = 'porter');
CREATE VIRTUAL TABLE vectors USING vec0 (vector int8[384] distance_metric=cosine);
CREATE TABLE terms (term, paper INTEGER, PRIMARY KEY (term, paper)) WITHOUT ROWID;
"""


class SqliteVec(Engine):
    def _connect(self) -> Any:
        import apsw
        import sqlite_vec

        db = apsw.Connection(str(self.folder / "papers.db"))
        db.enable_load_extension(True)  # noqa: FBT003  positional only
        sqlite_vec.load(db)
        return db

    def build(self, source: Source) -> None:
        db = self._connect()
        db.execute(SCHEMA)
        for first, papers, vectors in source.batches(BATCH):
            with db:
                for row, (paper, vector) in enumerate(zip(papers, vectors, strict=True), first):
                    db.execute("INSERT INTO papers VALUES (?, ?, ?, ?, ?, ?, ?)", (row, *_columns(paper)))
                    db.execute("INSERT INTO vectors (rowid, vector) VALUES (?, vec_int8(?))", (row, _bytes(vector)))
                    db.executemany("INSERT INTO terms VALUES (?, ?)", [(term, row) for term in paper["terms"]])
        db.execute("INSERT INTO words (words) VALUES ('rebuild')")
        db.close()

    def open(self) -> None:
        self._db = self._connect()

    def dense(self, question: Question, limit: int, within: Sequence[str] = ()) -> list[int]:
        marks = ", ".join("?" * len(within))
        inside = f" AND rowid IN (SELECT paper FROM terms WHERE term IN ({marks}))" if within else ""
        sql = f"SELECT rowid FROM vectors WHERE vector MATCH vec_int8(?) AND k = ?{inside}"
        return [row for (row,) in self._db.execute(sql, (_bytes(question.vector), limit, *within))]

    def keyword(self, text: str, limit: int) -> list[int]:
        words = "".join(c if c.isalnum() else " " for c in text).split()
        query = " OR ".join(f'"{word}"' for word in dict.fromkeys(words))
        sql = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?"
        return [row for (row,) in self._db.execute(sql, (query, limit))] if query else []

    def hybrid(self, question: Question, limit: int) -> list[dict[str, Any]]:
        lists = self.dense(question, FUSION_DEPTH), self.keyword(question.text, FUSION_DEPTH)
        return [self._paper(row, score) for row, score in reciprocal_ranks(*lists)[:limit]]

    def _paper(self, row: int, score: float) -> dict[str, Any]:
        sql = "SELECT arxiv_id, title, abstract, published, authors, categories FROM papers WHERE id = ?"
        arxiv_id, title, abstract, published, authors, categories = next(iter(self._db.execute(sql, (row,))))
        return {
            "arxiv_id": arxiv_id,
            "title": title,
            "abstract": abstract,
            "published": published,
            "authors": json.loads(authors),
            "categories": json.loads(categories),
            "score": score,
        }


def _columns(paper: dict[str, Any]) -> tuple[str, ...]:
    texts = (paper["arxiv_id"], paper["title"], paper["abstract"])
    return (*texts, json.dumps(paper["authors"]), json.dumps(paper["categories"]), paper["published"])


def _bytes(vector: Any) -> bytes:
    content: bytes = int8_of(vector).tobytes()
    return content
