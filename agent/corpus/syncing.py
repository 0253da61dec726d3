"""A wish fulfilled: the signed repository is looked at, what is missing is fetched, and installed pack by pack."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from agent.config import Config
from agent.corpus.installing import Installer, Tell
from agent.corpus.packs import open_pack
from agent.errors import ConfigError, PackError
from agent.protocol.targets import Progress, Wish
from agent.repository.releases import Release, choose

INCOMING: Final = "incoming"
TRUST: Final = "trust"


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
    """Brings a data folder up to what a repository offers. One call at a time."""

    def __init__(self, config: Config, installer: Installer) -> None:
        self._config: Final = config
        self._incoming: Final = config.data_dir / INCOMING
        self._installer: Final = installer
        self.problems: list[str] = []

    @property
    def unfinished(self) -> bool:
        """Whether something that was being fetched is left of an earlier run."""
        return self._incoming.is_dir()

    def run(
        self, source: Source, wish: Wish, tell: Tell, stop: Callable[[], bool] = lambda: False, *, again: bool = False
    ) -> Synced:
        """Fulfil the wish from there. `again`: also by a pack that failed here before, or was rolled back by hand.

        Raises StoppedError when `stop` said so; ConfigError, RepositoryError, PackError, ShortageError and their like.
        """
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
                chain = self._chain(repository.refresh(), wish)
            finally:
                self.problems = repository.problems
            for release in () if again else chain:
                if reason := self._installer.held_back(release.version, release.contents):
                    if wish.version:
                        raise PackError(f"{release.version} was not kept: {reason}", hint="--again takes it")
                    return Synced(self._installer.version, held_back=f"{release.version}: {reason}")
            for release in chain:
                manifest = repository.manifest(release)
                self._installer.require_room(manifest, to_fetch=manifest.packed_bytes)
                repository.fetch(release, self._incoming, progress=_as_download(tell), stop=stop)
                self._install(tell, stop, again=again)
                shutil.rmtree(self._incoming)
        shutil.rmtree(self._incoming, ignore_errors=True)  # of a wish that is no longer one
        return Synced(self._installer.version, tuple(release.version for release in chain))

    def _install(self, tell: Tell, stop: Callable[[], bool], *, again: bool) -> None:
        try:
            with open_pack(self._incoming) as pack:
                self._installer.install(pack, tell, stop, again=again)
        except PackError:
            # What was fetched is believed to be whole by the next attempt, and is not: it is fetched anew.
            shutil.rmtree(self._incoming, ignore_errors=True)
            raise

    def _chain(self, releases: list[Release], wish: Wish) -> list[Release]:
        installed = self._installer.installed
        return choose(
            releases,
            channel=wish.channel or self._config.corpus.channel,
            version=wish.version,
            model=wish.model or self._installer.model,
            categories=wish.categories,
            installed=(installed.version, installed.contents) if installed else None,
        )


def _as_download(tell: Tell) -> Callable[[int, int], None]:
    return lambda done, total: tell(Progress(state="downloading", part=done / max(1, total)))
