"""Targets of the shadow and of jobs: which corpus and which model are wished for, and what to report of that. Pure."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from agent.errors import validation_place

State = Literal["pending", "downloading", "installing", "current", "failed"]

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]
Category = Annotated[str, Meta(min_length=1, max_length=64)]
NAME_EXPECTED: Final = "must be letters, digits and ._- (at most 100)"


class Wish(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A corpus to have. What is None is left to the configuration, or for `version` to what is newest.

    `categories` is a pack's whole selection; None: whatever the newest pack of the channel holds.
    """

    channel: Name | None = None
    version: Name | None = None
    categories: tuple[Category, ...] | None = None
    model: Name | None = None


class Progress(Struct, frozen=True, kw_only=True):
    """How far the latest wish has come: `part` is from 0 to 1."""

    state: State = "current"
    part: float | None = None
    error: str | None = None


class Targets(Struct, frozen=True, kw_only=True):
    """What a document of targets wishes for, of which targets it speaks, and what is wrong with it, by target."""

    wish: Wish
    named: frozenset[str]
    errors: dict[str, str]


def parse_targets(document: Any) -> Targets:
    """Read `desired.targets`, any JSON value: each target by itself, a null counts as not there. Never raises.

    A key that this version does not know is passed over, as everywhere in the shadow.
    """
    fields = document if isinstance(document, dict) else {}
    errors: dict[str, str] = {}
    wished: dict[str, Any] = {}
    named = frozenset(target for target in ("corpus", "model") if fields.get(target) is not None)
    for target, keys in (("corpus", ("channel", "version", "categories")), ("model", ("name",))):
        value = fields.get(target)
        if value is None:
            continue
        if not isinstance(value, dict):
            errors[target] = f"targets.{target}: must be an object with {' or '.join(keys)}"
            continue
        given = {"model" if key == "name" else key: value[key] for key in keys if value.get(key) is not None}
        if target == "model" and not given:
            errors[target] = "targets.model.name: is missing"
        try:
            msgspec.convert(given, Wish)
        except msgspec.ValidationError as error:
            place = validation_place(str(error))[0].partition("[")[0]
            name = "name" if target == "model" else place
            expected = "must be a list of category names" if place == "categories" else NAME_EXPECTED
            errors[target] = f"targets.{target}.{name}: {expected}"
        else:
            wished |= given
    return Targets(wish=msgspec.convert(wished, Wish), named=named, errors=errors)


def reported_targets(
    targets: Targets, progress: Progress, *, model: str | None, corpus_version: str
) -> dict[str, dict[str, Any]]:
    """What to report of each target that is spoken of; `progress` is that of the wish as a whole."""
    found: dict[str, dict[str, Any]] = {}
    for target in sorted(targets.named):
        own = progress
        if target in targets.errors:
            own = Progress(state="failed", error=targets.errors[target])
        elif target == "model" and targets.wish.model == model:
            own = Progress()
        held = {"version": corpus_version} if target == "corpus" else {"name": model or "none"}
        found[target] = held | {"state": own.state, "progress": own.part, "error": own.error}
    return found
