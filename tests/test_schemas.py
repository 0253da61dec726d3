"""The JSON Schemas of docs/schemas/, held against what the agent takes, refuses and sends."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Client
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from agent.config import load_config
from agent.corpus.sample import SAMPLE_PAPERS
from agent.domain import MAX_QUERY_CHARS
from agent.errors import ConfigError, RequestError
from agent.protocol.requests import parse_corpus_update, parse_embedding_request, parse_search_request

FILES = sorted((ROOT / "docs" / "schemas").glob("*.json"))
PARSERS = {
    "search-request": parse_search_request,
    "embedding-request": parse_embedding_request,
    "corpus-update": parse_corpus_update,
}
QUESTION = {"query": "how tightly can equal spheres be packed", "request_id": "r-1", "client_id": "app-1"}
NEW_PAPER = {"arxiv_id": "2401.00001", "title": "Zebrafish", "authors": ["A. B."], "published": "2024-01"}
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)
FITTING = {
    "query": st.text(),
    "queries": st.lists(st.text() | st.fixed_dictionaries({"query": st.text()}), max_size=3),
    "fields": st.lists(st.sampled_from(["title", "score", "colour"]), max_size=2),
    "filters": st.dictionaries(st.sampled_from(["category", "author", "max_results", "mode", "published_from"]), ANY),
    "offset": st.integers(-1, 1001),
    "accept_encoding": st.just(["gzip"]),
    "text": st.text() | st.lists(st.text(), max_size=3),
    "kind": st.sampled_from(["query", "document", "other"]),
    "remove": st.lists(st.text(), max_size=3),
    "add": st.lists(st.fixed_dictionaries({"title": st.text(), "id": st.text()}), max_size=2),
}


def schema(name: str, *, closed: bool = False) -> Draft202012Validator:
    """A validator; with `closed` a field that the schema does not know is an error too."""
    document = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text("utf-8"))
    if closed:
        for definition in document["$defs"].values():
            if "properties" in definition:
                definition["additionalProperties"] = False
    return Draft202012Validator(document)


def refused(name: str, document: Any) -> bool:
    try:
        PARSERS[name](json.dumps(document).encode())
    except RequestError:
        return True
    return False


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_schema_is_one(file: Path) -> None:
    document = json.loads(file.read_text("utf-8"))
    assert document["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(document)
    assert "Wire" not in file.read_text("utf-8")


# -- requests ---------------------------------------------------------------------------------------------------------

GOOD = [
    ("search-request", QUESTION),
    ("search-request", {"query": "x", "filters": None, "offset": 1000, "from_the_future": 1}),
    ("search-request", {"query": "x", "filters": {"category": ["cs.*"], "author": "Noether", "published_from": "1999-12"}}),
    ("search-request", {"queries": ["x", {"query": "y", "filters": {"mode": "keyword"}}], "fields": ["title"]}),
    ("search-request", {"query": None, "queries": ["x"]}),
    ("embedding-request", {"text": "x"}),
    ("embedding-request", {"text": ["x", "y"], "kind": "document", "accept_encoding": ["gzip"]}),
    ("corpus-update", {"add": [NEW_PAPER], "remove": ["2401.00002"]}),
    ("corpus-update", {"add": [{"id": "hep-th/9901001", "title": "T", "authors": "A and B", "categories": "hep-th", "versions": []}]}),
    ("corpus-update", {"add": [], "remove": ["2401.00002"], "reply_to": "arxplorer/responses/x"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "document"), GOOD)
def test_what_is_right_is_right_to_schema_and_agent(name: str, document: dict) -> None:
    schema(name).validate(document)
    assert not refused(name, document)


BAD = [
    ("search-request", document)
    for document in (
        5, [], {}, {"query": 5}, {"query": None}, {"query": " \n"}, {"query": ""}, {"query": "x" * (MAX_QUERY_CHARS + 1)},
        {"query": "x", "queries": ["y"]}, {"queries": []}, {"queries": "x"}, {"queries": None}, {"queries": ["x"] * 17},
        {"queries": ["x", " "]}, {"queries": [{}]}, {"queries": [{"query": None}]}, {"queries": ["x", {"query": "y", "filters": {"mode": "z"}}]},
        {"query": "x", "offset": -1}, {"query": "x", "offset": 1001}, {"query": "x", "offset": 1.5},
        {"query": "x", "request_id": 7}, {"query": "x", "client_id": "x" * 257}, {"query": "x", "reply_to": ["a"]},
        {"query": "x", "timestamp": "now"}, {"query": "x", "fields": []}, {"query": "x", "fields": ["colour"]},
        {"query": "x", "accept_encoding": "gzip"}, {"query": "x", "filters": "cs.LG"},
    )
] + [
    ("search-request", {"query": "x", "filters": filters})
    for filters in (
        {"category": 5}, {"category": ""}, {"category": ["cs.LG", 5]}, {"category": ["x"] * 65}, {"author": ["x", ""]},
        {"author": {"name": "x"}}, {"max_results": 0}, {"max_results": 101}, {"max_results": 10.5}, {"max_results": True},
        {"mode": "telepathy"}, {"published_from": "yesterday"}, {"published_from": "2020-13"}, {"published_to": 2020},
    )
] + [
    ("embedding-request", document)
    for document in ({}, {"text": ""}, {"text": []}, {"text": ["a"] * 33}, {"text": [5]}, {"text": None}, {"text": "x", "kind": "other"})
] + [
    ("corpus-update", document)
    for document in ({}, {"add": []}, {"add": [5]}, {"remove": "x"}, {"remove": [None]}, {"remove": ["x" * 257]}, {"add": [NEW_PAPER] * 1001})
]  # fmt: skip


@pytest.mark.parametrize(("name", "document"), BAD, ids=lambda value: json.dumps(value)[:60])
def test_what_the_agent_refuses_the_schema_refuses_too(name: str, document: Any) -> None:
    assert refused(name, document)
    assert not schema(name).is_valid(document)


@pytest.mark.parametrize("document", [{"query": "x", "filters": {"published_from": "2020-02-31"}}, {"query": "\ud800"}])
def test_what_no_schema_can_say_is_said_by_the_agent_alone(document: dict) -> None:
    assert refused("search-request", document)
    assert schema("search-request").is_valid(document)


@pytest.mark.parametrize("name", PARSERS)
def test_a_schema_refuses_nothing_that_the_agent_takes(name: str) -> None:
    checked = schema(name)
    known = {field for definition in checked.schema["$defs"].values() for field in definition["properties"]}

    @given(st.fixed_dictionaries({}, optional={field: FITTING.get(field, ANY) | ANY for field in sorted(known)}))
    def holds(document: dict) -> None:
        # Of a paper the agent says later whether it is one; the schema says it at once.
        records = [{**NEW_PAPER} for _ in document["add"]] if isinstance(document.get("add"), list) else None
        document = document if records is None else {**document, "add": records}
        if not refused(name, document):
            checked.validate(document)

    holds()


def test_the_sample_papers_are_records_by_the_schema() -> None:
    for line in SAMPLE_PAPERS.read_text("utf-8").splitlines():
        schema("corpus-update", closed=True).validate({"add": [json.loads(line)]})


# -- answers of a running agent ---------------------------------------------------------------------------------------


def test_every_answer_of_the_agent_is_as_its_schema_says(agent, client: Client) -> None:
    """Each closed: a field that no schema knows would fail here."""
    asked: list[tuple[str, str, Any]] = [
        ("search-result", "search/requests", QUESTION),
        ("search-result", "search/requests/test-agent", {"query": "x", "filters": {"mode": "keyword"}}),
        ("search-result", "search/requests", {"query": "x", "fields": ["title", "score"], "filters": {"max_results": 2}}),
        ("search-result", "search/requests", {"query": "x", "filters": {"category": "none"}}),
        ("batch-result", "search/requests", {"queries": ["x", {"query": "y", "fields": ["title"]}], "request_id": "b"}),
        ("embedding-result", "embeddings", {"text": ["x", "y"], "request_id": "e"}),
        ("corpus-update-report", "corpus/updates", {"add": [NEW_PAPER], "remove": ["1603.04246"], "client_id": "c"}),
        ("error", "search/requests", {"query": "x", "filters": {"mode": "magic"}}),
        ("error", "search/requests", {"query": "", "request_id": "r", "client_id": "c"}),
        ("error", "search/requests", b"{"),
        ("error", "search/requests", b'{"query": "' + b"x" * 140_000 + b'"}'),
        ("error", "embeddings", {"text": []}),
        ("error", "corpus/updates", {"add": [{"arxiv_id": "1"}]}),
    ]  # fmt: skip
    for name, topic, request in asked:
        answer = client.ask(request, topic=f"arxplorer/{topic}")
        schema(name, closed=True).validate(answer)
        others = [
            file.stem for file in FILES if file.stem not in (name, *PARSERS) and schema(file.stem).is_valid(answer)
        ]
        assert others == [], (name, request)


def test_every_status_of_the_agent_is_as_its_schema_says(agent, client: Client) -> None:
    def details(status: str) -> dict:
        """Of the next one that says so; those that are on their way already are checked as well."""
        while True:
            document = json.loads(client.next().payload)
            schema("status", closed=True).validate(document)
            if document["status"] == status:
                return document["details"]

    client.subscribe("arxplorer/status/test-agent")
    assert "corpus" in details("online")
    agent.stop()
    assert set(details("offline")) == {"service", "version"}
    agent.start()
    details("online")
    agent.stop(signal.SIGKILL)
    assert set(details("offline")) == {"service"}


# -- config.yaml and the documents ------------------------------------------------------------------------------------


def test_the_shipped_configuration_is_as_its_schema_says() -> None:
    schema("config").validate(yaml.safe_load((ROOT / "config.yaml").read_text("utf-8")))
    schema("config").validate({})


@pytest.mark.parametrize(
    "document",
    [
        {"local_brokr": {}},
        {"local_broker": {"port": 0}},
        {"local_broker": {"prot": 1883}},
        {"search": {"default_mode": "magic"}},
        {"local_broker": {"topics": {"status": "a/#"}}},
        {"aws_iot": {"thing_name": "a b"}},
        {"limits": None},
    ],
)
def test_a_wrong_configuration_is_refused_by_schema_and_agent(document: dict, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document), "utf-8")
    with pytest.raises(ConfigError):
        load_config(tmp_path / "config.yaml", environment={})
    assert not schema("config").is_valid(document)


def sections(page: str) -> list[str]:
    return re.split(r"(?m)^## ", (ROOT / "docs" / page).read_text("utf-8"))[1:]


def test_each_example_in_the_documents_is_as_the_schema_beside_it_says() -> None:
    seen = set()
    for section in [*sections("interfaces.md"), *sections("shadow.md")]:
        names = re.findall(r"\]\(schemas/([a-z-]+)\.json\)", section)
        examples = re.findall(r"(?ms)^```json\n(.*?)^```", section)
        assert bool(names) or not examples, section[:40]
        for example in examples:
            document = json.loads(example)
            fitting = [name for name in names if schema(name, closed=True).is_valid(document)]
            assert fitting, (section[:40], example)
            seen.add(fitting[0])
            if fitting[0] in PARSERS:
                assert not refused(fitting[0], document)
    assert seen == {file.stem for file in FILES} - {"config"}


def test_the_mqtt_properties_of_answers_are_as_asyncapi_says(agent, client: Client) -> None:
    document = yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text("utf-8"))
    headers = document["components"]["messages"]["searchResult"]["headers"]
    known: Callable[[dict], bool] = Draft202012Validator({**headers, "additionalProperties": False}).is_valid
    for accepted, content_type in (([], "application/json"), (["gzip"], "application/gzip")):
        request = {**QUESTION, "accept_encoding": accepted}
        client.publish(
            "arxplorer/search/requests", json.dumps(request).encode(), response_topic=client.answers, correlation=b"7"
        )
        properties = client.next().properties
        assert properties.ContentType == content_type
        found = dict(getattr(properties, "UserProperty", []))
        assert known({"contentType": content_type, "correlationData": properties.CorrelationData.decode(), **found})
        assert bool(found) == bool(accepted)
