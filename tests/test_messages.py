"""Requests and answers on the wire."""

import gzip
import json
import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain import (
    MAX_QUERY_CHARS,
    MODES,
    CorpusUpdate,
    EmbeddingRequest,
    Filters,
    Hit,
    Paper,
    SearchBatch,
    SearchRequest,
    SearchResult,
)
from agent.errors import RequestError
from agent.protocol.answers import AnswerFacts, encode_batch, encode_error, encode_search_result, search_result
from agent.protocol.limits import MAX_MESSAGE_BYTES
from agent.protocol.requests import (
    RESULT_FIELDS,
    Envelope,
    parse_corpus_update,
    parse_embedding_request,
    parse_search_request,
    read_envelope,
    request_from,
)

REQUEST = {
    "query": "neural networks deep learning",
    "filters": {"category": "cs.LG", "max_results": 20, "mode": "hybrid"},
    "client_id": "mobile-app-123",
    "request_id": "req-456",
    "timestamp": 1640995200.0,
}


def refusal(payload: bytes | dict) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_search_request(payload if isinstance(payload, bytes) else json.dumps(payload).encode())
    return caught.value


def test_the_documented_request_is_understood() -> None:
    expected = SearchRequest(
        query="neural networks deep learning",
        filters=Filters(categories=("cs.LG",)),
        mode="hybrid",
        max_results=20,
        request_id="req-456",
        client_id="mobile-app-123",
    )
    assert expected == parse_search_request(json.dumps(REQUEST).encode())


def test_only_the_query_is_required_and_unknown_fields_are_ignored() -> None:
    assert SearchRequest(query="x") == parse_search_request(b'{"query": "x", "from_the_future": {"a": [1]}}')


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"query": 5}, "query"),
        ({"query": None}, "query"),
        ({"query": "  \n"}, "query"),
        ({"query": "x" * (MAX_QUERY_CHARS + 1)}, "query"),
        ({"filters": "cs.LG"}, "filters"),
        ({"filters": {"category": 5}}, "filters.category"),
        ({"filters": {"category": ["cs.LG", 5]}}, "filters.category"),
        ({"filters": {"category": ""}}, "filters.category"),
        ({"filters": {"category": ["x"] * 65}}, "filters.category"),
        ({"filters": {"author": ["x", ""]}}, "filters.author"),
        ({"filters": {"max_results": 0}}, "filters.max_results"),
        ({"filters": {"max_results": 101}}, "filters.max_results"),
        ({"filters": {"max_results": 2**70}}, "filters.max_results"),
        ({"filters": {"max_results": 10.5}}, "filters.max_results"),
        ({"filters": {"max_results": True}}, "filters.max_results"),
        ({"filters": {"mode": "telepathy"}}, "filters.mode"),
        ({"filters": {"published_from": "yesterday"}}, "filters.published_from"),
        ({"filters": {"published_from": "2020-02-31"}}, "filters.published_from"),
        ({"filters": {"published_to": 2020}}, "filters.published_to"),
        ({"filters": {"author": {"name": "x"}}}, "filters.author"),
        ({"offset": -1}, "offset"),
        ({"offset": 1001}, "offset"),
        ({"request_id": 7}, "request_id"),
        ({"client_id": "x" * 257}, "client_id"),
        ({"reply_to": ["a"]}, "reply_to"),
        ({"timestamp": "now"}, "timestamp"),
        ({"fields": ["title", "colour"]}, "fields"),
        ({"fields": []}, "fields"),
        ({"accept_encoding": "gzip"}, "accept_encoding"),
        ({"query": None, "queries": []}, "queries"),
        ({"query": None, "queries": "x"}, "queries"),
        ({"query": None, "queries": ["x"] * 17}, "queries"),
        ({"query": None, "queries": ["x", " "]}, "queries[1].query"),
        ({"query": None, "queries": ["x", {"query": "y", "filters": {"mode": "z"}}]}, "queries[1].filters.mode"),
        ({"query": "x", "queries": ["y"]}, "queries"),
    ],
)
def test_a_bad_field_is_named_with_what_would_be_right(change: dict, field: str) -> None:
    error = refusal({"query": "x", **change})
    assert (error.code, error.field) == ("invalid_request", field)
    assert error.message.startswith(f"{field}: ")
    assert "must be" in error.message


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"null garbage",
        b'{"query": "a\xff"}',
        b'{"query": "x", "note": "\xc3\x28"}',
        b'{"query": "x", "timestamp": NaN}',
        b'{"query": "x", "timestamp": 1e999}',
        b'{"query": "x", "a": ' + b"[" * 60_000 + b"]" * 60_000 + b"}",
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_is_refused_as_such(payload: bytes) -> None:
    error = refusal(payload)
    assert error.code in ("invalid_json", "invalid_request")
    assert read_envelope(payload).request_id is None


@pytest.mark.parametrize("payload", [b"[]", b"5", b'"text"', b"null"])
def test_a_message_that_is_no_object_is_refused(payload: bytes) -> None:
    assert refusal(payload).code == "invalid_request"


