"""What every message looks like, as JSON Schemas (draft 2020-12); `scripts/docs` writes them into docs/schemas/.

Requests are described by the very types that read them. Answers are plain documents, so the types here describe them
and a test holds these against the answers of a running agent. Nothing that runs imports this module.
"""

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from agent.config import Config
from agent.domain import Mode
from agent.errors import ErrorCode
from agent.protocol.requests import (
    DATE_PATTERN,
    EXPECTED,
    MAX_CHANGES,
    MAX_QUERIES,
    Identifier,
    Query,
    WireEmbedding,
    WireQuestion,
    WireRequest,
    WireUpdate,
)
from agent.protocol.targets import State
from agent.settings import Settings

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Count = Annotated[int, Meta(ge=0)]
Milliseconds = Annotated[float, Meta(ge=0, description="Milliseconds.")]
GivenDate = Annotated[str, Meta(extra_json_schema={"pattern": f"^$|{DATE_PATTERN}"}, description="YYYY-MM-DD, YYYY-MM")]
NonBlank = Annotated[str, Meta(extra_json_schema={"pattern": r"\S"})]
CorpusVersion = Annotated[
    str,
    Meta(description="Of the corpus that was searched: the version of its pack or `local`, `+`, its change number."),
]


class PaperRecord(Struct, frozen=True, kw_only=True):
    """A paper as in a corpus import: with our own fields, or with those of arXiv's full snapshot."""

    title: NonBlank
    arxiv_id: NonBlank | None = None
    abstract: str | None = None
    authors: list[str] | str | None = None
    categories: list[str] | str | None = None
    published: GivenDate | None = None
    updated: GivenDate | None = None
    version: Annotated[int, Meta(ge=0, lt=10_000, description="arXiv's; 0 where unknown.")] | None = None
    vector: (
        Annotated[list[float], Meta(min_length=1, description="As many as the model's dimensions; not all 0.")] | None
    ) = None
    id: Annotated[NonBlank, Meta(description="The snapshot's arxiv_id.")] | None = None
    authors_parsed: (
        Annotated[list[Annotated[list[str], Meta(min_length=1)]], Meta(description="[family, given, suffix] each.")]
        | None
    ) = None
    versions: Annotated[Any, Meta(description="The snapshot's list; the first one's date is the publication's.")] = None
    update_date: GivenDate | None = None


class Question(WireQuestion, frozen=True, kw_only=True):
    """One question of several; what it leaves out is as the request says."""

    query: Query


Questions = Annotated[list[Query | Question], Meta(min_length=1, max_length=MAX_QUERIES)]
Records = Annotated[list[PaperRecord], Meta(max_length=MAX_CHANGES)]


class SearchRequest(WireRequest, frozen=True, kw_only=True):
    """One question (`query`) or several (`queries`)."""

    queries: Questions | UnsetType = UNSET  # type: ignore[assignment]  # says more than what the agent reads with


class EmbeddingRequest(WireEmbedding, frozen=True, kw_only=True):
    """Texts whose vectors are wanted."""


class CorpusUpdate(WireUpdate, frozen=True, kw_only=True):
    """Papers to add (or to bring up to date) and arXiv ids to remove; one bad record, and nothing is changed."""

    add: Records = msgspec.field(default_factory=list)  # type: ignore[assignment]  # as above


class _Answer(Struct, frozen=True, kw_only=True):
    timestamp: Annotated[float, Meta(description="Seconds since 1970.")]
    request_id: Identifier | None
    client_id: Identifier | None


class Hit(Struct, frozen=True, kw_only=True):
    """A paper that was found; only the `fields` that the request named, where it named any."""

    arxiv_id: str | UnsetType = UNSET
    title: str | UnsetType = UNSET
    abstract: str | UnsetType = UNSET
    authors: list[str] | UnsetType = UNSET
    categories: list[str] | UnsetType = UNSET
    published: GivenDate | UnsetType = UNSET
    score: Annotated[float, Meta(ge=0, le=1, description="Falls from hit to hit.")] | UnsetType = UNSET


class BatchMetadata(Struct, frozen=True, kw_only=True):
    processed_by: Annotated[str, Meta(description="The agent's thing name.")]
    processing_time_ms: Annotated[Milliseconds, Meta(description="From the start in a worker to the encoded answer.")]
    corpus_version: CorpusVersion
    model: Annotated[str, Meta(description="What embedded the question.")] | None
    truncated: Annotated[bool, Meta(description="Abstracts were shortened, or results dropped, to fit the limit.")]


class SearchMetadata(BatchMetadata, frozen=True, kw_only=True):
    mode: Annotated[Mode, Meta(description="What was used: a device without a model answers hybrid by keyword.")]
    timings_ms: Annotated[dict[str, Milliseconds], Meta(description="Stages of the search; `queue` is the waiting.")]


