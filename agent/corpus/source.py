"""Lines of an input file, plain, gzip or zstd by its first bytes, or of standard input; one at a time in memory."""

import gzip
import io
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
MAX_LINE_BYTES: Final = 4 * 1024 * 1024
CHUNK_BYTES: Final = 128 * 1024


@contextmanager
def open_lines(path: str) -> Iterator[Iterator[tuple[int, bytes | None]]]:
    """Yield (line number, line) for each non-empty line; None for one longer than MAX_LINE_BYTES.

    `-` is standard input. Raises CorpusError when the file cannot be read or its compression is damaged.
    """
    try:
        with _raw(path) as raw:
            buffered = io.BufferedReader(raw, CHUNK_BYTES) if isinstance(raw, io.RawIOBase) else raw
            yield _numbered(_decompressed(buffered), path)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def _raw(path: str) -> Iterator[Any]:
    if path == "-":
        yield sys.stdin.buffer
    else:
        with Path(path).open("rb") as file:
            yield file


def _decompressed(raw: Any) -> BinaryIO:
    head = raw.peek(4)[:4]
    if head.startswith(GZIP_MAGIC):
        return gzip.open(raw)  # type: ignore[return-value]
    if head == ZSTD_MAGIC:
        return io.BufferedReader(_ZstdReader(raw), CHUNK_BYTES)
    return raw  # type: ignore[no-any-return]


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
            elif line.strip():
                yield number, line
            else:
                yield number, b""
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise CorpusError(f"{path}: damaged or truncated after line {number}: {error}") from error