def test_several_questions_share_what_they_do_not_say_themselves() -> None:
    document = {
        "queries": ["a", {"query": "b", "offset": 3, "filters": {"mode": "keyword"}}],
        "filters": {"category": "cs.LG"},
        "fields": ["title"],
        "request_id": "r",
        "client_id": "c",
        "accept_encoding": ["br", "gzip"],
    }
    shared = {"fields": ("title",), "request_id": "r", "client_id": "c", "gzip": True}
    first = SearchRequest(query="a", filters=Filters(("cs.LG",)), **shared)
    second = SearchRequest(query="b", offset=3, mode="keyword", filters=Filters(("cs.LG",)), **shared)
    expected = SearchBatch(requests=(first, second), request_id="r", client_id="c", gzip=True)
    assert expected == parse_search_request(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"text": "a"}, EmbeddingRequest(texts=("a",))),
        ({"text": ["a", "b"], "kind": "document"}, EmbeddingRequest(texts=("a", "b"), kind="document")),
    ],
)
def test_an_embedding_request_holds_a_text_or_several(document: dict, expected: EmbeddingRequest) -> None:
    assert expected == parse_embedding_request(json.dumps(document).encode())


@pytest.mark.parametrize("document", [{}, {"text": ""}, {"text": []}, {"text": ["a"] * 33}, {"text": [5]}, {"text": None}])  # fmt: skip
def test_an_embedding_request_without_a_sound_text_names_it(document: dict) -> None:
    with pytest.raises(RequestError) as caught:
        parse_embedding_request(json.dumps(document).encode())
    assert (caught.value.code, caught.value.field) == ("invalid_request", "text")


def test_a_corpus_update_holds_records_and_ids() -> None:
    document = {"add": [{"arxiv_id": "1"}], "remove": ["2"], "reply_to": "arxplorer/responses/x"}
    expected = CorpusUpdate(add=({"arxiv_id": "1"},), remove=("2",), reply_to="arxplorer/responses/x")
    assert expected == parse_corpus_update(json.dumps(document).encode())
    for bad, field in (({}, "add"), ({"add": [5]}, "add"), ({"remove": "x"}, "remove"), ({"remove": [None]}, "remove")):
        with pytest.raises(RequestError) as caught:
            parse_corpus_update(json.dumps(bad).encode())
        assert caught.value.field == field


def test_a_message_over_the_limit_is_refused_as_too_large() -> None:
    assert refusal(b'{"query": "' + b"x" * MAX_MESSAGE_BYTES + b'"}').code == "payload_too_large"


def test_a_text_that_no_utf8_can_hold_is_refused_and_the_rest_echoed() -> None:
    payload = json.dumps({"query": "\ud800", "request_id": "r"}).encode()
    assert refusal(payload).code == "invalid_json"
    assert read_envelope(payload) == Envelope(request_id="r")
    with pytest.raises(RequestError):
        request_from("\ud800")
    with pytest.raises(RequestError):
        request_from("x", {"author": "\udfff"})
    with pytest.raises(RequestError, match=r"^filters: "):
        request_from("x", [1])


def test_what_can_be_echoed_of_a_bad_request_is_echoed() -> None:
    bad = {"query": 5, "request_id": "r1", "client_id": ["no"], "reply_to": "arxplorer/responses/me"}
    assert Envelope("r1", None, "arxplorer/responses/me", None) == read_envelope(json.dumps(bad).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        "query",
        "filters",
        "client_id",
        "request_id",
        "timestamp",
        "offset",
        "reply_to",
        "queries",
        "fields",
        "accept_encoding",
    ]
)
FILTER_FIELDS = st.sampled_from(["category", "max_results", "mode", "published_from", "published_to", "author"])


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_a_request_or_a_clear_refusal(payload: bytes) -> None:
    try:
        request = parse_search_request(payload)
    except RequestError as error:
        assert error.message
    else:
        questions = request.requests if isinstance(request, SearchBatch) else (request,)
        assert all(question.query.strip() for question in questions)


@given(st.dictionaries(FIELDS, JSON) | st.fixed_dictionaries({"filters": st.dictionaries(FILTER_FIELDS, JSON)}))
def test_any_values_in_known_fields_give_a_request_or_name_the_field(document: dict) -> None:
    try:
        parse_search_request(json.dumps({"query": "x", **document}).encode())
    except RequestError as error:
        if error.code == "invalid_request":
            filters = document.get("filters")
            names = filters if isinstance(filters, dict) else ()
            known = {"query", "filters", *document} | {f"filters.{name}" for name in names}
            assert error.field in known or error.field.startswith("queries[")


