"""The JSON messages: bytes to domain objects and back. docs/interfaces.md describes each field."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple, NoReturn

import msgspec
from msgspec import Meta, Struct, field

from agent.domain import (
    MAX_ID_CHARS,
    MAX_OFFSET,
    MAX_QUERY_CHARS,
    MAX_RESULTS,
    MODES,
    Filters,
    Mode,
    SearchRequest,
    SearchResult,
    is_date,
)
from agent.errors import RequestError, validation_place

MAX_MESSAGE_BYTES: Final = 128 * 1024
"""What AWS IoT Core carries; the local link keeps to it, so that an answer never depends on the link."""
MAX_FILTER_VALUES: Final = 64
ELLIPSIS: Final = "…"

ShortText = Annotated[str, Meta(min_length=1, max_length=256)]
Identifier = Annotated[str, Meta(max_length=MAX_ID_CHARS)]
OneOrMany = ShortText | Annotated[list[ShortText], Meta(max_length=MAX_FILTER_VALUES)] | None

EXPECTED: Final[dict[str, str]] = {
    "query": f"a string of 1 to {MAX_QUERY_CHARS} characters",
    "filters": "an object",
    "filters.category": f"a category such as cs.LG or cs.*, or a list of at most {MAX_FILTER_VALUES}",
    "filters.author": f"a name, or a list of at most {MAX_FILTER_VALUES}",
    "filters.max_results": f"a whole number from 1 to {MAX_RESULTS}",
    "filters.mode": "one of " + ", ".join(MODES),
    "filters.published_from": "a date, YYYY-MM-DD",
    "filters.published_to": "a date, YYYY-MM-DD",
    "offset": f"a whole number from 0 to {MAX_OFFSET}",
    "request_id": f"a string of at most {MAX_ID_CHARS} characters",
    "client_id": f"a string of at most {MAX_ID_CHARS} characters",
    "reply_to": "a topic",
    "timestamp": "seconds since 1970",
}


class _WireFilters(Struct, frozen=True):
    category: OneOrMany = None
    max_results: Annotated[int, Meta(ge=1, le=MAX_RESULTS)] | None = None
    mode: Mode | None = None
    published_from: str | None = None
    published_to: str | None = None
    author: OneOrMany = None


class _WireRequest(Struct, frozen=True):
    query: Annotated[str, Meta(max_length=MAX_QUERY_CHARS)] | None = None
    filters: _WireFilters | None = None
    client_id: Identifier | None = None
    request_id: Identifier | None = None
    timestamp: float | None = None
    offset: Annotated[int, Meta(ge=0, le=MAX_OFFSET)] | None = None
    reply_to: str | None = None
    queries: Any = field(default=msgspec.UNSET)


class Envelope(NamedTuple):
    """Who asked, as far as it can be read from a message that may be bad in every other way."""

    request_id: str | None = None
    client_id: str | None = None
    reply_to: str | None = None
    query: str | None = None


_decoder: Final = msgspec.json.Decoder(_WireRequest)


def parse_search_request(payload: bytes) -> SearchRequest:
    """Read a request. Raises RequestError that names the field and what would be right."""
    try:
        wire = _decoder.decode(payload)
        payload.decode()  # the decoder passes over what it does not know, valid UTF-8 or not
    except msgspec.ValidationError as error:
        _refuse(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError("invalid_json", f"the message is not valid JSON in UTF-8: {error}") from error
    except RecursionError as error:
        raise RequestError("invalid_json", "the message is nested too deep") from error
    return _request(wire)


def request_from(query: str, filters: Mapping[str, Any] | None = None, **rest: Any) -> SearchRequest:
    """Build a request from Python values, under the rules of the wire. Raises RequestError."""
    try:
        wire = msgspec.convert({"query": query, "filters": dict(filters or {}), **rest}, _WireRequest)
    except msgspec.ValidationError as error:
        _refuse(str(error))
    return _request(wire)


def _request(wire: _WireRequest) -> SearchRequest:
    if wire.queries is not msgspec.UNSET:
        raise RequestError(
            "unsupported", "queries: several questions in one message are not supported yet", field="queries"
        )
    if wire.query is None or not wire.query.strip():
        raise _invalid("query", "missing or empty")
    filters = wire.filters or _WireFilters()
    for name in ("published_from", "published_to"):
        date = getattr(filters, name)
        if date is not None and not is_date(date):
            raise _invalid(f"filters.{name}", f"{date[:40]!r} is no date")
    return SearchRequest(
        query=wire.query,
        filters=Filters(_many(filters.category), _many(filters.author), filters.published_from, filters.published_to),
        mode=filters.mode,
        max_results=filters.max_results,
        offset=wire.offset or 0,
        request_id=wire.request_id,
        client_id=wire.client_id,
        reply_to=wire.reply_to,
    )


def _many(value: str | list[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _refuse(message: str) -> NoReturn:
    """Turn "Expected `str`, got `int` - at `$.query`" into an error that names the field."""
    path, reason = validation_place(message)
    raise _invalid(re.sub(r"\[.*?\]", "", path), reason)


def _invalid(name: str, reason: str) -> RequestError:
    right = EXPECTED.get(name)
    wanted = f"; it must be {right}" if right else ""
    return RequestError("invalid_request", f"{name or 'message'}: {reason}{wanted}", field=name or None)


def read_envelope(payload: bytes) -> Envelope:
    """What can be echoed of a message that was refused; whatever is missing or invalid is None."""
    try:
        document = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Envelope()
    if not isinstance(document, dict):
        return Envelope()

    def text(name: str, longest: int) -> str | None:
        value = document.get(name)
        return value if isinstance(value, str) and len(value) <= longest else None

    return Envelope(
        text("request_id", MAX_ID_CHARS),
        text("client_id", MAX_ID_CHARS),
        text("reply_to", MAX_MESSAGE_BYTES),
        text("query", MAX_QUERY_CHARS),
    )


# -- answers --------------------------------------------------------------------------------------------------------


class AnswerFacts(NamedTuple):
    """What an answer says beside the hits: who computed it, when (Unix time), and how long that took."""

    processed_by: str
    timestamp: float
    processing_ms: float
    queue_ms: float = 0.0


def search_result(request: SearchRequest, result: SearchResult, facts: AnswerFacts) -> dict[str, Any]:
    """The result message as a plain document."""
    hits = [
        {
            "arxiv_id": hit.paper.arxiv_id,
            "title": hit.paper.title,
            "abstract": hit.paper.abstract,
            "authors": hit.paper.authors,
            "categories": hit.paper.categories,
            "published": hit.paper.published,
            "score": round(hit.score, 6),
        }
        for hit in result.hits
    ]
    return {
        "timestamp": facts.timestamp,
        "request_id": request.request_id,
        "client_id": request.client_id,
        "query": request.query,
        "results": hits,
        "count": len(hits),
        "metadata": {
            "processed_by": facts.processed_by,
            "processing_time_ms": round(facts.processing_ms, 3),
            "mode": result.mode,
            "corpus_version": result.corpus_version,
            "model": result.model,
            "timings_ms": {"queue": round(facts.queue_ms, 3), **result.timings_ms},
            "truncated": False,
        },
    }


def encode_search_result(message: dict[str, Any], limit: int = MAX_MESSAGE_BYTES) -> bytes:
    """Encode within `limit` bytes: abstracts are shortened first, then results dropped from the end."""
    encoded = msgspec.json.encode(message)
    if len(encoded) <= limit:
        return encoded
    results: Sequence[dict[str, Any]] = message["results"]

    def fitted(count: int, longest: int) -> bytes:
        kept = [{**hit, "abstract": _shortened(hit["abstract"], longest)} for hit in results[:count]]
        metadata = {**message["metadata"], "truncated": True}
        return msgspec.json.encode({**message, "results": kept, "count": count, "metadata": metadata})

    everything = len(results)
    longest = max((len(hit["abstract"]) for hit in results), default=0)
    if len(fitted(everything, 0)) <= limit:
        return fitted(everything, _largest(longest, lambda chars: len(fitted(everything, chars)) <= limit))
    return fitted(_largest(everything, lambda count: len(fitted(count, 0)) <= limit), 0)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest].rstrip() + ELLIPSIS if longest else ""


def _largest(high: int, fits: Any) -> int:
    """The largest number from 0 to `high` that fits; fitting falls as the number rises."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def encode_error(error: RequestError, envelope: Envelope, *, processed_by: str, timestamp: float) -> bytes:
    """The error message: the envelope of an answer, without results."""
    return msgspec.json.encode(
        {
            "timestamp": timestamp,
            "request_id": envelope.request_id,
            "client_id": envelope.client_id,
            "query": envelope.query,
            "results": [],
            "count": 0,
            "error": {"code": error.code, "message": error.message, "field": error.field},
            "metadata": {"processed_by": processed_by},
        }
    )


def encode_status(status: str, details: Mapping[str, Any], *, client_id: str, timestamp: float) -> bytes:
    """The status message: `online`, `degraded` or `offline`."""
    return msgspec.json.encode({"timestamp": timestamp, "status": status, "details": details, "client_id": client_id})
