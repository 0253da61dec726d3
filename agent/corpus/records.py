"""One record of arXiv metadata -> Paper: our own fields, and those of the well-known full snapshot.

    ours        arxiv_id, title, abstract, authors [..], categories [..], published, updated, version
    snapshot    id, title, abstract, authors "A, B and C", authors_parsed [[family, given, suffix]],
                categories "cs.LG stat.ML", versions [{version, created}], update_date

Text survives as given, LaTeX and Unicode included. Only the snapshot's hard line breaks are unwrapped.
"""

import re
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from agent.domain import Paper, is_date
from agent.search.text import arxiv_id_forms

_ARXIV_SHAPED: Final = re.compile(
    r"(?:arxiv:)?(\d{4}\.\d{4,5}|[a-z][a-z-]*(?:\.[A-Z]{2})?/\d{7})(?:v(\d+))?", re.IGNORECASE | re.ASCII
)
_WRAP: Final = re.compile(r"\s*\n\s*")
MAX_ID_CHARS: Final = 128
MAX_VERSION_DIGITS: Final = 4


class RecordError(ValueError):
    """A record is malformed; the message names the field and what would be right."""


def parse_line(line: bytes) -> Paper:
    """Parse one JSON line. Raises RecordError, and nothing else: no line may stop an import."""
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"not valid JSON: {error}") from error
    try:
        return parse_record(record)
    except RecordError:
        raise
    except Exception as error:
        raise RecordError(f"cannot be read as a paper: {error!r}") from error


def parse_record(record: Any) -> Paper:
    """Turn a decoded record into a Paper. Raises RecordError."""
    if not isinstance(record, dict):
        raise RecordError("not a JSON object")
    arxiv_id, version = _arxiv_id(record)
    snapshot = "update_date" in record or "authors_parsed" in record or "versions" in record
    versions = record.get("versions") or []
    title, abstract = _text(record, "title", required=True), _text(record, "abstract")
    if snapshot:
        title, abstract = _WRAP.sub(" ", title).strip(), _WRAP.sub(" ", abstract).strip()
    return Paper(
        arxiv_id=arxiv_id,
        title=title,
        abstract=abstract,
        authors=_authors(record),
        categories=_categories(record),
        published=_date(record, "published") or _first_version(versions),
        updated=_date(record, "updated") or _date(record, "update_date"),
        version=version or _version(record) or (len(versions) if isinstance(versions, list) else 0),
    )


def _arxiv_id(record: dict[str, Any]) -> tuple[str, int]:
    value = record.get("arxiv_id")
    if value is None:
        value = record.get("id")
    if not isinstance(value, str) or not value.strip():
        raise RecordError("arxiv_id: expected a non-empty string (also accepted as id)")
    value = value.strip()
    if not value.isprintable():
        raise RecordError("arxiv_id: expected no control characters")
    if len(value) > MAX_ID_CHARS:
        raise RecordError(f"arxiv_id: expected at most {MAX_ID_CHARS} characters, got {len(value)}")
    match = _ARXIV_SHAPED.fullmatch(value)
    if not match:
        return value, 0
    version = match[2] or "0"
    if len(version) > MAX_VERSION_DIGITS:
        raise RecordError(f"arxiv_id: expected a version of at most {MAX_VERSION_DIGITS} digits, got {len(version)}")
    return arxiv_id_forms(match[1])[-1], int(version)  # math.GT/0309136 and math/0309136 are one paper


def _text(record: dict[str, Any], name: str, *, required: bool = False) -> str:
    value = record.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value.strip()):
        raise RecordError(f"{name}: expected a {'non-empty ' if required else ''}string")
    return value


def _authors(record: dict[str, Any]) -> tuple[str, ...]:
    parsed, authors = record.get("authors_parsed"), record.get("authors")
    if parsed is not None:
        if not isinstance(parsed, list) or not all(
            isinstance(name, list) and name and all(isinstance(part, str) for part in name) for name in parsed
        ):
            raise RecordError("authors_parsed: expected a list of [family, given, suffix]")
        return tuple(" ".join(filter(None, (*name[1:2], name[0], *name[2:]))) for name in parsed)
    if isinstance(authors, str):
        return tuple(name for name in re.split(r",\s+(?:and\s+)?|\s+and\s+", authors) if name)
    return _strings(record, "authors")


def _categories(record: dict[str, Any]) -> tuple[str, ...]:
    categories = record.get("categories")
    return tuple(categories.split()) if isinstance(categories, str) else _strings(record, "categories")


def _strings(record: dict[str, Any], name: str) -> tuple[str, ...]:
    value = record.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RecordError(f"{name}: expected a list of strings")
    return tuple(item for item in value if item)


def _date(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None or value == "":
        return ""
    if isinstance(value, str) and is_date(value):
        return value
    raise RecordError(f"{name}: expected YYYY-MM-DD or YYYY-MM, got {str(value)[:40]!r}")


def _version(record: dict[str, Any]) -> int:
    value = record.get("version") or 0
    if not isinstance(value, int) or not 0 <= value < 10**MAX_VERSION_DIGITS:
        raise RecordError(f"version: expected a whole number of at most {MAX_VERSION_DIGITS} digits")
    return value


def _first_version(versions: Any) -> str:
    try:
        return parsedate_to_datetime(versions[0]["created"]).date().isoformat()
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError):
        return ""  # a date that is odd in this place is no reason to go without the paper
