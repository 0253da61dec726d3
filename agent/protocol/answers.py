"""The messages that the agent sends: domain objects to bytes. docs/interfaces.md describes each field."""

import gzip
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from agent.domain import SearchRequest, SearchResult
from agent.errors import RequestError
from agent.protocol.limits import MAX_MESSAGE_BYTES
from agent.protocol.requests import RESULT_FIELDS, Envelope

ELLIPSIS: Final = "…"
WORTH_GZIP_BYTES: Final = 1_024
GZIP_LEVEL: Final = 1
"""Most of what level 9 saves, in a third of its time."""

Clock = Callable[[], float]
"""Milliseconds since a worker took the request."""


class AnswerFacts(NamedTuple):
    """What an answer says beside the hits: who computed it, when (Unix time), and how long that took."""

    processed_by: str
    timestamp: float
    processing_ms: float
    queue_ms: float = 0.0


class Encoded(NamedTuple):
    """A message as it goes out."""

    payload: bytes
    gzipped: bool = False


def search_result(request: SearchRequest, result: SearchResult, facts: AnswerFacts) -> dict[str, Any]:
    """The result message as a plain document."""
    fields = request.fields or RESULT_FIELDS
    hits = []
    for hit in result.hits:
        paper = hit.paper
        whole = {
            "arxiv_id": paper.arxiv_id,
            "title": paper.title,
            "abstract": paper.abstract,
            "authors": paper.authors,
            "categories": paper.categories,
            "published": paper.published,
            "score": round(hit.score, 6),
        }
        hits.append(whole if fields is RESULT_FIELDS else {name: whole[name] for name in fields})
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


def encode_search_result(
    message: dict[str, Any], limit: int = MAX_MESSAGE_BYTES, *, accepts_gzip: bool = False, clock: Clock | None = None
) -> Encoded:
    """Encode a result within `limit` bytes.

    Over the limit, after compression where the client takes that, abstracts are shortened first, then results dropped
    from the end. `clock` sets the processing time, the encoding of the results included.
    """
    return _fitted([message], lambda parts: parts[0], limit, accepts_gzip, clock)


def encode_batch(
    messages: Sequence[dict[str, Any]],
    envelope: Envelope,
    limit: int,
    *,
    accepts_gzip: bool,
    clock: Clock | None = None,
) -> Encoded:
    """Encode several results as one message, within `limit` bytes as `encode_search_result` does it."""

    def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        first = parts[0]["metadata"]
        return {
            "timestamp": parts[-1]["timestamp"],
            "request_id": envelope.request_id,
            "client_id": envelope.client_id,
            "batches": parts,
            "count": sum(part["count"] for part in parts),
            "metadata": {
                "processed_by": first["processed_by"],
                "processing_time_ms": round(sum(part["metadata"]["processing_time_ms"] for part in parts), 3),
                "corpus_version": first["corpus_version"],
                "model": first["model"],
                "truncated": any(part["metadata"]["truncated"] for part in parts),
            },
        }

    return _fitted(messages, joined, limit, accepts_gzip, clock)


def _fitted(
    messages: Sequence[dict[str, Any]],
    joined: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
    limit: int,
    accepts_gzip: bool,
    clock: Clock | None,
) -> Encoded:
    raw = [{**message, "results": msgspec.Raw(msgspec.json.encode(message["results"]))} for message in messages]
    document = joined(raw)
    if clock:
        document["metadata"] = {**document["metadata"], "processing_time_ms": round(clock(), 3)}
    whole = compressed(msgspec.json.encode(document), accepts_gzip=accepts_gzip)
    if len(whole.payload) <= limit:
        return whole
    time_ms = document["metadata"].get("processing_time_ms")

    def shortened(count: int, longest: int) -> bytes:
        parts = []
        for message in messages:
            kept = [_with_abstract(hit, longest) for hit in message["results"][:count]]
            metadata = {**message["metadata"], "truncated": True}
            parts.append({**message, "results": kept, "count": len(kept), "metadata": metadata})
        document = joined(parts)
        if time_ms is not None:
            document["metadata"] = {**document["metadata"], "processing_time_ms": time_ms}
        return msgspec.json.encode(document)

    most = max(len(message["results"]) for message in messages)
    longest = max((len(hit.get("abstract", "")) for message in messages for hit in message["results"]), default=0)
    if len(shortened(most, 0)) <= limit:
        fitted = shortened(most, _largest(longest, lambda chars: len(shortened(most, chars)) <= limit))
    else:
        fitted = shortened(_largest(most, lambda count: len(shortened(count, 0)) <= limit), 0)
    return compressed(fitted, accepts_gzip=accepts_gzip)


def compressed(payload: bytes, *, accepts_gzip: bool) -> Encoded:
    """Compress where the client takes it and it is worth it."""
    if accepts_gzip and len(payload) >= WORTH_GZIP_BYTES:
        smaller = gzip.compress(payload, GZIP_LEVEL, mtime=0)
        if len(smaller) < len(payload):
            return Encoded(smaller, gzipped=True)
    return Encoded(payload)


def _with_abstract(hit: dict[str, Any], longest: int) -> dict[str, Any]:
    abstract = hit.get("abstract")
    if abstract is None or len(abstract) <= longest:
        return hit
    return {**hit, "abstract": abstract[:longest].rstrip() + ELLIPSIS if longest else ""}


def _largest(high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 0 to `high` that fits; fitting falls as the number rises."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def encode_embeddings(
    vectors: Sequence[Sequence[float]], envelope: Envelope, *, model: str, dimensions: int, timestamp: float
) -> bytes:
    """The answer to an embedding request: a unit vector for each text, to six decimal places."""
    return msgspec.json.encode(
        {
            "timestamp": timestamp,
            "request_id": envelope.request_id,
            "client_id": envelope.client_id,
            "embeddings": [[round(float(value), 6) for value in vector] for vector in vectors],
            "model": model,
            "dimensions": dimensions,
        }
    )


def encode_update_report(
    counts: Mapping[str, int], envelope: Envelope, *, corpus_version: str, processed_by: str, timestamp: float
) -> bytes:
    """The answer to a corpus update that was carried out: how many papers were added, updated, removed .."""
    return msgspec.json.encode(
        {
            "timestamp": timestamp,
            "request_id": envelope.request_id,
            "client_id": envelope.client_id,
            **counts,
            "metadata": {"processed_by": processed_by, "corpus_version": corpus_version},
        }
    )


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
