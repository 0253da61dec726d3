"""Packs read: a folder, its manifest.json, or a plain tar of them; verified, and unpacked into a folder.

Of a pack nothing is believed but what its manifest says, and what a manifest may say is bounded. A part is read,
hashed, decompressed, hashed again and written piece by piece: no more is written than its manifest says, and nothing
outside the folder. Hashing goes on in a second thread beside the rest.
"""

import hashlib
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, Final, Self, cast

import zstandard

from agent.crash_points import crash_point
from agent.errors import CorpusError, PackError
from agent.paths import sync_folder, write_file
from agent.protocol.pack_manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_PARTS,
    PackManifest,
    Part,
    parse_pack_manifest,
)
from agent.store.faults import FULL_BYTES, shortage_of

CHUNK_BYTES: Final = 512 * 1024
READ_BYTES: Final = 256 * 1024
MAX_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""What a decompressor may keep: twice what packing.LEVEL asks for."""
MAX_HEADER_BYTES: Final = 64 * 1024
"""Of a tar's member, names included: tarfile would read as much as the file says."""
HASHED_BEHIND: Final = 8
"""So many pieces may wait to be hashed."""
BLOCK_BYTES: Final = 4_096
DAMAGED: Final = "the pack is damaged or not complete; fetch it again"

Progress = Callable[[int], None]
"""Called with the bytes done so far, of the manifest's `unpacked_bytes`."""
Sink = Callable[[bytes], object]
Opener = Callable[[str], tuple[BinaryIO, int]]
"""A file of the pack by its name, to read, and its length. Raises KeyError where there is none, and OSError."""


def required_bytes(manifest: PackManifest) -> int:
    """Of free disk, to unpack a pack; an increment also grows the corpus that it is applied to, and its log."""
    files = manifest.unpacked_bytes + BLOCK_BYTES * (len(manifest.parts) + 1)
    return FULL_BYTES + (3 * files if manifest.base else files)


