"""A pack becomes the corpus in use: room, parts, model, the switch. Killed anywhere before that, nothing has happened.

Everything is made beside what is in use, in `generations/.incoming`. What a killed installation has left there is
cleared away by the next one.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from agent.config import Config
from agent.corpus.increments import apply_increment, copy_generation, link_or_copy, require_base
from agent.corpus.packs import Pack, required_bytes
from agent.corpus.switching import activate
from agent.corpus.trials import HeldBackPacks, TrialError
from agent.crash_points import crash_point
from agent.errors import ModelError, PackError, ShortageError, StoppedError
from agent.model.install import verify as verify_model
from agent.paths import find_model, sync_folder
from agent.protocol.pack_manifest import CHANGES, MODEL, PAPERS, PackManifest
from agent.protocol.targets import Progress
from agent.search.api import SearchAPI
from agent.search.corpus_index import LOCAL
from agent.store.agent_db import AgentDatabase
from agent.store.faults import FULL_BYTES, shortage_of
from agent.store.generations import (
    INCOMING,
    ON_TRIAL,
    PREVIOUS,
    current_folder,
    pack_of,
    previous_of,
    sweep,
    update_lock,
)
from agent.store.journal import Journal
from agent.store.papers import PaperStore

log = logging.getLogger(__name__)

MIB: Final = 1024 * 1024

Tell = Callable[[Progress], None]


class Installed(NamedTuple):
    """What an installation did; `switched` is False where this very pack was in use already.

    `own_changes` are those made on this device that the new corpus was given.
    """

    version: str
    papers: int
    switched: bool
    own_changes: int = 0


class Installer:
    """Installs packs into a data folder, beside an agent that runs on it or in the agent's own process."""

    def __init__(self, config: Config, database: AgentDatabase, api: SearchAPI | None = None) -> None:
        """In the agent's own process with its `api`, so that a model is not loaded twice."""
        self._config: Final = config
        self._generations: Final = config.data_dir / "generations"
        self._api: Final = api or SearchAPI(config)
        self._journal: Final = Journal(database)
        self._held_back: Final = HeldBackPacks(database)

    @property
    def installed(self) -> PackManifest | None:
        """The pack in use; None for a corpus of this device's own, or none at all."""
        folder = current_folder(self._config.data_dir)
        return pack_of(folder) if folder else None

    @property
    def version(self) -> str:
        installed = self.installed
        return installed.version if installed else LOCAL

    @property
    def model(self) -> str:
        """The model of what is in use."""
        installed = self.installed
        return installed.model if installed else self._config.model.name

    def held_back(self, version: str, contents: str) -> str | None:
        """Why a pack is not to be taken again by itself; None if it may be."""
        return self._held_back.reason(version, contents)

    def hold_back(self, manifest: PackManifest, reason: str) -> None:
        """Do not take a pack again by itself. Raises StateError."""
        self._held_back.add(manifest, reason)

    @property
    def all_held_back(self) -> list[tuple[str, str]]:
        """Version and contents of each."""
        return [(one.version, one.contents) for one in self._held_back.all()]

    def require_room(self, manifest: PackManifest, *, to_fetch: int = 0) -> None:
        """Make sure that the disk has, or can have, room for a pack, of which `to_fetch` bytes must be fetched first.

        Raises ShortageError.
        """
        with self._alone():
            self._room(manifest, to_fetch)

    def require_model(self, manifest: PackManifest) -> None:
        """Make sure that a pack comes with its model, or that this is here already. Raises ModelError."""
        held, current = self.installed, current_folder(self._config.data_dir)
        if any(part.path.startswith(f"{MODEL}/") for part in manifest.parts):
            return
        if current and held and held.model == manifest.model and (current / MODEL).is_dir():
            return
        if not find_model(self._config.data_dir, manifest.model):
            raise ModelError(
                f"pack {manifest.version} is for the model {manifest.model}, which is not installed and not part of it",
                hint=f"arxplorer-agent model install {manifest.model}, or a pack made --with-model",
            )

    def _room(self, manifest: PackManifest, to_fetch: int = 0) -> Path | None:
        """The generation that has to go for it: the one before the current one is kept while there is room for it.

        Not while the current one is on trial. Raises ShortageError.
        """
        needed = required_bytes(manifest) + to_fetch + FULL_BYTES
        current = current_folder(self._config.data_dir)
        if manifest.base and current:
            needed += (current / PAPERS).stat().st_size
        free = shutil.disk_usage(self._generations).free
        if free >= needed:
            return None
        before = previous_of(current) if current and not (current / ON_TRIAL).exists() else None
        if before and free + _own_bytes(before) >= needed:
            return before
        raise ShortageError(
            f"pack {manifest.version} takes {needed / MIB:.0f} MB of disk, and {free / MIB:.0f} MB are free",
            hint="make room on the disk of the data folder",
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only one who makes a generation, with nothing left of earlier attempts."""
        with shortage_of(str(self._generations)):
            self._generations.mkdir(parents=True, exist_ok=True)
            with update_lock(self._config.data_dir):
                sweep(self._config.data_dir)
                yield

    def install(self, pack: Pack, tell: Tell, stop: Callable[[], bool], *, again: bool = False) -> Installed:
        """Make a pack the corpus in use, or a part of it. Every hash is checked, also of the pack that is in use.

        `again`: although it failed here before, or was rolled back. Raises PackError, ShortageError, TrialError where
        what came of it answers badly, ModelError, and StoppedError when `stop` said so; nothing has changed then.
        """
        manifest = pack.manifest
        installed = self.installed
        if installed and (installed.version, installed.contents) == (manifest.version, manifest.contents):
            pack.verify()
            return Installed(manifest.version, manifest.papers, switched=False)
        reason = None if again else self.held_back(manifest.version, manifest.contents)
        if reason:
            raise PackError(f"pack {manifest.version} was taken before and not kept: {reason}", hint="--again takes it")
        self.require_model(manifest)
        with self._alone():
            if before := self._room(manifest):
                log.warning("generation %s goes, since there is no room for three", before.name)
                (current_folder(self._config.data_dir) or before).joinpath(PREVIOUS).unlink()
                sweep(self._config.data_dir)
            tell(Progress(state="installing", part=0.0))
            if again:
                self._held_back.forget(manifest.version, manifest.contents)
            try:
                self._make(pack, self._generations / INCOMING, tell, stop)
                switched = activate(self._api, self._generations / INCOMING, self._journal)
            except BaseException as error:
                if isinstance(error, TrialError):
                    self._held_back.add(manifest, error.message)
                sweep(self._config.data_dir)  # it may have its number already
                raise
        crash_point("installing.install:switched")
        return Installed(manifest.version, manifest.papers, switched=True, own_changes=switched.replayed.entries)

    def _make(self, pack: Pack, incoming: Path, tell: Tell, stop: Callable[[], bool]) -> None:
        """Leave a generation in `incoming`, complete but for the changes that were made on this device."""
        manifest, installed = pack.manifest, self.installed
        require_base(manifest, installed)
        current = current_folder(self._config.data_dir)
        if manifest.base and current:
            copy_generation(current, incoming)
        total = max(1, manifest.unpacked_bytes)

        def unpacked(done: int) -> None:
            tell(Progress(state="installing", part=min(1.0, done / total)))

        if not pack.unpack(incoming, progress=unpacked, stop=stop):
            raise StoppedError(f"the installation of pack {manifest.version} was stopped")
        crash_point("installing.make:unpacked")
        if manifest.base:
            self._apply(manifest, incoming, stop)
        self._provide_model(manifest, current, incoming)
        sync_folder(incoming)
        crash_point("installing.make:complete")

    @staticmethod
    def _apply(manifest: PackManifest, incoming: Path, stop: Callable[[], bool]) -> None:
        papers = PaperStore(incoming / PAPERS)
        try:
            if not apply_increment(papers, incoming / CHANGES, manifest.model, manifest.dimensions, stop=stop):
                raise StoppedError(f"the installation of pack {manifest.version} was stopped")
        finally:
            papers.close()
        (incoming / CHANGES).unlink()
        crash_point("installing.apply:applied")

    def _provide_model(self, manifest: PackManifest, current: Path | None, incoming: Path) -> None:
        """A corpus is searched with the model that its vectors are of: the pack's own, or one that is here already."""
        own = incoming / MODEL
        if own.is_dir():
            verify_model(own, manifest.model)
        elif current and (current / MODEL).is_dir() and self.model == manifest.model:
            own.mkdir()
            for file in (current / MODEL).iterdir():
                link_or_copy(file, own / file.name)
            sync_folder(own)


def _own_bytes(folder: Path) -> int:
    """What deleting a generation gives back: files that another one has as well do not count."""
    files = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum(file.st_size for file in files if file.st_nlink == 1)