class SearchResult(_Answer, frozen=True, kw_only=True):
    """The answer to one question."""

    query: str
    results: list[Hit]
    count: Annotated[Count, Meta(description="Of the results in this message.")]
    metadata: SearchMetadata


class BatchResult(_Answer, frozen=True, kw_only=True):
    """The answer to several questions: a result for each, in their order."""

    batches: list[SearchResult]
    count: Annotated[Count, Meta(description="Of the results in all of them.")]
    metadata: BatchMetadata


class Failure(Struct, frozen=True, kw_only=True):
    code: ErrorCode
    message: Annotated[str, Meta(description="What is wrong, and what would be right.")]
    field: Annotated[str, Meta(description="Dotted path of the field that is wrong.")] | None


class ErrorMetadata(Struct, frozen=True, kw_only=True):
    processed_by: str


class Error(_Answer, frozen=True, kw_only=True):
    """The answer to any message that was not carried out."""

    query: str | None
    results: Annotated[list[Hit], Meta(max_length=0)]
    count: Literal[0]
    error: Failure
    metadata: ErrorMetadata


class EmbeddingResult(_Answer, frozen=True, kw_only=True):
    """A unit vector for each text, in their order."""

    embeddings: list[list[float]]
    model: str
    dimensions: Annotated[int, Meta(ge=1)]


class UpdateMetadata(ErrorMetadata, frozen=True, kw_only=True):
    corpus_version: CorpusVersion


class CorpusUpdateReport(_Answer, frozen=True, kw_only=True):
    """What a corpus update did, durably."""

    added: Count
    updated: Annotated[Count, Meta(description="Newer than what was there.")]
    unchanged: Annotated[Count, Meta(description="There already, just so.")]
    older: Annotated[Count, Meta(description="Older than what was there, hence left out.")]
    removed: Count
    metadata: UpdateMetadata


class StatusCorpus(Struct, frozen=True, kw_only=True):
    papers: Count
    embedded: Annotated[Count, Meta(description="Papers with a vector of the configured model.")]
    version: CorpusVersion


class StatusQueue(Struct, frozen=True, kw_only=True):
    pending: Count
    max_pending: Count


class StatusHeld(Struct, frozen=True, kw_only=True):
    messages: Count
    bytes: Count


class StatusOutbox(Struct, frozen=True, kw_only=True):
    """What waits on disk for a link that is down."""

    answers: StatusHeld
    reports: StatusHeld
    dropped: Annotated[
        dict[str, Count], Meta(description="In all its time, by kind and reason, such as answers_too_old.")
    ]
    set_aside: Annotated[Count, Meta(description="Messages that a broker refuses, kept to be looked at.")]


class StatusMemory(Struct, frozen=True, kw_only=True):
    rss: float
    uss: Annotated[float, Meta(description="Pages that no other process shares.")]
    anonymous: Annotated[float, Meta(description="Pages of no file.")]


class StatusLink(Struct, frozen=True, kw_only=True):
    name: Literal["local", "cloud"]
    broker: Annotated[str, Meta(description="HOST:PORT")]
    connected: bool
    pending: Annotated[Count, Meta(description="Messages of this broker that are not answered yet.")]


class StatusDetails(Struct, frozen=True, kw_only=True):
    """All of it while online or degraded; `offline` says service and version, the last will only the service."""

    service: str
    version: str | UnsetType = UNSET
    capabilities: list[Literal["keyword_search", "semantic_search", "hybrid_search"]] | UnsetType = UNSET
    uptime_s: Annotated[float, Meta(ge=0)] | UnsetType = UNSET
    corpus: StatusCorpus | UnsetType = UNSET
    model: str | UnsetType | None = UNSET
    queue: StatusQueue | UnsetType = UNSET
    links: Annotated[list[StatusLink], Meta(description="One for each broker.")] | UnsetType = UNSET
    outbox: StatusOutbox | UnsetType = UNSET
    counters: Annotated[dict[str, Count], Meta(description="Messages since the start.")] | UnsetType = UNSET
    memory_mb: Annotated[StatusMemory, Meta(description="MiB.")] | UnsetType | None = UNSET
    disk_free_mb: float | UnsetType | None = UNSET
    temperature_c: float | UnsetType | None = UNSET
    problems: Annotated[list[str], Meta(description="Why the status is degraded, in words.")] | UnsetType = UNSET


class Status(Struct, frozen=True, kw_only=True):
    """How the agent is: after each connect, at every heartbeat, and at the end."""

    timestamp: Annotated[float, Meta(description="Seconds since 1970.")]
    status: Literal["online", "degraded", "offline"]
    details: StatusDetails
    client_id: str


# -- the Device Shadow ------------------------------------------------------------------------------------------------

Path = Annotated[str, Meta(description="Dotted path below `desired`.")]


class WishedCorpus(Struct, frozen=True, kw_only=True):
    channel: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    categories: list[str] | UnsetType = UNSET


