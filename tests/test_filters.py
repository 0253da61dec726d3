"""Filters and pages, against brute force over random corpora: right sets, right order, complete pages."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.config import SearchConfig
from agent.domain import Filters, Paper, SearchRequest
from agent.search import candidates, segments, vectors
from agent.search.corpus_index import CorpusIndex
from agent.search.engine import SearchEngine
from agent.search.similarity import cosines, to_int8

MODEL, DIMENSIONS = "test-model", 24
CATEGORIES = ["cs.LG", "cs.CL", "cs", "math.AG", "math-ph", "hep-th", "q-bio.NC"]
WEIGHTS = [0.3, 0.2, 0.02, 0.2, 0.1, 0.17, 0.01]
FAMILIES = ["Tao", "Müller", "van der Berg", "Li", "O'Neil"]


class Corpus:
    def __init__(self, index: CorpusIndex, papers: list[Paper], matrix: np.ndarray) -> None:
        self.index, self.papers, self.matrix = index, papers, matrix

    def __repr__(self) -> str:
        return f"corpus of {len(self.papers)}"

    def engine(self, query: np.ndarray) -> SearchEngine:
        """A search engine whose model turns every text into `query`."""
        manifest = SimpleNamespace(name=MODEL)
        embedder = SimpleNamespace(manifest=manifest, query_tokens=lambda _: [1], vector=lambda _: query)
        return SearchEngine(self.index, embedder, SearchConfig())

    def expected(self, query: np.ndarray, filters: Filters) -> list[tuple[str, float]]:
        """Every paper that satisfies the filters, nearest first, by the rules of the interface alone."""
        scores = cosines(query, self.matrix)
        kept = [n for n, paper in enumerate(self.papers) if satisfies(paper, filters)]
        kept.sort(key=lambda n: (-scores[n], n))
        return [(self.papers[n].arxiv_id, max(0.0, float(scores[n]))) for n in kept]


def satisfies(paper: Paper, filters: Filters) -> bool:
    wanted = [c.removesuffix(".*") for c in filters.categories]
    day = paper.published if len(paper.published) == 10 else f"{paper.published}-01"
    return (
        (not wanted or any(c == w or c.startswith(f"{w}.") for c in paper.categories for w in wanted))
        and (not filters.authors or any(name.split(" ", 1)[1] in filters.authors for name in paper.authors))
        and (filters.published_from or "") <= day <= (filters.published_to or "9999")
    )


def corpus_of(folder: Path, count: int, seed: int) -> Corpus:
    rng = np.random.default_rng(seed)
    # Clusters by category, as real papers have them, so that a filter and a question may be about different things.
    centres = rng.normal(size=(len(CATEGORIES), DIMENSIONS))
    papers, rows = [], []
    for number in range(count):
        kinds = rng.choice(len(CATEGORIES), size=rng.integers(1, 3), p=WEIGHTS)
        month = f"20{rng.integers(10, 24)}-{rng.integers(1, 13):02d}"
        papers.append(
            Paper(
                f"{2000 + number // 50000}.{number % 50000:05d}",
                f"common word{number % 7} rare{number}",
                authors=tuple(f"A. {FAMILIES[n]}" for n in rng.integers(0, len(FAMILIES), 2)),
                categories=tuple(dict.fromkeys(CATEGORIES[k] for k in kinds)),
                published=month if rng.random() < 0.05 else f"{month}-{rng.integers(1, 29):02d}",
            )
        )
        rows.append(centres[kinds[0]] + rng.normal(size=DIMENSIONS))
    index = CorpusIndex(folder, MODEL, DIMENSIONS, owner=True)
    matrix = to_int8(np.array(rows, np.float32))
    index.papers.put_vectors(MODEL, index.papers.put(papers).keys, matrix)
    index.catch_up()
    return Corpus(index, papers, matrix)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory):
    """Sizes on both sides of every threshold of the planner, which are lowered for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "TAIL_ROWS", 300)
        patch.setattr(segments, "SCANNED_ROWS", 400)
        made = [corpus_of(tmp_path_factory.mktemp("corpus"), count, n) for n, count in enumerate((30, 700, 6_000))]
        yield made
        for corpus in made:
            corpus.index.close()


def unit(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=DIMENSIONS).astype(np.float32)
    return vector / np.linalg.norm(vector)


DATES = st.none() | st.sampled_from(["2010-01", "2013-06-15", "2016-01-01", "2019-12-31", "2023-12", "2030-01-01"])
FILTERS = st.builds(
    Filters,
    categories=st.lists(st.sampled_from([*CATEGORIES, "cs.*", "math.*", "no.such"]), max_size=3).map(tuple),
    authors=st.lists(st.sampled_from(FAMILIES), max_size=2).map(tuple),
    published_from=DATES,
    published_to=DATES,
)


