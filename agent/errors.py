"""The exceptions of the agent.

    AgentError                      everything the agent raises on purpose; `hint` says what to do next
    ├── ConfigError                 config.yaml or the environment: `path` names the key
    ├── ModelError                  a model is missing, damaged or cannot be converted
    ├── CorpusError                 the corpus folder or an input file cannot be used
    │   ├── DamagedIndexError       a search index is damaged: `part` says which; it can be made again
    │   ├── DamagedPapersError      papers.db is damaged
    │   ├── PackError               a pack is damaged, of another format, or does not fit this corpus
    │   ├── RepositoryError         a repository of packs is refused: `attack` says by which rule
    │   ├── HarvestError            arXiv's interface answers what cannot be used
    │   ├── UnreachableError        nobody answers where packs or records come from: this device may be offline
    │   ├── SupersededError         another generation has become the current one
    │   └── ShortageError           the disk is full or read-only: nothing is wrong with the files, and it may pass
    ├── NotReadyError               asked before a corpus or a model is there
    ├── SettingsError               settings from the shadow cannot be put into effect, or not be kept
    ├── StoppedError                somebody asked to stop what was under way
    ├── StateError                  agent.db cannot be written
    ├── JobDocumentError            a job asks for what cannot be done: `field` names the place in its document
    ├── BrokerError                 a broker refused, or cannot be reached
    └── RequestError                a message is bad: `code` and `field` go back on the wire

The command line prints `message` and `hint` and exits 1; the bridge turns a RequestError into an error reply.
"""

import re
from typing import Final, Literal

ErrorCode = Literal[
    "invalid_json",
    "invalid_request",
    "payload_too_large",
    "unsupported",
    "not_ready",
    "expired",
    "overloaded",
    "internal",
]


class AgentError(Exception):
    """Something went wrong that a person can do something about."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message: Final = message
        self.hint: Final = hint


class ConfigError(AgentError):
    """A configuration value cannot be used; `path` is its dotted key, such as `local_broker.port`."""

    def __init__(self, message: str, *, path: str | None = None, hint: str | None = None) -> None:
        super().__init__(f"{path}: {message}" if path else message, hint=hint)
        self.path: Final = path


class ModelError(AgentError):
    """A model is missing, damaged or of an architecture that cannot be converted."""


class CorpusError(AgentError):
    """The corpus folder or an input file cannot be used."""


class DamagedIndexError(CorpusError):
    """A search index is damaged, `keywords` or `vectors`; it can be made again from the papers."""

    def __init__(self, part: Literal["keywords", "vectors"], reason: str) -> None:
        super().__init__(f"the index of {part} is damaged: {reason}", hint="arxplorer-agent corpus rebuild")
        self.part: Final = part


class DamagedPapersError(CorpusError):
    """papers.db is damaged; the running agent heals it from what is whole."""


class PackError(CorpusError):
    """A pack is damaged, of a format that this version does not know, or does not fit the corpus here."""


class RepositoryError(CorpusError):
    """A repository does not answer as one, or what it offers is refused: then `attack` names what it may be.

    The names are those of The Update Framework's specification, section 1.5.2.
    """

    def __init__(self, message: str, *, attack: str | None = None, hint: str | None = None) -> None:
        super().__init__(f"{attack}: {message}" if attack else message, hint=hint)
        self.attack: Final = attack


class SupersededError(CorpusError):
    """Another generation has become the current one: what would be written here, nobody would find."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="run it again: it will go to the new one")


class UnreachableError(CorpusError):
    """Nobody answers where packs or records come from: this device may be offline, which is nothing wrong with it."""


class HarvestError(CorpusError):
    """The answers of arXiv's interface cannot be used; what came before is kept.

    `retry_after_s` is how long it has asked to be left alone.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s: Final = retry_after_s


class ShortageError(CorpusError):
    """The disk is full or read-only: the files are whole, and the same may work later."""


class NotReadyError(AgentError):
    """The corpus or the model is not there yet."""


class SettingsError(AgentError):
    """Settings from the Device Shadow cannot be put into effect, or not be kept."""


class StoppedError(AgentError):
    """Somebody asked to stop what was under way; what it has done so far is kept, and gone on with."""


class StateError(AgentError):
    """What the agent has to remember cannot be written: agent.db."""


class JobDocumentError(AgentError):
    """A job's document cannot be carried out as it is; `field` is its dotted JSON path, such as `version`."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field: Final = field


class BrokerError(AgentError):
    """A broker cannot be reached, or refused an operation; `final` if asking again would not help."""

    def __init__(self, message: str, *, hint: str | None = None, final: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.final: Final = final


class RequestError(AgentError):
    """A message from a client is bad; `field` is its dotted JSON path, such as `filters.mode`."""

    def __init__(self, code: ErrorCode, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.code: Final[ErrorCode] = code
        self.field: Final = field


def validation_place(message: str) -> tuple[str, str]:
    """Split what msgspec says of a bad value, "Expected `str` - at `$.a.b`", into its place `a.b` and the reason."""
    match = re.fullmatch(r"(?s)(.*) - at `\$\.?(.*)`", message)
    return (match[2], match[1]) if match else ("", message)
