"""What the agent talks about: papers, questions and answers. Values only; nothing here does I/O."""

import datetime as dt
import re
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

Mode = Literal["hybrid", "semantic", "keyword"]
MODES: Final[tuple[Mode, ...]] = ("keyword", "semantic", "hybrid")

_DATE: Final = re.compile(r"(\d{4})-(\d{2})(?:-(\d{2}))?", re.ASCII)

MAX_RESULTS: Final = 100
MAX_OFFSET: Final = 1_000
MAX_QUERY_CHARS: Final = 10_000
MAX_ID_CHARS: Final = 256


class Paper(Struct, frozen=True):
    """One arXiv paper as it was given: text, names and categories are never rewritten.

    `published` and `updated` are `YYYY-MM-DD`, `YYYY-MM` or empty. `version` is arXiv's, 0 where unknown.
    """

    arxiv_id: str
    title: str
    abstract: str = ""
    authors: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    published: str = ""
    updated: str = ""
    version: int = 0

    @property
    def text(self) -> str:
        """What is embedded and searched by keyword."""
        return f"{self.title}. {self.abstract}"


class Filters(Struct, frozen=True):
    """What a hit must satisfy: any of the categories, any of the authors, and both dates (inclusive)."""

    categories: tuple[str, ...] = ()
    authors: tuple[str, ...] = ()
    published_from: str | None = None
    published_to: str | None = None

    @property
    def empty(self) -> bool:
        return not (self.categories or self.authors or self.published_from or self.published_to)


class SearchRequest(Struct, frozen=True, kw_only=True):
    """One question. `mode` and `max_results` are None where the client left them to the agent's settings."""

    query: str
    filters: Filters = Filters()
    mode: Mode | None = None
    max_results: int | None = None
    offset: int = 0
    fields: tuple[str, ...] = ()  # of each hit; empty: all
    request_id: str | None = None
    client_id: str | None = None
    reply_to: str | None = None
    gzip: bool = False  # whether the client takes a compressed answer


class SearchBatch(Struct, frozen=True, kw_only=True):
    """Several questions in one message."""

    requests: tuple[SearchRequest, ...]
    request_id: str | None = None
    client_id: str | None = None
    reply_to: str | None = None
    gzip: bool = False


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    """Texts whose vectors are wanted."""

    texts: tuple[str, ...]
    kind: Literal["query", "document"] = "query"
    request_id: str | None = None
    client_id: str | None = None
    reply_to: str | None = None
    gzip: bool = False


class CorpusUpdate(Struct, frozen=True, kw_only=True):
    """Papers to add, as records that are still to be read, and arXiv ids to remove."""

    add: tuple[dict[str, Any], ...] = ()
    remove: tuple[str, ...] = ()
    request_id: str | None = None
    client_id: str | None = None
    reply_to: str | None = None
    gzip: bool = False


class Hit(Struct, frozen=True):
    paper: Paper
    score: Annotated[float, Meta(ge=0, le=1)]


class SearchResult(Struct, frozen=True, kw_only=True):
    """The answer to one request; `timings_ms` holds the stages of the search in milliseconds."""

    query: str
    mode: Mode
    hits: tuple[Hit, ...]
    corpus_version: str
    model: str | None
    timings_ms: dict[str, float]


def is_date(text: str) -> bool:
    """Whether the text is a calendar date, `YYYY-MM-DD` or `YYYY-MM`."""
    match = _DATE.fullmatch(text)
    if not match:
        return False
    try:
        dt.date(int(match[1]), int(match[2]), int(match[3] or 1))
    except ValueError:
        return False
    return True
