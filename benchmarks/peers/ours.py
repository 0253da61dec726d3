"""The agent's own search, through its public face."""

import os
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.engine import FUSION_DEPTH, Engine, Question, Source


class Ours(Engine):
    def _api(self) -> Any:
        from agent.config import load_config
        from agent.search import SearchAPI

        return SearchAPI(load_config(environment={}, data_dir=self.folder))

    def build(self, source: Source) -> None:
        from agent.corpus.importer import import_papers, read_vectors

        with self._api() as api:
            api.open(owner=True, model=False)
            vectors = read_vectors(source.vectors, api.dimensions)
            import_papers(str(source.file), api.engine.index, api.config.model.name, vectors=vectors)

    def open(self) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._search = self._api().open()
        self._index = self._search.engine.index

    def dense(self, question: Question, limit: int, within: Sequence[str] = ()) -> Sequence[Any]:
        if within:
            answer = self._answer(question.text, {"mode": "semantic", "max_results": limit, "category": list(within)})
            return [paper["arxiv_id"] for paper in answer["results"]]
        keys = self._index.vectors.nearest(question.vector, FUSION_DEPTH)
        scores = self._index.vectors.scores(question.vector, keys)
        found: list[int] = keys[(-scores).argsort()[:limit]].tolist()
        return found

    def keyword(self, text: str, limit: int) -> Sequence[Any]:
        keywords = self._index.keywords
        found: list[int] = keywords.search(keywords.terms(text), limit).keys.tolist()
        return found

    def hybrid(self, question: Question, limit: int) -> list[dict[str, Any]]:
        return self.ask(question.text, limit)

    def ask(self, text: str, limit: int) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self._answer(text, {"max_results": limit})["results"]
        return results

    def _answer(self, text: str, filters: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        answer: dict[str, Any] = self._search.search_sync(text, filters)
        stages = answer["metadata"]["timings_ms"]
        # Keywords are searched meanwhile, so only the time in which nothing else happened may be taken off.
        self.embedding_s = min(stages["embed"] / 1e3, time.perf_counter() - started)
        return answer

    def identities(self, found: Sequence[Any]) -> list[Any]:
        keys = [key for key in found if isinstance(key, int)]
        papers = self._index.papers.get(keys)
        return [papers[key].arxiv_id if isinstance(key, int) else key for key in found]
