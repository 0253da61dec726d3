"""Lines of an input file, plain, gzip or zstd by its first bytes, or of standard input; one at a time in memory."""

import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import zstandard

from agent.errors import CorpusError

GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE: Final = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
MAX_LINE_BYTES: Final = 4 * 1024 * 1024
CHUNK_BYTES: Final = 128 * 1024


@contextmanager
def open_lines(path: str) -> Iterator[Iterator[tuple[int, bytes | None]]]:
    """Yield (line number, line) for each non-empty line; None for one longer than MAX_LINE_BYTES.

    `-` is standard input. Raises CorpusError when the file cannot be read or its compression is damaged.
    """
    try:
        with _raw(path) as raw:
            yield _numbered(_decompressed(raw), path)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def _raw(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdin.buffer
    else:
        with Path(path).open("rb") as file:
            yield file


def _decompressed(raw: BinaryIO) -> BinaryIO:
    head = raw.read(4)  # not peek(), which a slow pipe answers with what is there
    whole = io.BufferedReader(_Rejoined(head, raw), CHUNK_BYTES)
    if head.startswith(GZIP_MAGIC):
        return gzip.open(whole)  # type: ignore[return-value]
    if head == ZSTD_MAGIC or ZSTD_SKIPPABLE.match(head):
        return io.BufferedReader(_ZstdReader(whole), CHUNK_BYTES)
    return whole


class _Rejoined(io.RawIOBase):
    """The first bytes of a stream, read to see what it is, and then the rest; a pipe cannot go back."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            count: int = self._rest.readinto1(buffer)  # not readinto(): lines of a slow pipe are taken as they come
            return count
        count = min(len(buffer), len(self._head))
        buffer[:count], self._head = self._head[:count], self._head[count:]
        return count


class _ZstdReader(io.RawIOBase):
    """Frame after frame; unlike the library's own reader it notices a file that breaks off inside a frame."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = (self._frame.unused_data if self._frame and self._frame.eof else b"") or self._raw.read(CHUNK_BYTES)
            if not chunk:
                if self._frame and not self._frame.eof:
                    raise EOFError("the compressed data breaks off")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            self._ready = memoryview(self._frame.decompress(chunk))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _numbered(stream: BinaryIO, path: str) -> Iterator[tuple[int, bytes | None]]:
    number = 0
    try:
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE_BYTES)
                yield number, None
                continue
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            yield number, line if line.strip() else b""
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise CorpusError(f"{path}: damaged or truncated after line {number}: {error}") from error
