"""The path of one question through the corpus: embed, rank, fetch the rows of the page asked for."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Final

import msgspec
import numpy as np

from agent.config import SearchConfig
from agent.domain import Hit, Mode, SearchRequest, SearchResult
from agent.errors import CorpusError, DamagedIndexError, NotReadyError
from agent.search.ahead import Ahead
from agent.search.candidates import Question, Ranking, first_matches, ranks
from agent.search.clock import StageClock
from agent.search.corpus_index import CorpusIndex
from agent.search.embedder import Embedder
from agent.search.text import arxiv_id_forms, arxiv_id_of

log = logging.getLogger(__name__)

SPARE_ROWS: Final = 2
"""Rows fetched beyond the page at once, for candidates that were updated or removed since they were indexed."""


class SearchEngine:
    """Searches one opened corpus. Safe to call from several threads."""

    def __init__(
        self, index: CorpusIndex, embedder: Embedder | None, config: SearchConfig, *, problem: str | None = None
    ) -> None:
        """`embedder` is that of the corpus. None on devices without it: hybrid questions are then answered by keyword.

        `problem` says in words why there is none.
        """
        self.index: Final = index
        self.embedder: Final = embedder
        self.problem: Final = problem
        self._config = config
        # Keywords are searched while the query is embedded; neither holds Python's lock for long.
        cores = os.cpu_count() or 1
        self._pool: Final = ThreadPoolExecutor(cores, thread_name_prefix="keywords") if cores > 1 else None

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()
        self.index.close()

    @property
    def config(self) -> SearchConfig:
        return self._config

    def configure(self, config: SearchConfig) -> None:
        """Search so from the next question on, from any thread; a question under way is answered as it began."""
        self._config = config

    @property
    def model(self) -> str | None:
        return self.embedder.manifest.name if self.embedder else None

    @property
    def corpus_version(self) -> str:
        try:
            last = self.index.papers.last_change()
        except CorpusError:
            last = self.index.keywords.reached  # as far as anybody can tell until it is healed
        return f"{self.index.version}+{last}"

    def search(self, request: SearchRequest) -> SearchResult:
        """Answer one question.

        A question that is an arXiv id (or its address) gets that paper first, then others like it; an id that is
        not in the corpus resembles no paper and gets none. While one index is damaged, and until it is made again,
        hybrid questions are answered by the other.

        Raises NotReadyError for a semantic question without a model or an index, and CorpusError when papers.db is
        damaged.
        """
        config = self._config  # once: the settings may change at any moment
        try:
            return self._search(request, config)
        except DamagedIndexError as error:
            log.error("%s; it is made again", error.message)  # noqa: TRY400  a library's traceback tells nothing
            self.index.report_damage(error.part)
            other: Mode = "semantic" if error.part == "keywords" else "keyword"
            needs_both = error.part == "keywords" and not (request.filters.empty and self.embedder)
            if self._mode(request, config) != "hybrid" or needs_both:
                raise NotReadyError(f"{error.message}; it is being made again") from error
        return self._search(msgspec.structs.replace(request, mode=other), config)

    def _search(self, request: SearchRequest, config: SearchConfig) -> SearchResult:
        clock = StageClock()
        mode = self._mode(request, config)
        last = request.offset + (request.max_results or config.max_results)
        named = self._named_paper(request)
        if named:
            ranked = self._ranks(request, named.paper.title, mode, last, config, clock)
            hits = self._hits(ranked, last, clock, first=named)
        elif arxiv_id_of(request.query):
            hits = []
        else:
            hits = self._hits(self._ranks(request, request.query, mode, last, config, clock), last, clock)
        return SearchResult(
            query=request.query,
            mode=mode,
            hits=tuple(hits[request.offset : last]),
            corpus_version=self.corpus_version,
            model=self.model,
            timings_ms=clock.timings_ms,
        )

    def _mode(self, request: SearchRequest, config: SearchConfig) -> Mode:
        mode: Mode = request.mode or config.default_mode
        if self.embedder is None and mode == "semantic":
            raise NotReadyError("semantic search needs a model, and none is installed")
        return mode if self.embedder else "keyword"

    def _ranks(
        self, request: SearchRequest, text: str, mode: Mode, last: int, config: SearchConfig, clock: StageClock
    ) -> Iterator[tuple[int, float]]:
        terms = self.index.keywords.terms(text) if mode != "semantic" else []
        tokens = self.embedder.query_tokens(text) if self.embedder and mode != "keyword" else None
        matches = None
        if mode == "hybrid" and self._pool:
            search = partial(first_matches, self.index, terms, request.filters, config.candidates)
            matches = Ahead(self._pool, search)
        vector = self.embedder.vector(tokens) if self.embedder and tokens else None
        clock.lap("embed")
        question = Question(mode, vector, terms, request.filters, matches)
        ranking = Ranking(config.candidates, config.semantic_weight, page=last + SPARE_ROWS)
        return ranks(self.index, question, ranking, clock)

    def _hits(
        self, ranked: Iterator[tuple[int, float]], last: int, clock: StageClock, *, first: Hit | None = None
    ) -> list[Hit]:
        """Hits in rank order, at least `last` of them where so many exist."""
        hits = [first] if first else []
        while len(hits) < last:
            part = list(islice(ranked, last - len(hits) + SPARE_ROWS))
            if not part:
                break
            rows = self.index.papers.get([key for key, _ in part])
            papers = [(rows[key], score) for key, score in part if key in rows]
            hits += [Hit(paper, score) for paper, score in papers if not first or paper != first.paper]
            clock.lap("rows")
        return hits

    def _named_paper(self, request: SearchRequest) -> Hit | None:
        """The paper whose arXiv id the query is, if it is in the corpus and satisfies the filters."""
        arxiv_id = arxiv_id_of(request.query)
        forms = arxiv_id_forms(arxiv_id) if arxiv_id else []
        found = next(filter(None, map(self.index.papers.find, forms)), None)
        if not found:
            return None
        key, paper = found
        if not request.filters.empty and not len(self.index.keywords.passing(request.filters, np.array([key]))):
            return None
        return Hit(paper, 1.0)
