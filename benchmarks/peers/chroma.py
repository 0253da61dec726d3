"""Chroma: dense only; its full-text filter does not rank, so there is no keyword search and no hybrid one."""

from collections.abc import Sequence
from typing import Any, ClassVar

from benchmarks.peers.engine import BUILD_EF, GRAPH_LINKS, SEARCH_EF, Engine, Question, Source

BATCH = 5_000


class Chroma(Engine):
    keywords: ClassVar[bool] = False

    def _client(self) -> Any:
        import chromadb
        from chromadb.config import Settings

        return chromadb.PersistentClient(str(self.folder), Settings(anonymized_telemetry=False))

    def build(self, source: Source) -> None:
        graph = {
            "space": "cosine",
            "max_neighbors": GRAPH_LINKS,
            "ef_construction": BUILD_EF,
            "ef_search": SEARCH_EF,
        }
        collection = self._client().create_collection("papers", embedding_function=None, configuration={"hnsw": graph})
        for first, papers, vectors in source.batches(BATCH):
            collection.add(
                ids=[str(first + row) for row in range(len(papers))],
                embeddings=vectors,
                documents=[paper["abstract"] for paper in papers],
                metadatas=[_metadata(paper) for paper in papers],
            )

    def open(self) -> None:
        self._collection = self._client().get_collection("papers", embedding_function=None)

    def dense(self, question: Question, limit: int, within: Sequence[str] = ()) -> list[int]:
        each = [{"terms": {"$contains": term}} for term in within]
        where: Any = {"$or": each} if len(each) > 1 else each[0] if each else None
        found = self._collection.query(query_embeddings=[question.vector], n_results=limit, where=where, include=[])
        return [int(name) for name in found["ids"][0]]

    def hybrid(self, question: Question, limit: int) -> list[dict[str, Any]]:
        found = self._collection.query(
            query_embeddings=[question.vector],
            n_results=limit,
            include=["metadatas", "documents", "distances"],
        )
        columns = (found["metadatas"][0], found["documents"][0], found["distances"][0])
        return [
            {**paper, "abstract": abstract, "score": 1 - distance}
            for paper, abstract, distance in zip(*columns, strict=True)
        ]


def _metadata(paper: dict[str, Any]) -> dict[str, Any]:
    """Chroma refuses empty lists."""
    fields = ("arxiv_id", "title", "published", "authors", "categories", "terms")
    return {name: paper[name] for name in fields if paper[name] != []}
