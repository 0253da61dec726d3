"""LanceDB: an HNSW graph over scalar-quantised vectors, its own full-text index, reciprocal rank fusion."""

import os
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.engine import Engine, Question, Source

BATCH = 10_000
REFINE = 20
"""Of so many times as many as asked for the f32 vectors choose the best: a better bargain here than a larger ef."""
FIELDS = ("arxiv_id", "title", "text", "authors", "categories", "published")


class Lance(Engine):
    def build(self, source: Source) -> None:
        import lancedb
        import pyarrow as pa
        from lancedb.index import FTS, HnswSq, LabelList

        strings = pa.list_(pa.string())
        schema = pa.schema(
            [
                ("row", pa.int64()),
                ("vector", pa.list_(pa.float32(), 384)),
                ("arxiv_id", pa.string()),
                ("title", pa.string()),
                ("text", pa.string()),
                ("authors", strings),
                ("categories", strings),
                ("published", pa.string()),
                ("terms", strings),
            ]
        )

        def tables() -> Any:
            for first, papers, vectors in source.batches(BATCH):
                rows = [
                    # One indexed field for title and abstract; the abstract is cut out of it again.
                    {**paper, "row": first + row, "vector": vector, "text": f"{paper['title']}. {paper['abstract']}"}
                    for row, (paper, vector) in enumerate(zip(papers, vectors, strict=True))
                ]
                yield pa.Table.from_pylist(rows, schema).to_batches()[0]

        table = lancedb.connect(self.folder).create_table("papers", tables(), schema=schema)
        table.create_index("vector", config=HnswSq(distance_type="cosine", num_partitions=1))
        table.create_index("text", config=FTS())
        table.create_index("terms", config=LabelList())
        table.optimize()

    def open(self) -> None:
        os.environ.setdefault("LANCEDB_LOG", "error")  # it warns at every question
        import lancedb
        from lancedb.rerankers import RRFReranker

        self._table = lancedb.connect(self.folder).open_table("papers")
        self._fusion = RRFReranker()

    def dense(self, question: Question, limit: int, within: Sequence[str] = ()) -> list[int]:
        search = self._table.search(question.vector, vector_column_name="vector").refine_factor(REFINE)
        if within:
            names = ", ".join(f"'{term}'" for term in within)
            search = search.where(f"array_has_any(terms, [{names}])", prefilter=True)
        return self._rows(search, limit)

    def keyword(self, text: str, limit: int) -> list[int]:
        return self._rows(self._table.search(text, query_type="fts", fts_columns="text"), limit)

    def hybrid(self, question: Question, limit: int) -> list[dict[str, Any]]:
        search = self._table.search(query_type="hybrid", vector_column_name="vector", fts_columns="text")
        search = search.vector(question.vector).text(question.text).refine_factor(REFINE)
        search = search.rerank(self._fusion).select(list(FIELDS))
        return [_result(found) for found in search.limit(limit).to_list()]

    @staticmethod
    def _rows(search: Any, limit: int) -> list[int]:
        rows: list[int] = search.select(["row"]).limit(limit).to_arrow()["row"].to_pylist()
        return rows


def _result(found: dict[str, Any]) -> dict[str, Any]:
    text = found.pop("text")
    return {**found, "abstract": text[len(found["title"]) + 2 :], "score": found.get("_relevance_score", 0.0)}
