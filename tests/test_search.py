"""Questions against a corpus: ranking, filters and pages."""

import functools
import json
import operator
from pathlib import Path

import pytest
from conftest import import_sample

from agent.config import Config, SearchConfig
from agent.domain import MODES, Filters, Paper, SearchRequest
from agent.errors import NotReadyError, RequestError
from agent.search import SearchAPI
from agent.search.candidates import Question, Ranking, ranks
from agent.search.clock import StageClock
from agent.search.embedder import Embedder
from agent.search.engine import SearchEngine
from agent.store.papers import PaperStore


def ids(message: dict) -> list[str]:
    return [hit["arxiv_id"] for hit in message["results"]]


# -- what a person asks -----------------------------------------------------------------------------------------------

QUESTIONS = [
    ("how tightly can equal spheres be packed in eight-dimensional space", "1603.04246"),
    ("teach a small student model to imitate a big ensemble of teachers", "1503.02531"),
    ("track an animal's paws in video without attaching markers", "1804.03142"),
    ("why do queues of cars appear on a motorway for no visible reason", "adap-org/9502004"),
    ("laser beam pushing gram-sized sails to the nearest stars", "1604.01356"),
    ("guess someone's spouse from their Facebook friendship network", "1310.6753"),
    ("heavy Majorana neutrino decays explain why there is more matter than antimatter", "hep-ph/9411366"),
    ("correct galaxy shapes for telescope smearing to map dark matter", "astro-ph/9411005"),
]


@pytest.mark.parametrize(("question", "expected"), QUESTIONS)
@pytest.mark.parametrize("mode", ["hybrid", "semantic"])
def test_a_question_in_plain_words_finds_its_paper_first(sample_api, question, expected, mode) -> None:
    assert ids(sample_api.search_sync(question, {"mode": mode}))[0] == expected


@pytest.mark.parametrize("mode", MODES)
def test_scores_fall_and_lie_between_zero_and_one(sample_api: SearchAPI, mode: str) -> None:
    message = sample_api.search_sync("quantum theory of gravity", {"mode": mode, "max_results": 100})
    scores = [hit["score"] for hit in message["results"]]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= min(scores) <= max(scores) <= 1
    assert message["count"] == len(scores) == len(set(ids(message)))
    assert message["metadata"]["mode"] == mode
    assert {"queue", "rows"} <= set(message["metadata"]["timings_ms"])


def test_a_result_holds_the_paper_as_it_was_given(sample_api: SearchAPI) -> None:
    hit = sample_api.search_sync("1603.04246")["results"][0]
    paper = sample_api.engine.index.papers.find("1603.04246")[1]
    assert (hit["title"], hit["abstract"], hit["authors"]) == (paper.title, paper.abstract, paper.authors)
    assert (hit["categories"], hit["published"], hit["score"]) == (paper.categories, paper.published, 1.0)


@pytest.mark.parametrize("form", ["1603.04246", "arXiv:1603.04246v2", "https://arxiv.org/abs/1603.04246", "https://arxiv.org/pdf/1603.04246v1.pdf"])  # fmt: skip
@pytest.mark.parametrize("mode", MODES)
def test_an_arxiv_id_finds_that_paper_first_and_once_then_others_like_it(sample_api, form: str, mode: str) -> None:
    found = ids(sample_api.search_sync(form, {"mode": mode}))
    assert found[0] == "1603.04246"
    assert len(found) == len(set(found)) > 1


def test_an_arxiv_id_that_is_not_here_or_filtered_out_finds_nothing_else_instead(sample_api: SearchAPI) -> None:
    assert ids(sample_api.search_sync("9912.99999")) == []
    assert "1603.04246" not in ids(sample_api.search_sync("1603.04246", {"category": "econ"}))


