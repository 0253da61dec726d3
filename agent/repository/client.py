"""`Repository`: what a device sees of one. Loads python-tuf and urllib3, so import it where it is used."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import msgspec

from agent.errors import RepositoryError
from agent.protocol.pack_manifest import MAX_MANIFEST_BYTES, PackManifest, parse_pack_manifest
from agent.repository.download import Download, Progress, Stop, disk_problem
from agent.repository.framework import TargetFile
from agent.repository.releases import Release
from agent.repository.transport import Transport
from agent.repository.trust import Trusted, TrustedTime, refreshed

log = logging.getLogger(__name__)


class Repository:
    """A signed repository. Not for several threads at once, and one at a time for each `trust_dir`."""

    def __init__(
        self,
        url: str,
        trust_dir: Path,
        *,
        trusted_root: bytes | None = None,
        rate_kib_s: int = 0,
        ca_cert: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`trusted_root` is the root.json that is trusted to begin with; later what `trust_dir` keeps counts.

        `ca_cert` is a file; without it the system's certificates count. Raises RepositoryError for an address of a kind
        that is not known. Connects to nothing yet.
        """
        self._transport: Final = Transport(url, ca_cert=ca_cert, rate_kib_s=rate_kib_s)
        self._trust_dir: Final = trust_dir
        self._trusted_root: Final = trusted_root
        self._clock: Final = clock
        self._trusted: Trusted | None = None
        self.problems: list[str] = []
        """What a report should say beside the result, such as that the clock was never set."""

    def refresh(self) -> list[Release]:
        """Everything on offer, in all channels.

        Raises RepositoryError, with `attack` where something is refused, and UnreachableError.
        """
        return sorted(filter(None, map(_release, self._refresh().targets.values())), key=lambda found: found.number)

    def manifest(self, release: Release) -> PackManifest:
        """Raises RepositoryError, and PackError for one that is signed and yet wrong."""
        return self._manifest(release)[1]

    def fetch(
        self,
        release: Release,
        into: Path,
        *,
        progress: Progress | None = None,
        stop: Stop = lambda: False,
    ) -> None:
        """Leave in the folder `into` the pack, complete and verified, and nothing else.

        What a former call, also of a process that was killed, has fetched there is gone on with; what another release
        left is kept where it is the same. `progress` gets the bytes that are there and those of the whole. Should a
        part turn out to be damaged later, remove `into`: what is complete is not read again. Raises RepositoryError,
        UnreachableError; ShortageError where the disk is full; StoppedError (download.py) once `stop` says so.
        """
        document, manifest = self._manifest(release)
        Download(self._transport, into, progress=progress, stop=stop).run(document, manifest)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refresh(self) -> Trusted:
        now = TrustedTime(self._trust_dir, self._clock)
        self.problems = [now.problem] if now.problem else []
        try:
            self._trusted = refreshed(self._trust_dir, self._transport, given=self._trusted_root, time=now)
        except OSError as error:
            raise disk_problem(error, self._trust_dir) from error
        return self._trusted

    def _manifest(self, release: Release) -> tuple[bytes, PackManifest]:
        trusted = self._trusted or self._refresh()
        target = trusted.targets.get(release.target)
        if target is None:
            raise RepositoryError(f"{release} is not in the repository any more")
        document = trusted.download(target, MAX_MANIFEST_BYTES)
        where = f"{self._transport.url}: {release.target}"
        manifest = parse_pack_manifest(document, where=where)
        if (manifest.model, manifest.version, manifest.contents) != release.state or manifest.base != release.base:
            raise RepositoryError(f"{where} is not what the repository says of it", hint="the publisher has to mend it")
        return document, manifest


def _release(target: TargetFile) -> Release | None:
    """What the repository says of a manifest; None where a later version of the program has put it otherwise."""
    try:
        release = msgspec.convert(target.custom, Release)
    except msgspec.ValidationError as error:
        log.warning("%s is passed over: %s", target.path, error)
        return None
    return msgspec.structs.replace(release, target=target.path)
