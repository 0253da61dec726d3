"""How arXiv uses OAI-PMH: which set a category is, and what paper a record of arXivRaw describes. Pure functions.

arXivRaw is the format from which the well-known full snapshot is made: it has every version with its date, where the
format `arXiv` names one date and no version. The snapshot's `update_date` is the record's datestamp.
"""

import re
from typing import Any, Final

from agent.corpus.oai_xml import OaiRecord
from agent.corpus.records import RecordError, parse_record
from agent.search.text import category_query_term, category_terms

FORMAT: Final = "arXivRaw"
PREFIX: Final = "oai:arXiv.org:"
_OWN_GROUP: Final = frozenset(("cs", "econ", "eess", "math", "q-bio", "q-fin", "stat"))
_PHYSICS: Final = frozenset(
    "astro-ph cond-mat gr-qc hep-ex hep-lat hep-ph hep-th math-ph nlin nucl-ex nucl-th physics quant-ph".split()  # noqa: SIM905
)
_CATEGORY: Final = re.compile(r"[a-z-]+(?:\.(?:[A-Z]{2}|[a-z]+(?:-[a-z]+)*))?")
_BETWEEN_NAMES: Final = re.compile(r"\s*[,:]\s*(?:(?:and|&)\s+)?|\s+(?:and|&)\s+")
_SUFFIX: Final = re.compile(r"(?:Jr|Sr)\.?|I{2,3}|IV", re.IGNORECASE)
_ET_AL: Final = re.compile(r"\s*\bet\.?\s+al\.?\s*$", re.IGNORECASE)


def set_of(category: str) -> str | None:
    """The set of a category, `cs:cs:LG` of `cs.LG`, `cs:cs` of `cs.*`, `physics:hep-th`; None of no category."""
    category = category_query_term(category)
    archive, _, subject = category.partition(".")
    if not _CATEGORY.fullmatch(category) or archive not in _OWN_GROUP | _PHYSICS:
        return None
    group = "physics" if archive in _PHYSICS else archive
    return ":".join(filter(None, (group, archive, subject)))


def belongs(record: OaiRecord, category: str) -> bool:
    """Whether a record is of this category, by its own word or by its sets: an interface may have coarser ones."""
    wanted, spec = category_query_term(category), set_of(category)
    named = record.fields.get("categories", "").split()
    return any(wanted in category_terms(name) for name in named) or any(
        one == spec or one.startswith(f"{spec}:") for one in record.sets
    )


def arxiv_id_of_record(record: OaiRecord) -> str:
    """`oai:arXiv.org:hep-th/9901001` is `hep-th/9901001`."""
    return record.identifier.removeprefix(PREFIX) if record.identifier.startswith(PREFIX) else ""


def import_record(record: OaiRecord) -> dict[str, Any]:
    """The record as one of an import, in the snapshot's form, of which a paper can be made. Raises RecordError."""
    if record.too_long:
        raise RecordError("its texts are too long for a paper")
    arxiv_id = record.fields.get("id", "").strip()
    if arxiv_id != arxiv_id_of_record(record):
        raise RecordError(f"id: expected the one of the header, got {arxiv_id[:40]!r}")
    given: dict[str, Any] = {
        "id": arxiv_id,
        "title": record.fields.get("title"),
        "abstract": record.fields.get("abstract"),
        "authors": names_of(record.fields.get("authors", "")),
        "categories": record.fields.get("categories", ""),
        "versions": [{"version": version, "created": date} for version, date in record.versions],
        "update_date": record.datestamp,
    }
    parse_record(given)
    return given


def names_of(authors: str) -> list[str]:
    """The names in a line of authors: `A. Bee (MIT), C. Dee, Jr. and E. Eff` are three. Affiliations are left out.

    A collaboration before a colon is a name as well; `et al.` is none.
    """
    names: list[str] = []
    for part in _BETWEEN_NAMES.split(" ".join(_outside_parentheses(authors).split())):
        name = _ET_AL.sub("", part).strip()
        if names and _SUFFIX.fullmatch(name):
            names[-1] += f", {name}"
        elif name:
            names.append(name)
    return names


def _outside_parentheses(text: str) -> str:
    """Affiliations may hold parentheses of their own; one that is never closed goes to the end."""
    kept: list[str] = []
    depth = 0
    for character in text:
        depth += character == "("
        if not depth:
            kept.append(character)
        elif character == ")":
            depth -= 1
            kept.append(" ")
    return "".join(kept)
