"""The messages that clients send: bytes to domain objects. docs/interfaces.md describes each field."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, NoReturn, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from agent.domain import (
    MAX_ID_CHARS,
    MAX_OFFSET,
    MAX_QUERY_CHARS,
    MAX_RESULTS,
    MODES,
    CorpusUpdate,
    EmbeddingRequest,
    Filters,
    Mode,
    SearchBatch,
    SearchRequest,
    is_date,
)
from agent.errors import RequestError, validation_place
from agent.protocol.limits import MAX_MESSAGE_BYTES

MAX_FILTER_VALUES: Final = 64
MAX_QUERIES: Final = 16
MAX_TEXTS: Final = 32
MAX_CHANGES: Final = 1_000
DATE_PATTERN: Final = "^[0-9]{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?$"

ResultField = Literal["arxiv_id", "title", "abstract", "authors", "categories", "published", "score"]
RESULT_FIELDS: Final[tuple[ResultField, ...]] = (
    "arxiv_id",
    "title",
    "abstract",
    "authors",
    "categories",
    "published",
    "score",
)

# What only the schema says, for whoever checks a message before sending it; the agent says it in better words below.
Query = Annotated[str, Meta(max_length=MAX_QUERY_CHARS, extra_json_schema={"pattern": r"\S"})]
Date = Annotated[str, Meta(extra_json_schema={"pattern": DATE_PATTERN})]
Text = Annotated[str, Meta(min_length=1)]
Identifier = Annotated[str, Meta(max_length=MAX_ID_CHARS)]
OneOrMany = Text | Annotated[list[Text], Meta(max_length=MAX_FILTER_VALUES)] | None

EXPECTED: Final[dict[str, str]] = {
    "query": f"a string of 1 to {MAX_QUERY_CHARS} characters",
    "queries": f"a list of 1 to {MAX_QUERIES} questions, each a string or an object with a query",
    "filters": "an object",
    "filters.category": f"a category such as cs.LG or cs.*, or a list of at most {MAX_FILTER_VALUES}",
    "filters.author": f"a name, or a list of at most {MAX_FILTER_VALUES}",
    "filters.max_results": f"a whole number from 1 to {MAX_RESULTS}",
    "filters.mode": "one of " + ", ".join(MODES),
    "filters.published_from": "a date, YYYY-MM-DD",
    "filters.published_to": "a date, YYYY-MM-DD",
    "offset": f"a whole number from 0 to {MAX_OFFSET}",
    "fields": "a list of " + ", ".join(RESULT_FIELDS),
    "accept_encoding": 'a list of encodings; "gzip" is known',
    "request_id": f"a string of at most {MAX_ID_CHARS} characters",
    "client_id": f"a string of at most {MAX_ID_CHARS} characters",
    "reply_to": "a topic",
    "timestamp": "seconds since 1970",
    "text": f"a string of 1 to {MAX_QUERY_CHARS} characters, or a list of at most {MAX_TEXTS}",
    "kind": "query or document",
    "add": f"a list of at most {MAX_CHANGES} papers",
    "remove": f"a list of at most {MAX_CHANGES} arXiv ids",
}


class WireFilters(Struct, frozen=True):
    category: OneOrMany = None
    max_results: Annotated[int, Meta(ge=1, le=MAX_RESULTS)] | None = None
    mode: Mode | None = None
    published_from: Date | None = None
    published_to: Date | None = None
    author: OneOrMany = None


class WireEnvelope(Struct, frozen=True, kw_only=True):
    client_id: Identifier | None = None
    request_id: Identifier | None = None
    timestamp: float | None = None
    reply_to: str | None = None
    accept_encoding: list[str] | None = None

    @property
    def gzip(self) -> bool:
        return "gzip" in (self.accept_encoding or ())


class WireQuestion(Struct, frozen=True, kw_only=True):
    query: Query | None = None
    filters: WireFilters | None = None
    offset: Annotated[int, Meta(ge=0, le=MAX_OFFSET)] | None = None
    fields: Annotated[list[ResultField], Meta(min_length=1)] | None = None


class WireRequest(WireEnvelope, frozen=True, kw_only=True):
    query: Query | None = None
    filters: WireFilters | None = None
    offset: Annotated[int, Meta(ge=0, le=MAX_OFFSET)] | None = None
    fields: Annotated[list[ResultField], Meta(min_length=1)] | None = None
    queries: Annotated[list[Query | WireQuestion], Meta(min_length=1, max_length=MAX_QUERIES)] | UnsetType = UNSET


class WireEmbedding(WireEnvelope, frozen=True, kw_only=True):
    text: (
        Annotated[str, Meta(min_length=1, max_length=MAX_QUERY_CHARS)]
        | Annotated[
            list[Annotated[str, Meta(min_length=1, max_length=MAX_QUERY_CHARS)]],
            Meta(min_length=1, max_length=MAX_TEXTS),
        ]
    )
    kind: Literal["query", "document"] = "query"


class WireUpdate(WireEnvelope, frozen=True, kw_only=True):
    add: Annotated[list[dict[str, Any]], Meta(max_length=MAX_CHANGES)] = []
    remove: Annotated[list[Identifier], Meta(max_length=MAX_CHANGES)] = []


class Envelope(NamedTuple):
    """Who asked, as far as it can be read from a message that may be bad in every other way."""

    request_id: str | None = None
    client_id: str | None = None
    reply_to: str | None = None
    query: str | None = None


W = TypeVar("W", bound=WireEnvelope)
_search_decoder: Final = msgspec.json.Decoder(WireRequest)
_embedding_decoder: Final = msgspec.json.Decoder(WireEmbedding)
_update_decoder: Final = msgspec.json.Decoder(WireUpdate)


def _decoded(payload: bytes, decoder: msgspec.json.Decoder[W]) -> W:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise RequestError(
            "payload_too_large", f"the message has {len(payload)} bytes; at most {MAX_MESSAGE_BYTES} are taken"
        )
    try:
        wire = decoder.decode(payload)
        payload.decode()  # the decoder passes over what it does not know, valid UTF-8 or not
    except msgspec.ValidationError as error:
        _refuse(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError("invalid_json", f"the message is not valid JSON in UTF-8: {error}") from error
    except RecursionError as error:
        raise RequestError("invalid_json", "the message is nested too deep") from error
    return wire


def parse_search_request(payload: bytes) -> SearchRequest | SearchBatch:
    """Read one question or several. Raises RequestError that names the field and what would be right."""
    return _search(_decoded(payload, _search_decoder))


def request_from(query: str, filters: Mapping[str, Any] | None = None, **rest: Any) -> SearchRequest:
    """Build a request from Python values, under the rules of the wire. Raises RequestError."""
    document = {"query": query, "filters": {} if filters is None else filters, **rest}
    try:
        if isinstance(filters, Mapping):
            document["filters"] = dict(filters)
        wire = msgspec.convert(document, WireRequest)
    except msgspec.ValidationError as error:
        _refuse(str(error))
    except ValueError as error:  # text that no UTF-8 can hold
        raise _invalid("", str(error)) from error
    return _question(wire, wire, "")


def _search(wire: WireRequest) -> SearchRequest | SearchBatch:
    if wire.queries is UNSET:
        return _question(wire, wire, "")
    if wire.query is not None:
        raise _invalid("queries", "stands beside query; one of the two")
    questions = []
    for number, given in enumerate(wire.queries):
        asked = given if isinstance(given, WireQuestion) else WireQuestion(query=given)
        merged = WireQuestion(
            query=asked.query,
            filters=_merged(wire.filters, asked.filters),
            offset=wire.offset if asked.offset is None else asked.offset,
            fields=asked.fields or wire.fields,
        )
        questions.append(_question(merged, wire, f"queries[{number}]."))
    return SearchBatch(
        requests=tuple(questions),
        request_id=wire.request_id,
        client_id=wire.client_id,
        reply_to=wire.reply_to,
        gzip=wire.gzip,
    )


def _merged(shared: WireFilters | None, own: WireFilters | None) -> WireFilters | None:
    """A question's own filters, and of the shared ones those that it does not name."""
    if shared is None or own is None:
        return own or shared
    named = {name: value for name, value in msgspec.structs.asdict(own).items() if value is not None}
    return msgspec.structs.replace(shared, **named)


