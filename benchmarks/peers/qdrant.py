"""qdrant-edge-py: dense vectors, BM25 as sparse vectors, fused inside."""

from collections.abc import Sequence
from typing import Any, ClassVar

from benchmarks.peers.engine import BUILD_EF, FUSION_DEPTH, GRAPH_LINKS, RRF_K, SEARCH_EF, Engine, Question, Source

DIMENSIONS = 384
BATCH = 1_000
FULL_SCAN_BELOW_KB = 10_000
"""Its default."""
OVERSAMPLING = 2.0


class QdrantFloat(Engine):
    """Vectors as f32."""

    quantised: ClassVar[bool] = False
    rescored: ClassVar[bool] = False

    def build(self, source: Source) -> None:
        import qdrant_edge as qdrant

        shard = qdrant.EdgeShard.create(str(self.folder), self._config())
        shard.update(qdrant.UpdateOperation.create_field_index("terms", qdrant.PayloadSchemaType.Keyword))
        bm25 = self._bm25()
        for first, papers, vectors in source.batches(BATCH):
            points = [
                qdrant.Point(first + row, {"dense": vector, "text": bm25.embed_document(_text(paper))}, paper)
                for row, (paper, vector) in enumerate(zip(papers, vectors.tolist(), strict=True))
            ]
            shard.update(qdrant.UpdateOperation.upsert_points(points))
        shard.optimize()
        shard.flush()
        shard.close()

    def _config(self) -> Any:
        import qdrant_edge as qdrant

        quantisation = qdrant.ScalarQuantizationConfig(qdrant.ScalarType.Int8, quantile=0.99)
        return qdrant.EdgeConfig(
            vectors={"dense": qdrant.EdgeVectorParams(DIMENSIONS, qdrant.Distance.Cosine)},
            hnsw_config=qdrant.HnswIndexConfig(GRAPH_LINKS, BUILD_EF, FULL_SCAN_BELOW_KB),
            sparse_vectors={"text": qdrant.EdgeSparseVectorParams(modifier=qdrant.Modifier.Idf)},
            quantization_config=quantisation if self.quantised else None,
        )

    @staticmethod
    def _bm25() -> Any:
        import qdrant_edge as qdrant

        return qdrant.Bm25(qdrant.Bm25Config(avg_len=115.0))  # terms in an abstract, stop words left out

    def open(self) -> None:
        import qdrant_edge as qdrant

        self._library = qdrant
        self._shard = qdrant.EdgeShard.load(str(self.folder))
        self._encode = self._bm25()
        quantisation = qdrant.QuantizationSearchParams(
            rescore=self.rescored, oversampling=OVERSAMPLING if self.rescored else None
        )
        self._params = qdrant.SearchParams(SEARCH_EF, quantization=quantisation if self.quantised else None)

    def dense(self, question: Question, limit: int, within: Sequence[str] = ()) -> list[int]:
        condition = None
        if within:
            match = self._library.MatchAny(list(within))
            condition = self._library.Filter(must=[self._library.FieldCondition("terms", match=match)])
        return self._ids(self._nearest(question.vector), limit, filter=condition, params=self._params)

    def keyword(self, text: str, limit: int) -> list[int]:
        return self._ids(self._words(text), limit)

    def hybrid(self, question: Question, limit: int) -> list[dict[str, Any]]:
        prefetch = self._library.Prefetch
        request = self._library.QueryRequest(
            limit=limit,
            prefetches=[
                prefetch(FUSION_DEPTH, query=self._nearest(question.vector), params=self._params),
                prefetch(FUSION_DEPTH, query=self._words(question.text)),
            ],
            query=self._library.Fusion.Rrf(k=RRF_K),
            with_payload=True,
        )
        return [{**point.payload, "score": point.score} for point in self._shard.query(request)]

    def _nearest(self, vector: Any) -> Any:
        return self._library.Query.Nearest(vector.tolist(), using="dense")

    def _words(self, text: str) -> Any:
        return self._library.Query.Nearest(self._encode.embed_query(text), using="text")

    def _ids(self, query: Any, limit: int, **options: Any) -> list[int]:
        request = self._library.QueryRequest(limit=limit, query=query, with_payload=False, **options)
        return [point.id for point in self._shard.query(request)]


class QdrantInt8(QdrantFloat):
    """Vectors quantised to int8 beside the f32 ones, and searched in that form alone."""

    quantised = True


class QdrantInt8Rescored(QdrantInt8):
    """The same files; of twice as many as asked for the f32 vectors choose the best."""

    rescored = True


def _text(paper: dict[str, Any]) -> str:
    return f"{paper['title']}. {paper['abstract']}"
