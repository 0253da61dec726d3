"""What the Device Shadow may change while the agent runs, and how its wishes become settings. Pure.

A document of wishes is taken as a whole or not at all. It always counts from config.yaml's own values, so that a key
that is removed from the shadow returns to them.
"""

from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple, Self, get_args, get_origin

import msgspec
from msgspec import Struct, field
from msgspec.inspect import FloatType, IntType, Metadata, Type, type_info

from agent.config import Config, CorpusSettings, HealthConfig, LimitSettings, LoggingConfig, OutboxConfig, SearchConfig

ROOT: Final = "settings"
"""Where the document stands in `desired`; every path begins with it."""


class SettingError(NamedTuple):
    """A wish that cannot be fulfilled: its dotted path, what was wanted, and in words what would be right."""

    path: str
    value: Any
    reason: str


class Merged(NamedTuple):
    """Settings with a document on top; where `errors` holds something, the unchanged ones."""

    settings: "Settings"
    errors: tuple[SettingError, ...]
    ignored: tuple[str, ...]


class Settings(Struct, frozen=True, kw_only=True):
    """All that may change while the agent runs; sections and keys as in config.yaml."""

    search: SearchConfig = field(default_factory=SearchConfig)
    limits: LimitSettings = field(default_factory=LimitSettings)
    health: HealthConfig = field(default_factory=HealthConfig)
    outbox: OutboxConfig = field(default_factory=OutboxConfig)
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @classmethod
    def of(cls, config: Config) -> Self:
        """As config.yaml and the environment have them."""
        held = config.limits
        limits = LimitSettings(max_pending=held.max_pending, requests_per_minute=held.requests_per_minute)
        return cls(
            search=config.search,
            limits=limits,
            health=config.health,
            outbox=config.outbox,
            corpus=CorpusSettings(sync_interval_s=config.corpus.sync_interval_s),
            logging=config.logging,
        )

    def document(self) -> dict[str, dict[str, Any]]:
        """Section by section, as JSON has it."""
        document: dict[str, dict[str, Any]] = msgspec.to_builtins(self)
        return document

    def merged(self, document: Any) -> Merged:
        """These settings with the wishes of `document`, any JSON value, on top: all of them or none.

        Null counts as not there, as for the shadow itself. A key that this version does not know is ignored and named:
        a newer fleet must not stop an older device. Never raises.
        """
        errors: list[SettingError] = []
        ignored: list[str] = []
        wished: dict[str, dict[str, Any]] = {}
        for section, values in _members(document, ROOT, errors):
            path = f"{ROOT}.{section}"
            if section not in self.__struct_fields__:
                ignored.append(path)
                continue
            known = _KINDS[section]
            for key, value in _members(values, path, errors):
                if key not in known:
                    ignored.append(f"{path}.{key}")
                    continue
                try:
                    wished.setdefault(section, {})[key] = msgspec.convert(value, known[key])
                except (msgspec.ValidationError, OverflowError, RecursionError):
                    errors.append(SettingError(f"{path}.{key}", value, _expected(known[key])))
        if errors:
            return Merged(self, tuple(errors), tuple(ignored))
        replace = msgspec.structs.replace
        sections = {section: replace(getattr(self, section), **values) for section, values in wished.items()}
        return Merged(replace(self, **sections), (), tuple(ignored))


class Outcome(NamedTuple):
    """What became of a document: `settings` are in effect, `version` is that of the shadow that first wished so."""

    status: Literal["applied", "rejected"]
    version: int
    settings: Settings
    errors: tuple[SettingError, ...] = ()
    ignored: tuple[str, ...] = ()


def _members(value: Any, path: str, errors: list[SettingError]) -> Iterator[tuple[str, Any]]:
    """What an object holds; what is no object is an error, what is null is nothing."""
    if isinstance(value, dict):
        yield from ((str(key), member) for key, member in value.items() if member is not None)
    elif value is not None:
        errors.append(SettingError(path, value, "must be an object with keys below it"))


def _kinds() -> dict[str, dict[str, Any]]:
    sections = {one.name: one.type for one in msgspec.structs.fields(Settings)}
    return {name: {one.name: one.type for one in msgspec.structs.fields(kind)} for name, kind in sections.items()}


_KINDS: Final = _kinds()
"""The type of each key, by section."""


def _expected(kind: Any) -> str:
    """What a key may hold, in words."""
    bare = kind.__origin__  # each key is Annotated
    if get_origin(bare) is Literal:
        return f"must be one of {', '.join(get_args(bare))}"
    info: Type = type_info(kind)
    while isinstance(info, Metadata):
        info = info.type
    match info:
        case IntType(ge=least, le=most):
            return f"must be a whole number from {least} to {most}"
        case FloatType(ge=least, le=most):
            return f"must be a number from {least} to {most}"
    raise TypeError(f"no words for {info}")  # a new kind of key needs its own
