"""A wish fulfilled: the signed repository is looked at, what is missing is fetched, and installed pack by pack."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from agent.config import Config
from agent.corpus.installing import Installer, Tell
from agent.corpus.packs import open_pack
from agent.errors import ConfigError, CorpusError, ModelError, PackError
from agent.protocol.targets import Progress, Wish
from agent.repository.releases import Release, choose
from agent.store.agent_db import AgentDatabase
from agent.store.generations import FolderLock
from agent.store.remembered import Remembered

if TYPE_CHECKING:
    from agent.repository.client import Repository

INCOMING: Final = "incoming"
TRUST: Final = "trust"
LOCK: Final = "sync.lock"


class Synced(NamedTuple):
    """What came of it: the pack in use now, those that were installed for it, and why a newer one was not."""

    version: str
    installed: tuple[str, ...] = ()
    held_back: str | None = None


class Source(NamedTuple):
    """Where packs come from: a repository's URL or folder, and the root.json that vouches for it, if named."""

    address: str
    trust: Path | None = None

    @classmethod
    def configured(cls, config: Config) -> "Source":
        """Raises ConfigError where no repository is configured."""
        corpus = config.corpus
        if not corpus.repository:
            raise ConfigError("no repository is named", path="corpus.repository", hint="docs/repository.md")
        return cls(corpus.repository, Path(corpus.trust) if corpus.trust else None)


class Syncing:
    """Brings a data folder up to what a repository offers."""

    def __init__(self, config: Config, database: AgentDatabase, installer: Installer) -> None:
        self._config: Final = config
        self._incoming: Final = config.data_dir / INCOMING
        self._installer: Final = installer
        self._unusable: Final = Remembered(database, "unusable pack")
        self.problems: list[str] = []

    def run(
        self, source: Source, wish: Wish, tell: Tell, stop: Callable[[], bool] = lambda: False, *, again: bool = False
    ) -> Synced:
        """Fulfil the wish from there. `again`: also by a pack that failed here before, or was rolled back by hand.

        Raises StoppedError when `stop` said so; CorpusError where another process is at it; ConfigError,
        RepositoryError, PackError, ShortageError and their like.
        """
        self._config.data_dir.mkdir(parents=True, exist_ok=True)
        with FolderLock(self._config.data_dir / LOCK) as lock:
            if not lock.acquire():
                raise CorpusError("another update of the corpus is going on", hint="try again when it is done")
            return self._run(source, wish, tell, stop, again=again)

    def _run(self, source: Source, wish: Wish, tell: Tell, stop: Callable[[], bool], *, again: bool) -> Synced:
        from agent.repository.client import Repository  # loads what a device without a repository need not hold

        try:
            root = source.trust.read_bytes() if source.trust else None
        except OSError as error:
            raise ConfigError(f"{source.trust} cannot be read: {error.strerror}", path="corpus.trust") from error
        corpus = self._config.corpus
        with Repository(
            source.address,
            self._config.data_dir / TRUST,
            trusted_root=root,
            rate_kib_s=corpus.download_kib_s,
            ca_cert=corpus.ca_cert,
        ) as repository:
            try:
                chain = self._chain(repository.refresh(), wish, again=again)
            finally:
                self.problems = repository.problems
            goal = chain[-1] if chain else None
            reason = self._installer.held_back(goal.version, goal.contents) if goal and not again else None
            if goal and reason and wish.version:
                raise PackError(f"{goal.version} was not kept: {reason}", hint="--again takes it")
            if goal and reason:
                return Synced(self._installer.version, held_back=f"{goal.version}: {reason}")
            for release in chain:
                self._take(repository, release, tell, stop, again=again)
        shutil.rmtree(self._incoming, ignore_errors=True)  # of a wish that is no longer one
        return Synced(self._installer.version, tuple(release.version for release in chain))

    def _chain(self, releases: list[Release], wish: Wish, *, again: bool) -> list[Release]:
        installed = self._installer.installed
        return choose(
            releases,
            channel=wish.channel or self._config.corpus.channel,
            version=wish.version,
            model=wish.model or self._installer.model,
            categories=wish.categories,
            installed=(installed.version, installed.contents) if installed else None,
            avoid=() if again else self._installer.all_held_back,
        )

    def _take(
        self, repository: "Repository", release: Release, tell: Tell, stop: Callable[[], bool], *, again: bool
    ) -> None:
        manifest = repository.manifest(release)
        self._installer.require_model(manifest)
        self._installer.require_room(manifest, to_fetch=max(0, manifest.packed_bytes - self._fetched))
        repository.fetch(release, self._incoming, progress=_as_download(tell), stop=stop)
        try:
            with open_pack(self._incoming) as pack:
                self._installer.install(pack, tell, stop, again=again)
        except (PackError, ModelError) as error:
            # What was fetched is believed to be whole by the next attempt, and is not: it is fetched anew, once.
            shutil.rmtree(self._incoming, ignore_errors=True)
            this = [manifest.version, manifest.contents]
            if self._unusable.load() == this:
                self._installer.hold_back(manifest, error.message)
            self._unusable.save(this)
            raise
        shutil.rmtree(self._incoming)

    @property
    def _fetched(self) -> int:
        """Bytes that an earlier attempt has left."""
        files = self._incoming.iterdir() if self._incoming.is_dir() else ()
        return sum(path.stat().st_size for path in files)


def _as_download(tell: Tell) -> Callable[[int, int], None]:
    return lambda done, total: tell(Progress(state="downloading", part=done / max(1, total)))