class WishedModel(Struct, frozen=True, kw_only=True):
    name: str


class WishedTargets(Struct, frozen=True, kw_only=True):
    corpus: WishedCorpus | UnsetType = UNSET
    model: WishedModel | UnsetType = UNSET


class ShadowDesired(Struct, frozen=True, kw_only=True):
    """What is wished for. A key that is left out is as config.yaml has it."""

    settings: Annotated[Settings, Meta(description="In effect at once, all of them or none.")] | UnsetType = UNSET
    targets: Annotated[WishedTargets, Meta(description="What takes time.")] | UnsetType = UNSET


class ShadowError(Struct, frozen=True, kw_only=True):
    path: Path
    reason: Annotated[str, Meta(description="What would be right.")]
    value: Annotated[Any, Meta(description="What was wished for; a long one, an object or an array as a text.")] = None


class ReportedConfig(Struct, frozen=True, kw_only=True):
    document_version: Annotated[
        int, Meta(ge=0, description="The version of the shadow in which these settings were first wished for; 0: none.")
    ]
    status: Annotated[Literal["applied", "rejected"], Meta(description="Rejected: the settings before are in effect.")]
    errors: Annotated[list[ShadowError], Meta(min_length=1, max_length=11)] | UnsetType = UNSET
    ignored: Annotated[list[Path], Meta(min_length=1, max_length=11)] | UnsetType = UNSET


class ReportedCorpus(Struct, frozen=True, kw_only=True):
    version: Annotated[str, Meta(description="What is searched now.")]
    state: State
    progress: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    error: str | UnsetType = UNSET


class ReportedModel(Struct, frozen=True, kw_only=True):
    name: Annotated[str, Meta(description="What embeds questions now; `none` on a device without a model.")]
    state: State
    progress: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    error: str | UnsetType = UNSET


class ReportedTargets(Struct, frozen=True, kw_only=True):
    """Only those that are wished for."""

    corpus: ReportedCorpus | UnsetType = UNSET
    model: ReportedModel | UnsetType = UNSET


class ReportedAgent(Struct, frozen=True, kw_only=True):
    version: str


class ShadowReported(Struct, frozen=True, kw_only=True):
    """What the agent says. Where the wishes leave hardly any room, only `config`."""

    config: ReportedConfig
    settings: Annotated[Settings, Meta(description="What is in effect.")] | UnsetType = UNSET
    targets: ReportedTargets | UnsetType = UNSET
    agent: ReportedAgent | UnsetType = UNSET


class ShadowState(Struct, frozen=True, kw_only=True):
    desired: ShadowDesired | UnsetType = UNSET
    reported: ShadowReported | UnsetType = UNSET


class Shadow(Struct, frozen=True, kw_only=True):
    """The Device Shadow named `config`."""

    state: ShadowState


def _given(*names: str, **what: Any) -> list[dict[str, Any]]:
    """For oneOf and anyOf: that each of these fields is there, and is what is said."""
    return [{"required": [name], "properties": {name: what}} for name in names]


_KINDS: Final[dict[str, Any]] = {
    "search-request": Annotated[
        SearchRequest,
        Meta(extra_json_schema={"oneOf": [*_given("query", type="string"), *_given("queries", type="array")]}),
    ],
    "search-result": SearchResult,
    "batch-result": BatchResult,
    "error": Error,
    "embedding-request": EmbeddingRequest,
    "embedding-result": EmbeddingResult,
    "corpus-update": Annotated[
        CorpusUpdate, Meta(extra_json_schema={"anyOf": _given("add", "remove", type="array", minItems=1)})
    ],
    "corpus-update-report": CorpusUpdateReport,
    "status": Status,
    "config": Config,
    "shadow": Shadow,
}
_REQUESTS: Final = (SearchRequest, Question, EmbeddingRequest, CorpusUpdate)


def schemas() -> dict[str, dict[str, Any]]:
    """The schema of each kind of message, of config.yaml and of the shadow, by the name of its file."""
    return {name: _schema(name, kind) for name, kind in _KINDS.items()}


def _schema(name: str, kind: Any) -> dict[str, Any]:
    text = re.sub(r"\bWire(?=[A-Z])", "", msgspec.json.encode(msgspec.json.schema(kind)).decode())
    document: dict[str, Any] = msgspec.json.decode(text)
    definitions = document["$defs"]
    for prefix, kinds in (("", [kind.__name__ for kind in _REQUESTS]), ("filters.", ["Filters"])):
        for definition in filter(None, map(definitions.get, kinds)):
            for field, schema in definition["properties"].items():
                schema.setdefault("description", EXPECTED[prefix + field])
    if "PaperRecord" in definitions:
        definitions["PaperRecord"]["anyOf"] = _given("arxiv_id", "id", type="string")
    return {"$schema": DIALECT, "title": name.replace("-", " ").capitalize(), **document}
