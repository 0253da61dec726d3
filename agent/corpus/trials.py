"""Trials: a new generation has to prove itself in the running agent, and a pack that failed is not taken again.

generations/0008/on-trial    how often the agent has opened it without proof, written before each opening
agent.db, "held back"        which packs failed here, or were rolled back by hand, and why
"""

import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.crash_points import crash_point
from agent.errors import CorpusError
from agent.paths import sync_folder, write_file
from agent.protocol.pack_manifest import PackManifest
from agent.store.agent_db import AgentDatabase
from agent.store.faults import shortage_of
from agent.store.generations import ON_TRIAL
from agent.store.remembered import Remembered

OPENINGS: Final = 2
"""A generation on which the agent ended so often before it had proved itself is given back."""
TRIAL_S: Final = 120.0
"""An agent that has run for so long on a generation, and answers, is not ended by it."""
KEPT: Final = 32
"""Of the packs that are held back, the latest so many are remembered."""
BY_HAND: Final = "rolled back by hand"


class TrialError(CorpusError):
    """A new generation does not prove itself."""


class HeldBack(NamedTuple):
    """A pack that is not to be taken again by itself, and why."""

    version: str
    contents: str
    reason: str


class HeldBackPacks:
    """What is remembered of them in agent.db. Usable from any thread."""

    def __init__(self, database: AgentDatabase) -> None:
        self._remembered: Final = Remembered(database, "held back")

    def all(self) -> list[HeldBack]:
        """The oldest first. Never raises."""
        return [HeldBack(*map(str, one)) for one in self._remembered.load() or ()]

    def reason(self, version: str, contents: str) -> str | None:
        """Why this pack is held back; None if it is not."""
        return next((one.reason for one in self.all() if one[:2] == (version, contents)), None)

    def add(self, pack: PackManifest, reason: str) -> None:
        """Hold a pack back. Raises StateError."""
        self._save([*self._others(pack.version, pack.contents), HeldBack(pack.version, pack.contents, reason)])

    def forget(self, version: str, contents: str) -> None:
        """Let a pack be taken again. Raises StateError."""
        if self.reason(version, contents):
            self._save(self._others(version, contents))

    def _others(self, version: str, contents: str) -> list[HeldBack]:
        return [one for one in self.all() if one[:2] != (version, contents)]

    def _save(self, packs: list[HeldBack]) -> None:
        document: Any = [list(one) for one in packs[-KEPT:]]
        self._remembered.save(document)


def put_on_trial(folder: Path) -> None:
    """Let a generation prove itself from its next opening on. Raises OSError."""
    write_file(folder / ON_TRIAL, b"0")


def end_trial(folder: Path) -> None:
    """A generation has proved itself, or need not. Raises OSError."""
    if (folder / ON_TRIAL).exists():
        (folder / ON_TRIAL).unlink()
        crash_point("trials.end_trial:unlinked")
        sync_folder(folder)


class Trial:
    """That of the generation which the running agent has open, if it is on trial. Usable from any thread."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._proven = False
        self._opened_at = 0.0

    def begin(self, folder: Path) -> None:
        """The agent is about to open a generation: count that, durably, if it is on trial.

        Raises TrialError where it was opened too often already, and ShortageError where it cannot be counted.
        """
        opened = openings_of(folder)
        self._folder, self._proven, self._opened_at = None, False, time.monotonic()
        if opened is None:
            return
        if opened >= OPENINGS:
            raise TrialError(f"the agent ended {opened} times soon after it had opened it")
        with shortage_of(str(folder)):
            write_file(folder / ON_TRIAL, str(opened + 1).encode())
        crash_point("trials.begin:counted")
        self._folder = folder

    @property
    def folder(self) -> Path | None:
        """The generation that is on trial, if it is."""
        return self._folder

    def proven(self) -> None:
        """The agent has answered a question from it."""
        self._proven = True

    def drop(self) -> None:
        """It has failed, and another generation is in use."""
        self._folder = None

    def turn(self) -> None:
        """Once it has gone well for long enough, the trial is over. Raises OSError."""
        if self._folder and self._proven and time.monotonic() > self._opened_at + TRIAL_S:
            self.end()

    def end(self) -> None:
        """The agent stops in order, or has run for long: what has answered by now has proved itself. Raises OSError."""
        folder, self._folder = self._folder, None
        if folder and self._proven:
            end_trial(folder)


def openings_of(folder: Path) -> int | None:
    """How often a generation on trial was opened without proof; None for one that is not on trial."""
    try:
        text = (folder / ON_TRIAL).read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if text.isdecimal() else 0
