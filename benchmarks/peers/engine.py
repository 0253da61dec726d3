"""What a measured engine does. Modules of engines import their library inside `build` and `open` only."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from benchmarks.bare import BareModel

GRAPH_LINKS, BUILD_EF, SEARCH_EF = 16, 200, 200
"""Of every graph that lets them be chosen: with their defaults the peers find 0.90 to 0.95 of the true ten nearest."""
FUSION_DEPTH: Final = 100
"""So many of each list are fused, as in the agent."""
RRF_K: Final = 60


class Question(NamedTuple):
    text: str
    vector: Any


class Source(NamedTuple):
    """Papers and their int8 vectors, row by row."""

    file: Path
    vectors: Path

    def papers(self) -> Iterator[dict[str, Any]]:
        """Each with `terms`: the categories it belongs to, archives included."""
        from agent.search.text import category_terms
        from benchmarks.data import read_papers

        for paper in read_papers(self.file):
            categories = paper.get("categories", [])
            terms = sorted({term for category in categories for term in category_terms(category)})
            yield {"abstract": "", "authors": [], "categories": [], "published": "", **paper, "terms": terms}

    def batches(self, rows: int) -> Iterator[tuple[int, list[dict[str, Any]], Any]]:
        """First row, papers and f32 vectors of runs of `rows`."""
        import numpy as np

        matrix = np.load(self.vectors, mmap_mode="r")
        batch: list[dict[str, Any]] = []
        first = 0
        for paper in self.papers():
            batch.append(paper)
            if len(batch) == rows:
                yield first, batch, np.asarray(matrix[first : first + rows], np.float32)
                first, batch = first + rows, []
        if batch:
            yield first, batch, np.asarray(matrix[first : first + len(batch)], np.float32)


class Engine(ABC):
    """One engine over one folder. What it finds are its own ids; `rows_of` tells which papers they are."""

    keywords: ClassVar[bool] = True
    """Whether it ranks by keyword."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder: Final = folder
        self._model_folder: Final = model
        self._model: BareModel | None = None
        self.embedding_s = 0.0
        """How much of the last call was embedding of the question: nothing where its vector was given."""

    @property
    def model(self) -> BareModel:
        if self._model is None:
            self._model = BareModel(self._model_folder)
        return self._model

    @abstractmethod
    def build(self, source: Source) -> None:
        """Make the index in the folder, which is empty."""

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def dense(self, question: Question, limit: int, within: Sequence[str] = ()) -> Sequence[Any]:
        """Ids of the nearest; `within`: papers of any of these categories."""

    def keyword(self, text: str, limit: int) -> Sequence[Any]:
        """Ids of the best by keyword."""
        raise NotImplementedError

    @abstractmethod
    def hybrid(self, question: Question, limit: int) -> list[dict[str, Any]]:
        """The best by both with their texts: arxiv_id, title, abstract, authors, categories, published, score."""

    def ask(self, text: str, limit: int) -> list[dict[str, Any]]:
        """As `hybrid`, the embedding of the question included."""
        import time

        started = time.perf_counter()
        vector = self.model.embed(text)
        embedding_s = time.perf_counter() - started
        results = self.hybrid(Question(text, vector), limit)
        self.embedding_s = embedding_s
        return results

    def identities(self, found: Sequence[Any]) -> list[Any]:
        """Row numbers or arXiv ids of what was found."""
        return list(found)


def reciprocal_ranks(*lists: Sequence[int]) -> list[tuple[int, float]]:
    """Ids and scores by reciprocal rank fusion, for engines that have none of their own."""
    scores: dict[int, float] = {}
    for ranking in lists:
        for rank, found in enumerate(ranking):
            scores[found] = scores.get(found, 0.0) + 1 / (RRF_K + rank + 1)
    return sorted(scores.items(), key=lambda pair: -pair[1])