def _question(asked: WireQuestion | WireRequest, envelope: WireEnvelope, place: str) -> SearchRequest:
    if asked.query is None or not asked.query.strip():
        raise _invalid(f"{place}query", "missing or empty")
    filters = asked.filters or WireFilters()
    for name in ("published_from", "published_to"):
        date = getattr(filters, name)
        if date is not None and not is_date(date):
            raise _invalid(f"{place}filters.{name}", f"{date[:40]!r} is no date")
    request = SearchRequest(
        query=asked.query,
        filters=Filters(_many(filters.category), _many(filters.author), filters.published_from, filters.published_to),
        mode=filters.mode,
        max_results=filters.max_results,
        offset=asked.offset or 0,
        fields=tuple(asked.fields or ()),
        request_id=envelope.request_id,
        client_id=envelope.client_id,
        reply_to=envelope.reply_to,
        gzip=envelope.gzip,
    )
    for name, texts in (
        ("query", [request.query]),
        ("filters.category", request.filters.categories),
        ("filters.author", request.filters.authors),
    ):
        if not all(map(_encodable, texts)):
            raise _invalid(place + name, "holds a lone surrogate")
    return request


def parse_embedding_request(payload: bytes) -> EmbeddingRequest:
    """Read a request for vectors. Raises RequestError that names the field and what would be right."""
    wire = _decoded(payload, _embedding_decoder)
    return EmbeddingRequest(
        texts=(wire.text,) if isinstance(wire.text, str) else tuple(wire.text),
        kind=wire.kind,
        request_id=wire.request_id,
        client_id=wire.client_id,
        reply_to=wire.reply_to,
        gzip=wire.gzip,
    )