def as_first_day(filters: Filters) -> Filters:
    """`2023-12` as a bound means its first day."""

    def day(date: str | None) -> str | None:
        return date if date is None or len(date) == 10 else f"{date}-01"

    return Filters(filters.categories, filters.authors, day(filters.published_from), day(filters.published_to))


@given(which=st.integers(0, 2), seed=st.integers(0, 2**32 - 1), filters=FILTERS, size=st.integers(1, 100))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_exact_plan_gives_the_papers_that_brute_force_gives(corpora, which, seed, filters, size) -> None:
    corpus, query = corpora[which], unit(seed)
    expected = corpus.expected(query, as_first_day(filters))
    asked = SearchRequest(query="x", mode="semantic", filters=filters, max_results=size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "SCAN_ROWS", 10**9)
        result = corpus.engine(query).search(asked)
    assert len(result.hits) == min(size, len(expected))
    if not filters.empty:
        assert "scan" in result.timings_ms
        scores = [hit.score for hit in result.hits]
        np.testing.assert_allclose(scores, [score for _, score in expected[: len(scores)]], atol=1e-5)
        if which < 2:  # few enough that all are compared by the f32 query: ties and all
            assert [hit.paper.arxiv_id for hit in result.hits] == [name for name, _ in expected[: len(scores)]]
    else:
        assert {hit.paper.arxiv_id for hit in result.hits} <= {name for name, _ in expected}


def test_a_plan_by_the_graph_finds_nearly_all_of_the_nearest(corpora) -> None:
    corpus, found, wanted, plans = corpora[2], 0, 0, set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "SCAN_ROWS", 300)
        for seed in range(150):
            filters = [Filters(("cs.*",)), Filters(published_from="2014-01-01"), Filters(("math", "hep-th"))][seed % 3]
            expected = [name for name, _ in corpus.expected(unit(seed), filters)[:10]]
            result = corpus.engine(unit(seed)).search(SearchRequest(query="x", mode="semantic", filters=filters))
            assert len(result.hits) == 10
            found += len({hit.paper.arxiv_id for hit in result.hits} & set(expected))
            wanted += 10
            plans |= set(result.timings_ms)
    assert "over_fetch" in plans
    assert found / wanted >= 0.98


@given(
    which=st.integers(0, 2),
    seed=st.integers(0, 2**32 - 1),
    filters=FILTERS,
    mode=st.sampled_from(["hybrid", "keyword"]),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_mode_gives_as_many_hits_as_there_are_and_only_such_as_satisfy_the_filter(
    corpora, which, seed, filters, mode
) -> None:
    corpus = corpora[which]
    names = {name for name, _ in corpus.expected(unit(seed), as_first_day(filters))}  # each of them holds `common`
    asked = SearchRequest(query="common", mode=mode, filters=filters, max_results=50)
    result = corpus.engine(unit(seed)).search(asked)
    found = [hit.paper.arxiv_id for hit in result.hits]
    assert len(found) == len(set(found)) == min(50, len(names))
    assert set(found) <= names
    scores = [hit.score for hit in result.hits]
    assert scores == sorted(scores, reverse=True)
    assert found == [hit.paper.arxiv_id for hit in corpus.engine(unit(seed)).search(asked).hits]


@pytest.mark.parametrize("mode", ["hybrid", "semantic", "keyword"])
@pytest.mark.parametrize("filters", [Filters(), Filters(("cs.*", "math"))])
def test_pages_reach_a_thousand_without_gap_or_repetition(corpora, mode: str, filters: Filters) -> None:
    engine = corpora[2].engine(unit(5))

    def page(offset: int, size: int) -> list[str]:
        asked = SearchRequest(query="common", mode=mode, filters=filters, max_results=size, offset=offset)
        return [hit.paper.arxiv_id for hit in engine.search(asked).hits]

    by_hundred = [name for offset in range(0, 1001, 100) for name in page(offset, 100)]
    assert len(by_hundred) == len(set(by_hundred)) == 1100
    by_seven = [name for offset in range(0, 70, 7) for name in page(offset, 7)]
    assert by_seven == by_hundred[:70]


def test_what_a_filter_lets_through_is_not_remembered_beyond_a_change(corpora) -> None:
    corpus = corpora[1]
    filters, engine = Filters(("q-bio",)), corpus.engine(unit(1))
    asked = SearchRequest(query="x", mode="semantic", filters=filters, max_results=100)
    before = engine.search(asked).hits
    keys = corpus.index.papers.put([Paper("9901.00001", "new", categories=("q-bio.NC",))]).keys
    corpus.index.papers.put_vectors(MODEL, keys, to_int8(unit(1)[None]))
    corpus.index.catch_up()
    assert [hit.paper.arxiv_id for hit in engine.search(asked).hits] == [
        "9901.00001",
        *(h.paper.arxiv_id for h in before),
    ]
    corpus.index.papers.remove(["9901.00001"])
    corpus.index.catch_up()
    assert engine.search(asked).hits == before