@pytest.mark.parametrize(
    "query",
    [
        '+-&& || ! ( ) { } [ ] ^ " ~ * ? : \\ /',
        "title:x AND NOT y",
        "'; DROP TABLE papers; --",
        "\x00\x01\x7f",
        "a" * 10_000,
        "的 学习 ニューラル",
        "🤖",
        "ﷺ" * 500,
        "x " * 4_999,
        "%s %n {0} ${jndi:x}",
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_any_query_gets_a_sound_answer_and_the_next_one_is_right(sample_api, query: str, mode: str) -> None:
    message = sample_api.search_sync(query, {"mode": mode})
    assert len(message["results"]) <= 10
    assert ids(sample_api.search_sync(*QUESTIONS[0][:1]))[0] == QUESTIONS[0][1]


def test_python_values_are_held_to_the_rules_of_the_wire(sample_api: SearchAPI) -> None:
    with pytest.raises(RequestError, match=r"^filters.max_results: "):
        sample_api.search_sync("x", {"max_results": 1_000})


def test_pages_follow_each_other_without_gap_or_repetition(sample_api: SearchAPI) -> None:
    for mode in MODES:
        whole = ids(sample_api.search_sync("neural networks", {"mode": mode, "max_results": 60}))
        pages = [
            ids(sample_api.search_sync("neural networks", {"mode": mode, "max_results": 20}, offset=offset))
            for offset in (0, 20, 40)
        ]
        assert whole == functools.reduce(operator.iadd, pages, [])


# -- filters ----------------------------------------------------------------------------------------------------------

FILTERS = [
    {"category": "cs.LG"},
    {"category": "cs.*"},
    {"category": ["hep-th", "gr-qc"]},
    {"category": "math"},
    {"category": "no.such"},
    {"author": "Tao"},
    {"author": ["Hinton", "Y. Bengio"]},
    {"published_from": "2015-01-01"},
    {"published_to": "1999-12"},
    {"category": "cs", "published_from": "2014-01-01", "published_to": "2016-12-31"},
]


def satisfies(paper: Paper, filters: dict) -> bool:
    """The rules of the interface, spelled out without any index."""

    def many(value: str | list[str] | None) -> list[str]:
        return [value] if isinstance(value, str) else value or []

    categories = [c.removesuffix(".*") for c in many(filters.get("category"))]
    families = [a.split()[-1] for a in many(filters.get("author"))]
    day = paper.published if len(paper.published) == 10 else paper.published + "-01"
    until = filters.get("published_to", "9999-12-31")
    return (
        (not categories or any(c == o or c.startswith(o + ".") for c in paper.categories for o in categories))
        and (not families or any(name.split()[-1] in families for name in paper.authors))
        and filters.get("published_from", "") <= day <= (until if len(until) == 10 else until + "-01")
    )


@pytest.mark.parametrize("filters", FILTERS, ids=json.dumps)
@pytest.mark.parametrize("mode", ["hybrid", "semantic"])
def test_a_filter_lets_through_exactly_the_papers_that_satisfy_it(sample_api, filters: dict, mode: str) -> None:
    papers = sample_api.engine.index.papers.papers()
    expected = {paper.arxiv_id for _, paper in papers if satisfies(paper, filters)}
    found = sample_api.search_sync("a study of structure", {**filters, "mode": mode, "max_results": 100})
    assert expected == set(ids(found))


@pytest.mark.parametrize("filters", FILTERS, ids=json.dumps)
def test_a_keyword_search_keeps_to_the_filter_and_its_order(sample_api: SearchAPI, filters: dict) -> None:
    papers = sample_api.engine.index.papers
    everything = ids(sample_api.search_sync("quantum networks", {"mode": "keyword", "max_results": 100}))
    assert 10 < len(everything) < 100
    expected = [name for name in everything if satisfies(papers.find(name)[1], filters)]
    found = sample_api.search_sync("quantum networks", {**filters, "mode": "keyword", "max_results": 100})
    assert expected == ids(found)


@pytest.mark.parametrize("page", [1, 3, 12, 40])
def test_ranking_a_page_at_a_time_gives_the_order_of_ranking_everything_at_once(sample_api, page: int) -> None:
    engine = sample_api.engine
    for question, _ in QUESTIONS:
        vector, terms = engine.embedder.query(question), engine.index.keywords.terms(question)
        asked = Question("hybrid", vector, terms, Filters())

        def order(ranks_read: int, asked: Question = asked) -> list[tuple[int, float]]:
            return list(ranks(engine.index, asked, Ranking(20, 0.7, ranks_read), StageClock()))

        assert order(10_000) == order(page)


# -- without a corpus or a model --------------------------------------------------------------------------------------


def test_no_corpus_and_an_empty_one_are_told_apart_from_no_match(config: Config) -> None:
    with pytest.raises(NotReadyError, match="no corpus"):
        SearchAPI(config).open()
    with SearchAPI(config) as api:
        api.open(owner=True)
        with pytest.raises(NotReadyError, match="no papers"):
            api.search_sync("anything")


def test_without_a_model_hybrid_is_answered_by_keyword_and_semantic_is_refused(config: Config) -> None:
    with SearchAPI(config) as api:
        api.open(owner=True, model=False)
        import_sample(api)
        assert api.search_sync("sphere packing")["metadata"]["mode"] == "keyword"
        with pytest.raises(NotReadyError, match="model"):
            api.search_sync("sphere packing", {"mode": "semantic"})


async def test_questions_asked_at_once_get_the_answers_they_get_one_by_one(sample_api: SearchAPI) -> None:
    import asyncio

    answers = await asyncio.gather(*(sample_api.search(question) for question, _ in QUESTIONS * 4))
    assert [ids(answer)[0] for answer in answers] == [expected for _, expected in QUESTIONS * 4]


def test_opening_to_read_changes_no_file(sample_data_dir: Path) -> None:
    from agent.config import load_config

    def files() -> dict[str, bytes]:
        kept = {
            path for path in sample_data_dir.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal"))
        }
        return {str(path): path.read_bytes() for path in kept}

    before = files()
    with SearchAPI(load_config(environment={}, data_dir=sample_data_dir)) as api:
        api.open(model=False)
        assert api.search_sync("graph", {"mode": "keyword"})["count"] > 0
        assert not api.engine.index.writable
    assert before == files()
    PaperStore(sample_data_dir / "current" / "papers.db", read_only=True).close()


# -- settings that change meanwhile -----------------------------------------------------------------------------------


class _ConfiguresMeanwhile:
    """The embedder, and a change of settings in the middle of a question."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.then = lambda: None

    def __getattr__(self, name: str):
        return getattr(self._embedder, name)

    def query_tokens(self, text: str):
        self.then()
        return self._embedder.query_tokens(text)


def test_new_settings_hold_from_the_next_question_on_and_one_under_way_ends_as_it_began(sample_api) -> None:
    before, after = SearchConfig(max_results=3), SearchConfig(max_results=5, default_mode="keyword", semantic_weight=0)
    embedder = _ConfiguresMeanwhile(sample_api.engine.embedder)
    engine = SearchEngine(sample_api.engine.index, embedder, before)
    question = SearchRequest(query="gravitational waves from merging black holes")
    undisturbed = engine.search(question)
    assert (undisturbed.mode, len(undisturbed.hits)) == ("hybrid", 3)
    embedder.then = lambda: engine.configure(after)
    disturbed = engine.search(question)
    assert engine.config == after
    assert (disturbed.mode, disturbed.hits) == (undisturbed.mode, undisturbed.hits)
    found = engine.search(question)
    assert (found.mode, len(found.hits)) == ("keyword", 5)