class Pack:
    """An opened pack. Nothing of it is read twice, and nothing into memory but the manifest."""

    def __init__(self, name: str, opener: Opener) -> None:
        """Reads the manifest. Raises PackError."""
        self.name: Final = name
        self._opener: Final = opener
        with _Source(name, opener, MANIFEST, None) as source:
            self._document: Final = source.read(MAX_MANIFEST_BYTES + 1)
        self.manifest: Final = parse_pack_manifest(self._document, where=f"{name}: {MANIFEST}")

    def verify(self, progress: Progress | None = None) -> None:
        """Read and decompress every part, and compare it with the manifest. Raises PackError naming the part."""
        done = 0
        for part in self.manifest.parts:
            self._stream(part, lambda _: None, done, progress, lambda: False)
            done += part.unpacked_bytes

    def unpack(
        self,
        into: Path,
        *,
        only: str | None = None,
        progress: Progress | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Write every part into the folder `into`, and manifest.json last; all of it is on the disk then.

        `only` that path of a part, and no manifest. False where `stop`, asked after each piece, said so. After that and
        after any error what lies in `into` is of no use. Raises PackError naming the part, and ShortageError.
        """
        done = 0
        try:
            with shortage_of(str(into)):
                into.mkdir(parents=True, exist_ok=True)
                for part in self.manifest.parts:
                    if only not in (None, part.path):
                        continue
                    if not self._unpack_part(part, into / part.path, done, progress, stop):
                        return False
                    done += part.unpacked_bytes
                for folder in {(into / part.path).parent for part in self.manifest.parts} if only is None else ():
                    sync_folder(folder)
                crash_point("packs.unpack:no-manifest")
                if only is None:
                    write_file(into / MANIFEST, self._document)
        except OSError as error:
            raise CorpusError(f"{error.filename or into} cannot be written: {error.strerror}") from error
        return True

    def _unpack_part(
        self, part: Part, path: Path, before: int, progress: Progress | None, stop: Callable[[], bool]
    ) -> bool:
        path.parent.mkdir(exist_ok=True)
        # Never through a link, and never over what is there: a folder that is being made is nobody else's.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            if not self._stream(part, lambda piece: _write(file, piece), before, progress, stop):
                return False
            crash_point("packs.unpack:before-sync")
            os.fsync(descriptor)
        crash_point("packs.unpack:part-done")
        return True

    def _stream(self, part: Part, sink: Sink, before: int, progress: Progress | None, stop: Callable[[], bool]) -> bool:
        packed, unpacked = hashlib.sha256(), hashlib.sha256()
        written = 0
        with _Hashing() as hashing, _Source(self.name, self._opener, part.name, part.bytes) as source:
            source.seen = lambda piece: hashing.add(packed, piece)
            try:
                for piece in _decompressed(source):
                    written += len(piece)
                    if written > part.unpacked_bytes:
                        raise self._mismatch(part, "unpacks to more", f"{part.unpacked_bytes} bytes")
                    hashing.add(unpacked, piece)
                    sink(piece)
                    if progress:
                        progress(before + written)
                    if stop():
                        return False
            except zstandard.ZstdError as error:
                raise PackError(f"{self.name}: {part.name} cannot be unpacked: {error}", hint=DAMAGED) from error
            rest = source.drain()
        if packed.hexdigest() != part.sha256:
            raise self._mismatch(part, f"has sha256 {packed.hexdigest()}", part.sha256)
        if rest or written != part.unpacked_bytes:
            raise self._mismatch(part, f"unpacks to {written} bytes with {rest} left", f"{part.unpacked_bytes} bytes")
        if unpacked.hexdigest() != part.unpacked_sha256:
            raise self._mismatch(part, f"unpacks to sha256 {unpacked.hexdigest()}", part.unpacked_sha256)
        return True

    def _mismatch(self, part: Part, found: str, expected: str) -> PackError:
        return PackError(f"{self.name}: {part.name} {found}, expected {expected}", hint=DAMAGED)


class _Source:
    """One file of a pack, of which no more is read than `length`; a file of another length is refused."""

    def __init__(self, pack: str, opener: Opener, name: str, length: int | None) -> None:
        self._name: Final = f"{pack}: {name}"
        self.seen: Sink = lambda _: None
        try:
            self._file, found = opener(name)
        except KeyError as error:
            raise PackError(f"{self._name} is missing", hint=DAMAGED) from error
        except OSError as error:
            raise PackError(f"{self._name} cannot be read: {error.strerror or error}") from error
        self._left = found if length is None else length
        if found != self._left:
            self._file.close()
            raise PackError(f"{self._name} has {found} bytes, expected {length}", hint=DAMAGED)

    def read(self, size: int) -> bytes:
        try:
            piece = self._file.read(min(size, self._left))
        except (OSError, tarfile.TarError) as error:
            raise PackError(f"{self._name} cannot be read: {error}") from error
        self._left -= len(piece)
        self.seen(piece)
        return piece

    def drain(self) -> int:
        """Read what is left; how many bytes that were."""
        count = 0
        while piece := self.read(READ_BYTES):
            count += len(piece)
        return count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Hashing:
    """Hashes in another thread: hashlib, the decompressor and the disk all work without Python's lock."""

    def __init__(self) -> None:
        self._pool: Final = ThreadPoolExecutor(1, "hashing")
        self._behind: deque[Future[None]] = deque()

    def add(self, digest: Any, piece: bytes) -> None:
        if len(self._behind) >= HASHED_BEHIND:
            self._behind.popleft().result()
        self._behind.append(self._pool.submit(digest.update, piece))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def _decompressed(source: _Source) -> Iterator[bytes]:
    """The pieces of one frame; a reader, since a decompressor that is given a piece returns all that comes of it."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    with decompressor.stream_reader(cast("BinaryIO", source), read_size=READ_BYTES, closefd=False) as reader:
        while piece := reader.read(CHUNK_BYTES):
            yield piece


def _write(file: Any, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]


# -- where a pack lies -------------------------------------------------------------------------------------------------


@contextmanager
def open_pack(path: Path) -> Iterator[Pack]:
    """Open a folder, the manifest.json in it, or a plain tar of them. Raises PackError.

    Files that the manifest does not name are never read.
    """
    with ExitStack() as stack:
        if path.is_dir() or path.name == MANIFEST:
            folder = path if path.is_dir() else path.parent
            yield Pack(str(folder), lambda name: _open_file(folder / name))
            return
        try:
            file = stack.enter_context(path.open("rb"))
            members, archive = stack.enter_context(_tar_members(path, file))
        except OSError as error:
            raise PackError(f"{path} cannot be read: {error.strerror or error}") from error
        yield Pack(str(path), lambda name: _open_member(archive, members[name]))


def _open_file(path: Path) -> tuple[BinaryIO, int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would keep waiting for a writer
    except FileNotFoundError as error:
        raise KeyError(path.name) from error
    file = os.fdopen(descriptor, "rb", buffering=0)
    status = os.fstat(descriptor)
    if not S_ISREG(status.st_mode):
        file.close()
        raise OSError(0, "it is no file")
    return cast("BinaryIO", file), status.st_size


def _open_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[BinaryIO, int]:
    return cast("BinaryIO", archive.extractfile(member)), member.size


class _Bounded:
    """A file of which no piece is read that is longer than a piece of ours or a header."""

    def __init__(self, file: BinaryIO) -> None:
        self._file: Final = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= max(MAX_HEADER_BYTES, READ_BYTES, MAX_MANIFEST_BYTES + 1):
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


@contextmanager
def _tar_members(path: Path, file: BinaryIO) -> Iterator[tuple[dict[str, tarfile.TarInfo], tarfile.TarFile]]:
    """The files that lie beside manifest.json, by name; in the archive itself or in one folder of it."""
    hint = "a pack is a folder, the manifest.json in it, or an uncompressed tar of the folder"
    found: dict[str, tarfile.TarInfo] = {}
    try:
        archive = tarfile.open(fileobj=cast("BinaryIO", _Bounded(file)), mode="r:")  # noqa: SIM115  closed below
        with archive:
            while member := archive.next():
                name = member.name.removeprefix("./")
                if not member.isreg() or member.sparse:
                    continue
                if name in found or len(found) > MAX_PARTS:
                    raise PackError(
                        f"{path}: {name[:100]} is there twice" if name in found else f"{path}: too many files"
                    )
                found[name] = member
            manifests = [name for name in found if name.rpartition("/")[2] == MANIFEST]
            if len(manifests) != 1:
                raise PackError(f"{path} holds {len(manifests) or 'no'} {MANIFEST}, expected one", hint=hint)
            folder = manifests[0].removesuffix(MANIFEST)
            yield {name.removeprefix(folder): one for name, one in found.items() if name.startswith(folder)}, archive
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise PackError(f"{path} is no pack: {error}", hint=hint) from error