def parse_corpus_update(payload: bytes) -> CorpusUpdate:
    """Read an update: records of papers as they came, and ids. Raises RequestError that names the field."""
    wire = _decoded(payload, _update_decoder)
    if not wire.add and not wire.remove:
        raise _invalid("add", "neither add nor remove says what to change")
    return CorpusUpdate(
        add=tuple(wire.add),
        remove=tuple(wire.remove),
        request_id=wire.request_id,
        client_id=wire.client_id,
        reply_to=wire.reply_to,
        gzip=wire.gzip,
    )


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _many(value: str | list[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _refuse(message: str) -> NoReturn:
    """Turn "Expected `str`, got `int` - at `$.query`" into an error that names the field."""
    path, reason = validation_place(message)
    missing = re.search(r"missing required field `(.*?)`", reason)
    name = f"{path}.{missing[1]}".lstrip(".") if missing else re.sub(r"\[\.\.\.\]$|(?<!queries)\[.*?\]", "", path)
    raise _invalid(name, reason.replace(" | null", ""))


def _invalid(name: str, reason: str) -> RequestError:
    right = EXPECTED.get(re.sub(r"^queries\[.*?\]\.?", "", name) or "queries")
    wanted = f"; it must be {right}" if right else ""
    return RequestError("invalid_request", f"{name or 'message'}: {reason}{wanted}", field=name or None)


def read_envelope(payload: bytes) -> Envelope:
    """What can be echoed of a message that was refused; whatever is missing or invalid is None."""
    try:
        document = json.loads(payload)  # takes lone surrogates, which msgspec does not
    except (ValueError, RecursionError):
        return Envelope()
    if not isinstance(document, dict):
        return Envelope()

    def text(name: str, longest: int) -> str | None:
        value = document.get(name)
        return value if isinstance(value, str) and len(value) <= longest and _encodable(value) else None

    return Envelope(
        text("request_id", MAX_ID_CHARS),
        text("client_id", MAX_ID_CHARS),
        text("reply_to", MAX_MESSAGE_BYTES),
        text("query", MAX_QUERY_CHARS),
    )