@given(
    query=st.text(min_size=1, max_size=300).filter(str.strip),
    categories=st.lists(st.text(min_size=1, max_size=20), max_size=3),
    authors=st.lists(st.text(min_size=1, max_size=20), max_size=3),
    mode=st.none() | st.sampled_from(MODES),
    offset=st.integers(0, 1000),
    max_results=st.none() | st.integers(1, 100),
)
def test_a_request_survives_the_wire(query, categories, authors, mode, offset, max_results) -> None:
    filters = {"category": categories, "author": authors, "mode": mode, "max_results": max_results}
    document = {"query": query, "filters": filters, "offset": offset}
    expected = SearchRequest(
        query=query,
        filters=Filters(tuple(categories), tuple(authors)),
        mode=mode,
        max_results=max_results,
        offset=offset,
    )
    assert expected == parse_search_request(msgspec.json.encode(document))
    assert expected == request_from(query, filters, offset=offset)


def message(abstracts: list[str]) -> dict:
    results = [{"arxiv_id": str(i), "abstract": text, "score": 1 - i / 100} for i, text in enumerate(abstracts)]
    return {"query": "q", "results": results, "count": len(results), "metadata": {"truncated": False}}


@given(st.lists(st.text(max_size=400), min_size=1, max_size=12), st.integers(600, 6_000))
def test_an_answer_fits_the_limit_and_keeps_what_it_can(abstracts: list[str], limit: int) -> None:
    whole = message(abstracts)
    encoded = encode_search_result(whole, limit)
    fitted = json.loads(encoded.payload)
    assert len(encoded.payload) <= limit
    assert fitted["count"] == len(fitted["results"])
    if not fitted["metadata"]["truncated"]:
        assert whole == fitted
    elif fitted["count"] < len(abstracts):  # results go only when no abstract is left
        assert all(hit["abstract"] == "" for hit in fitted["results"])
    for hit, abstract in zip(fitted["results"], abstracts, strict=False):
        assert abstract.startswith(hit["abstract"].removesuffix("…").rstrip()) or hit["abstract"] == abstract


def test_a_hundred_long_abstracts_are_shortened_and_none_dropped() -> None:
    fitted = json.loads(encode_search_result(message(["long words " * 400] * 100)).payload)
    assert (fitted["count"], fitted["metadata"]["truncated"]) == (100, True)
    assert len(fitted["results"][0]["abstract"]) > 1_000


def test_a_compressed_answer_holds_more_before_it_is_shortened() -> None:
    whole = message(["long words " * 400] * 100)
    encoded = encode_search_result(whole, accepts_gzip=True)
    assert encoded.gzipped
    assert json.loads(gzip.decompress(encoded.payload)) == whole
    short = encode_search_result(message(["few"]), accepts_gzip=True)
    assert not short.gzipped  # not worth it
    random_words = [random.Random(n).randbytes(3_000).hex() for n in range(100)]
    fitted = encode_search_result(message(random_words), accepts_gzip=True)
    assert len(fitted.payload) <= MAX_MESSAGE_BYTES
    assert json.loads(gzip.decompress(fitted.payload))["metadata"]["truncated"]


@given(st.lists(st.lists(st.text(max_size=300), max_size=6), min_size=1, max_size=4), st.integers(1_500, 6_000))
def test_a_batch_fits_the_limit_with_every_question_in_its_place(questions: list[list[str]], limit: int) -> None:
    facts = {"processed_by": "me", "processing_time_ms": 1.0, "corpus_version": "local+1", "model": "m"}
    messages = [{**message(texts), "query": str(n), "timestamp": 1.0} for n, texts in enumerate(questions)]
    messages = [{**one, "metadata": {**one["metadata"], **facts}} for one in messages]
    encoded = encode_batch(messages, Envelope("r", "c"), limit, accepts_gzip=False)
    document = json.loads(encoded.payload)
    assert len(encoded.payload) <= limit
    assert [part["query"] for part in document["batches"]] == [str(n) for n in range(len(questions))]
    assert document["count"] == sum(len(part["results"]) for part in document["batches"])
    if not document["metadata"]["truncated"]:
        assert document["batches"] == messages


def test_only_the_fields_asked_for_are_sent() -> None:
    paper = Paper("1", "T", "A", ("N",), ("cs.LG",), "2020-01-01")
    result = SearchResult(
        query="q", mode="hybrid", hits=(Hit(paper, 0.5),), corpus_version="v", model="m", timings_ms={}
    )
    facts = AnswerFacts("me", 1.0, 2.0)
    asked = SearchRequest(query="q", fields=("title", "score"))
    assert search_result(asked, result, facts)["results"] == [{"title": "T", "score": 0.5}]
    assert set(search_result(SearchRequest(query="q"), result, facts)["results"][0]) == set(RESULT_FIELDS)


def test_an_error_has_the_envelope_of_an_answer() -> None:
    error = RequestError("invalid_request", "offset: too large", field="offset")
    document = json.loads(encode_error(error, Envelope("r", "c", None, "q"), processed_by="me", timestamp=1.0))
    assert document["error"] == {"code": "invalid_request", "message": "offset: too large", "field": "offset"}
    assert (document["request_id"], document["client_id"], document["results"], document["count"]) == ("r", "c", [], 0)
    assert math.isclose(document["timestamp"], 1.0)
