"""Fetch the parts of a pack into a folder: resumable at any moment, verified, at the pace that is allowed.

INTO/manifest.json    which pack it is; what lies beside it was verified against it, or is the beginning of a part
INTO/NAME             a part, complete
INTO/NAME.partial     the beginning of one
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agent.crash_points import crash_point
from agent.errors import CorpusError, RepositoryError, ShortageError, StoppedError
from agent.paths import sync_folder, write_file
from agent.protocol.pack_manifest import MANIFEST, PackManifest, Part
from agent.repository.transport import LostError, Transport
from agent.store.faults import SHORTAGES

log = logging.getLogger(__name__)

ARBITRARY: Final = "arbitrary software"
ENDLESS: Final = "endless data"
PARTIAL: Final = ".partial"
SYNC_BYTES: Final = 4 * 1024 * 1024
"""What a power cut may cost of what was fetched."""
BLOCK_BYTES: Final = 1024 * 1024
CUTS: Final = 5
"""How often a part is gone on with at once, after a connection broke off; then the caller waits longer."""
PAUSE_S: Final = 1.0

Progress = Callable[[int, int], None]
Stop = Callable[[], bool]


class Download:
    """Of one pack into one folder, which is nobody else's meanwhile."""

    def __init__(self, transport: Transport, into: Path, *, progress: Progress | None, stop: Stop) -> None:
        self._transport: Final = transport
        self._into: Final = into
        self._progress: Final = progress
        self._stop: Final = stop
        self._total = 0
        self._done = 0

    def run(self, document: bytes, manifest: PackManifest) -> None:
        """Leave the folder with that pack and nothing else. Raises RepositoryError, ShortageError."""
        try:
            self._into.mkdir(parents=True, exist_ok=True)
            self._begin(document, manifest)
            for part in manifest.parts:
                if not (self._into / part.name).exists():
                    self._fetch(part)
            sync_folder(self._into)
        except OSError as error:
            raise disk_problem(error, self._into) from error

    def _begin(self, document: bytes, manifest: PackManifest) -> None:
        """Remove what is not of this pack. Of another one's, what both have is kept."""
        parts = {part.name: part for part in manifest.parts}
        path = self._into / MANIFEST
        same = path.is_file() and path.read_bytes() == document
        for found in list(self._into.iterdir()):
            if found != path and not _belongs(found, parts, verified=same):
                _remove(found)
        crash_point("download.begin:former-manifest")
        if not same:
            write_file(path, document)
        self._total = manifest.packed_bytes
        sizes = ((part, self._into / part.name) for part in manifest.parts)
        self._done = sum(part.bytes for part, file in sizes if file.exists())

    def _fetch(self, part: Part) -> None:
        partial = self._into / f"{part.name}{PARTIAL}"
        for attempt in (1, 2):
            if self._grow(part, partial) == part.sha256:
                crash_point("download.fetch:before-rename")
                partial.replace(self._into / part.name)
                crash_point("download.fetch:after-rename")
                return
            # What lay here may have been damaged, or was begun from another file.
            self._done -= partial.stat().st_size
            partial.unlink()
            if attempt == 1:
                log.warning("%s does not match its checksum, fetching it anew", part.name)
        raise RepositoryError(
            f"{part.name} is not the file that was signed: expected SHA-256 {part.sha256}", attack=ARBITRARY
        )

    def _grow(self, part: Part, partial: Path) -> str:
        """Fetch what is missing of a part; its SHA-256 then."""
        with partial.open("a+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END) > part.bytes:
                file.truncate(0)
            file.seek(0)
            digest = hashlib.sha256()
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
            growing = _Growing(file, digest, part)
            self._advance(growing.size)
            for cut in range(CUTS + 1):
                try:
                    self._receive(growing)
                    break
                except LostError as error:
                    if cut == CUTS:
                        raise
                    log.info("%s; going on from byte %d", error, growing.size)
                    self._pause(PAUSE_S * 2**cut)
            os.fsync(file.fileno())
            return growing.digest.hexdigest()

    def _receive(self, growing: "_Growing") -> None:
        """One answer of the server."""
        part = growing.part
        if growing.size == part.bytes:
            return
        with self._transport.open(f"parts/{part.sha256}", growing.size) as stream:
            left = part.bytes - stream.start
            if stream.length is not None and stream.length < left:
                raise RepositoryError(
                    f"{part.name} has {stream.start + stream.length} bytes, {part.bytes} were signed", attack=ARBITRARY
                )
            if stream.length is not None and stream.length > left:
                raise _endless(part)
            # A server without ranges sends again what is here. That stays: what it sends may be a log-in page.
            known = growing.size - stream.start
            while block := stream.read(left + 1):
                left -= len(block)
                if left < 0:
                    raise _endless(part)
                fresh = block[known:]
                known = max(0, known - len(block))
                growing.add(fresh)
                self._advance(len(fresh))
                if self._stop():
                    raise StoppedError("stopped")
        if left:
            raise LostError(f"{part.name} ends after {part.bytes - left} of {part.bytes} bytes")

    def _advance(self, count: int) -> None:
        self._done += count
        if self._progress:
            self._progress(self._done, self._total)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stop():
                raise StoppedError("stopped")
            time.sleep(min(left, 0.2))


class _Growing:
    """A part on its way to the disk, with the digest of what is there."""

    def __init__(self, file: Any, digest: "hashlib._Hash", part: Part) -> None:
        self._file: Final = file
        self.part: Final = part
        self.digest: Final = digest
        self.size: int = file.tell()
        self._unsynced = 0

    def add(self, block: bytes) -> None:
        self._file.write(block)
        self.digest.update(block)
        self.size += len(block)
        self._unsynced += len(block)
        if self._unsynced >= SYNC_BYTES:
            os.fsync(self._file.fileno())
            self._unsynced = 0
            crash_point("download.add:synced")


def _endless(part: Part) -> RepositoryError:
    return RepositoryError(f"{part.name} does not end after the {part.bytes} bytes signed", attack=ENDLESS)


def _belongs(found: Path, parts: dict[str, Part], *, verified: bool) -> bool:
    """Whether it is of this pack; what was `verified` against this very manifest is not read again."""
    part = parts.get(found.name)
    if part is None:
        whole = found.with_name(found.name.removesuffix(PARTIAL))
        return verified and whole.name in parts and not whole.exists()
    if not found.is_file() or found.stat().st_size != part.bytes:
        return False
    if verified:
        return True
    with found.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == part.sha256


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def disk_problem(error: OSError, folder: Path) -> CorpusError:
    """What this device's own disk will not do."""
    kind = ShortageError if error.errno in SHORTAGES else RepositoryError
    return kind(f"{folder} cannot be written: {error.strerror}")
