"""Segments of the vector index: each two files that never change, mapped from disk.

The graph (`N.usearch`), and the keys of its rows in rising order with the rows they stand in (`N.rows.npy`). usearch
writes the matrix of vectors at the head of its file (two u32 for rows and columns, then row after row), so the same
bytes serve the graph and an exact scan, mapped once. Each segment is checked for that when it is made.

`segments.json` names the corpus, the model, the segments with the CRC-32 of their files, and says up to which vector
(`seq`) they reach.
"""

import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.crash_points import crash_point
from agent.errors import CorpusError
from agent.paths import sync_file
from agent.search.native import usearch_index
from agent.search.similarity import Floats, closest, cosines, to_int8
from agent.search.state import DISK_HINT, read_state
from agent.store.rows import Int8Matrix

SCANNED_ROWS: Final = 4_096
"""A segment of at most so many rows is scanned: that takes no longer than its graph, and misses nothing."""
STATE: Final = "segments.json"
HEADER_BYTES: Final = 8
# Of 100,000 papers these find 0.987 of the true ten nearest; 16, 128 and 192 find 0.967 (docs/search.md).
CONNECTIVITY: Final = 20
EXPANSION_ADD: Final = 256
EXPANSION_SEARCH: Final = 192

Keys = NDArray[np.int64]


class Near(NamedTuple):
    """Papers near a query, in no order, and about 1 - cosine of each: enough to compare segments by."""

    keys: Keys
    distances: NDArray[np.float32]


class Segment:
    """One immutable graph on disk and the same vectors as a mapped matrix."""

    def __init__(self, folder: Path, name: str, dimensions: int) -> None:
        self.name: Final = name
        path, rows_path = (folder / file for file in files_of(name))
        rows = np.load(rows_path, mmap_mode="r")
        self.keys: Final[Keys] = np.asarray(rows[0])
        self.rows: Final[Keys] = np.asarray(rows[1])
        head = np.fromfile(path, np.uint32, count=2)
        if rows.shape[0] != 2 or head.tolist() != [rows.shape[1], dimensions]:  # noqa: PLR2004  keys and rows
            raise ValueError(f"{path.name} holds {head.tolist()} vectors, expected {(rows.shape[1], dimensions)}")
        if not np.array_equal(np.sort(rows[1]), np.arange(rows.shape[1])):
            raise ValueError(f"{rows_path.name} does not name each row once")
        mapped = np.memmap(path, np.int8, "r", offset=HEADER_BYTES, shape=(rows.shape[1], dimensions))
        self.matrix: Final[Int8Matrix] = np.asarray(mapped)  # indexing the subclass costs more than the copy
        self._graph = usearch_index(
            ndim=dimensions,
            metric="cos",
            dtype="i8",
            expansion_search=EXPANSION_SEARCH,
            enable_key_lookups=False,
        )
        self._graph.view(str(path))
        # usearch keeps one working area a graph for the calling thread.
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self.keys)

    def search(self, query: Floats, limit: int) -> Near:
        """About the `limit` nearest."""
        if len(self) <= SCANNED_ROWS:
            rows = closest(query, self.matrix, limit)
            return Near(self._keys_of(rows), 1 - cosines(query, self.matrix[rows]))
        with self._guard:
            matches = self._graph.search(to_int8(query), limit, threads=1)
        return Near(np.asarray(matches.keys).astype(np.int64), np.asarray(matches.distances))

    def _keys_of(self, rows: NDArray[np.intp]) -> Keys:
        of_row = np.empty(len(self), np.int64)
        of_row[self.rows] = self.keys
        keys: Keys = of_row[rows]
        return keys

    @staticmethod
    def build(folder: Path, name: str, keys: Keys, matrix: Int8Matrix, *, threads: int | None = None) -> None:
        """Write a segment beside the others; it is not used before segments.json names it.

        One thread makes the same bytes of the same vectors, several (by default one a core) make them sooner.
        """
        graph = usearch_index(
            ndim=matrix.shape[1],
            metric="cos",
            dtype="i8",
            connectivity=CONNECTIVITY,
            expansion_add=EXPANSION_ADD,
        )
        graph.add(keys, matrix, threads=threads or os.cpu_count() or 1)
        path, rows_path = (folder / file for file in files_of(name))
        for file in (path, rows_path):
            file.unlink(missing_ok=True)  # never written over: a copy of the generation may share its bytes
        try:
            graph.save(str(path))
        except RuntimeError as error:  # usearch does not say what the system said
            raise CorpusError(f"{path} cannot be written: {error}", hint=DISK_HINT) from error
        crash_point("segments.build:graph-alone")
        # Several threads fill the rows in any order, so each row is found again by its content. Equal vectors
        # are interchangeable. This also proves that the file is laid out as we read it.
        stored = np.memmap(path, np.int8, "r", offset=HEADER_BYTES, shape=matrix.shape)
        by_content, given = _order_by_content(stored), _order_by_content(matrix)
        if not np.array_equal(stored[by_content], matrix[given]):
            raise CorpusError(f"{path}: usearch lays out its files in another way than this version expects")
        rows = np.empty(len(keys), np.int64)
        rows[given] = by_content
        order = np.argsort(keys)
        np.save(rows_path, np.stack([keys[order], rows[order]]))
        crash_point("segments.build:before-sync")
        sync_file(path)
        sync_file(rows_path)


def file_crc(path: Path) -> int:
    """CRC-32 of a file's content."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc


def files_of(segment: str) -> tuple[str, str]:
    return f"{segment}.usearch", f"{segment}.rows.npy"


def problems_of(folder: Path, corpus: str, last_vector: int) -> Iterator[str]:
    """What is wrong with the files of an index of this corpus, in words. Reads all of them."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        state = read_state(folder / STATE)
        expected = {file: state["crc32"][file] for segment in state["segments"] for file in files_of(segment)}
        foreign = state["corpus"] != corpus or state["seq"] > last_vector
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{folder.name}/{STATE}: not readable: {error!r}"
        return
    if foreign:
        yield f"{folder.name}/{STATE}: of another corpus, or of another state of this one"
    for file, crc in expected.items():
        try:
            if file_crc(folder / file) != crc:
                yield f"{folder.name}/{file}: damaged: its checksum does not match"
        except OSError as error:
            yield f"{folder.name}/{file}: {error.strerror}"


def _order_by_content(matrix: Any) -> NDArray[np.intp]:
    rows = np.ascontiguousarray(matrix).view(np.dtype((np.void, matrix.shape[1]))).ravel()
    order: NDArray[np.intp] = np.argsort(rows, kind="stable")
    return order
