"""The Device Shadow `config`: what is wished for in it, and the report that answers. Pure.

A report is written against what the service holds as reported: only what differs is sent, and what is no longer ours
is removed by a null. Nothing empty is ever reported, so that no rule about empty values can make two sides differ.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from agent.protocol.limits import IOT_CORE
from agent.settings import Outcome, SettingError

SHADOW_NAME: Final = "config"

TARGETS: Final = ("corpus", "model")
MAX_LISTED: Final = 10
MAX_TEXT_CHARS: Final = 120
MIN_LISTED: Final = 2
MIN_TEXT_CHARS: Final = 40

_NOTHING: Final[tuple[Any, ...]] = (None, {}, [])

Document = dict[str, Any]


class Desired(NamedTuple):
    """The parts of `desired`, whatever they are, and the paths that this version does not know."""

    settings: Any
    targets: Any
    ignored: tuple[str, ...]


def split(desired: Any) -> Desired:
    """Never raises: what is no object wishes for nothing, as the service has it."""
    fields = desired if isinstance(desired, dict) else {}
    targets = fields.get("targets")
    unknown = [str(key) for key in fields if key not in {"settings", "targets"}]
    if isinstance(targets, dict):
        unknown += [f"targets.{key}" for key in targets if key not in TARGETS]
    return Desired(fields.get("settings"), targets, tuple(unknown))


# -- the report -------------------------------------------------------------------------------------------------------


class Report(NamedTuple):
    """Everything that there is to say of a document."""

    outcome: Outcome
    targets: Document
    agent: Document
    ignored: tuple[str, ...] = ()

    def documents(self) -> Iterator[Document]:
        """What to report, from all of it down to what must be said where there is hardly any room."""
        config = self._config
        everything = {"settings": self.outcome.settings.document()}
        everything |= {"targets": self.targets, "agent": self.agent}
        yield _tidy(everything | {"config": config(MAX_LISTED, MAX_TEXT_CHARS)}, MAX_TEXT_CHARS)
        yield _tidy(everything | {"config": config(MIN_LISTED, MIN_TEXT_CHARS)}, MIN_TEXT_CHARS)
        yield _tidy({"config": config(0, MIN_TEXT_CHARS)}, MIN_TEXT_CHARS)

    def _config(self, most: int, chars: int) -> Document:
        outcome = self.outcome
        ignored = [short(path, chars) for path in (*self.ignored, *outcome.ignored)]
        return {
            "document_version": outcome.version,
            "status": outcome.status,
            "errors": _listed([_error(error, chars) for error in outcome.errors], most, _more_errors),
            "ignored": _listed(ignored, most, _more),
        }


def _error(error: SettingError, chars: int) -> Document:
    return {
        "path": short(error.path, chars),
        "value": short_value(error.value, chars),
        "reason": short(error.reason, MAX_TEXT_CHARS),
    }


def _listed(items: Sequence[Any], most: int, more: Any) -> list[Any]:
    return [*items[:most], *([more(len(items) - most)] if len(items) > most else [])]


def _more(number: int) -> str:
    return f"and {number} more"


def _more_errors(number: int) -> Document:
    return {"path": "settings", "reason": f"and {number} more, for which there is no room here"}


def short(text: str, chars: int) -> str:
    """Cut to so many characters, and of characters that UTF-8 has."""
    cut = text if len(text) <= chars else text[: chars - 2] + ".."
    return cut.encode("utf-8", "replace").decode()


def short_value(value: Any, chars: int) -> Any:
    """A value of JSON as it is, where that is short; else the beginning of its JSON as a text."""
    if isinstance(value, str):
        return short(value, chars)
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**53):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    try:
        return short(json.dumps(value, ensure_ascii=False), chars)
    except (ValueError, RecursionError):  # more digits, or more levels, than Python writes
        return "a value that is too large to show"


def _tidy(value: Any, chars: int) -> Any:
    """Without nulls and without anything that is empty, its texts short."""
    if isinstance(value, dict):
        tidied = {short(str(key), chars): _tidy(member, chars) for key, member in value.items()}
        return {key: member for key, member in tidied.items() if member not in _NOTHING}
    if isinstance(value, list | tuple):
        return [member for member in (_tidy(one, chars) for one in value) if member not in _NOTHING]
    if isinstance(value, str):
        return short(value, MAX_TEXT_CHARS)
    return value


# -- against what is held ---------------------------------------------------------------------------------------------


def settled(wanted: Document, held: Any) -> Document:
    """`wanted`, with the version of the document kept where all else that it says of it is reported already.

    An agent that starts again looks at the same wishes in a later document: it has said what became of them.
    """
    fields = held if isinstance(held, dict) else {}
    if not isinstance(fields.get("config"), dict) or not same(fields.get("settings"), wanted.get("settings")):
        return wanted
    ours, theirs = wanted["config"], fields["config"]
    version = theirs.get("document_version")
    is_earlier = isinstance(version, int) and not isinstance(version, bool) and 0 <= version <= ours["document_version"]
    if ours["status"] == "rejected" and is_earlier and same(ours | {"document_version": version}, theirs):
        return wanted | {"config": theirs}
    return wanted


def changes(held: Any, wanted: Document) -> Document:
    """What to send so that the service, which holds `held` as reported, holds `wanted`. Arrays go as a whole."""
    fields = held if isinstance(held, dict) else {}
    found: Document = dict.fromkeys(fields.keys() - wanted.keys())
    for key, value in wanted.items():
        other = fields.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            inside = changes(other, value)
            if inside:
                found[key] = inside
        elif key not in fields or not same(value, other):
            found[key] = value
    return found


def same(one: Any, other: Any) -> bool:
    """Equal as JSON is: true is not 1, but 1 is 1.0."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)


# -- room -------------------------------------------------------------------------------------------------------------


def size(desired: Any, reported: Any) -> int:
    """Bytes of a shadow's state as the service counts them."""
    sections = {"desired": desired, "reported": reported}
    held = {name: section for name, section in sections.items() if section}
    return len(json.dumps(held, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))


def fitting(documents: Iterable[Document], desired: Any, room: int = IOT_CORE.shadow_bytes) -> Document | None:
    """The first document, hence the one that says most, that fits beside `desired`; None where none does."""
    return next((document for document in documents if size(desired, document) <= room), None)
