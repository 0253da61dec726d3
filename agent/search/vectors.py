"""Nearest vectors, by usearch.

A few usearch segments, mapped from disk, and a short tail in memory that is scanned exactly. Segments give
candidates; scores are always computed here, from the f32 query and the stored int8 vectors, so that results of
several segments and of the tail compare.

A segment is two files: the graph (`N.usearch`), and the keys of its rows in rising order with the rows they
stand in (`N.rows.npy`). usearch writes the matrix of vectors at the head of its file (two u32 for rows and
columns, then row after row), so the same bytes serve the graph and an exact scan, mapped once. Each segment is
checked for that when it is made.

Like the keyword index this is a cache of papers.db: `segments.json` names the corpus, the model, the segments with the
CRC-32 of their files, and says up to which vector (`seq`) they reach.
"""

import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.errors import CorpusError
from agent.paths import sync_file, write_file
from agent.search.native import angular_distances, damage_of, usearch_index
from agent.store.papers import Int8Matrix, StoredVectors

TAIL_ROWS: Final = 2_048
"""A longer tail becomes a segment. Scanning it takes about 0.3 ms; adding to a graph 0.5 ms a vector."""
SCANNED_ROWS: Final = 4_096
"""A segment of at most so many rows is scanned: that takes no longer than its graph, and misses nothing."""
EXACT_ROWS: Final = 1_024
"""So many rows are compared with the f32 query at once; of more, the int8 query first picks those worth it."""
WORTH: Final = 4
"""Times the rows wanted: so many are compared with the f32 query after the int8 query has picked them."""
SEGMENT_ROWS: Final = 200_000
"""A larger segment is not merged any more: building it would need too much memory on a small board."""
STATE: Final = "segments.json"
HEADER_BYTES: Final = 8
# Of 100,000 papers these find 0.987 of the true ten nearest; 16, 128 and 192 find 0.967 (docs/measurements.md).
CONNECTIVITY: Final = 20
EXPANSION_ADD: Final = 256
EXPANSION_SEARCH: Final = 192

Floats = NDArray[np.float32]
Keys = NDArray[np.int64]


def to_int8(vectors: Floats) -> Int8Matrix:
    """Scale each row by its own largest component to +-127; cosines do not mind the scale."""
    largest = np.maximum(np.abs(vectors).max(axis=-1, keepdims=True), 1e-12)
    scaled: Int8Matrix = np.rint(vectors / largest * 127).astype(np.int8)
    return scaled


def cosines(query: Floats, matrix: Int8Matrix) -> Floats:
    """Cosine of a unit f32 query with int8 rows of any scale; shape (rows,)."""
    rows = matrix.astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    result: Floats = (rows @ query) / np.maximum(norms, 1e-12)
    return result


def closest(query: Floats, matrix: Int8Matrix, limit: int) -> NDArray[np.intp]:
    """Positions of the `limit` rows nearest to a unit f32 query, in no order."""
    if len(matrix) <= limit:
        return np.arange(len(matrix))
    if len(matrix) <= max(EXACT_ROWS, WORTH * limit):
        return np.argpartition(-cosines(query, matrix), limit)[:limit]
    rough = angular_distances(to_int8(query), matrix)
    worth = np.argpartition(rough, WORTH * limit)[: WORTH * limit]
    best: NDArray[np.intp] = worth[np.argpartition(-cosines(query, matrix[worth]), limit)[:limit]]
    return best


def file_crc(path: Path) -> int:
    """CRC-32 of a file's content."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc


def _files_of(segment: str) -> tuple[str, str]:
    return f"{segment}.usearch", f"{segment}.rows.npy"


class _Segment:
    """One immutable graph on disk and the same vectors as a mapped matrix."""

    def __init__(self, folder: Path, name: str, dimensions: int) -> None:
        self.name: Final = name
        path, rows_path = (folder / file for file in _files_of(name))
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

    def search(self, query: Floats, small: Int8Matrix, limit: int) -> Keys:
        """About the `limit` nearest; `small` is the query as int8."""
        if len(self) <= SCANNED_ROWS:
            return self.keys[np.isin(self.rows, closest(query, self.matrix, limit))]
        with self._guard:
            matches = self._graph.search(small, limit, threads=1)
        return np.asarray(matches.keys).astype(np.int64)

    @staticmethod
    def build(folder: Path, name: str, keys: Keys, matrix: Int8Matrix) -> None:
        """Write a segment beside the others; it is not used before segments.json names it."""
        graph = usearch_index(
            ndim=matrix.shape[1],
            metric="cos",
            dtype="i8",
            connectivity=CONNECTIVITY,
            expansion_add=EXPANSION_ADD,
        )
        graph.add(keys, matrix, threads=os.cpu_count() or 1)
        path, rows_path = (folder / file for file in _files_of(name))
        graph.save(str(path))
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
        sync_file(path)
        sync_file(rows_path)


class _View(NamedTuple):
    """What a search sees; replaced as a whole, never changed."""

    segments: tuple[_Segment, ...]
    tail_keys: Keys
    tail: Int8Matrix


class VectorIndex:
    """A folder with segments. One process writes; searches may run in any thread."""

    def __init__(
        self,
        folder: Path,
        corpus: str,
        model: str,
        dimensions: int,
        last_vector: Callable[[], int],
        *,
        writable: bool,
        check: bool,
    ) -> None:
        """Open the segments of this `corpus` and `model`; others, and damaged ones, are forgotten.

        (They are deleted if `writable`.) Segments that reach beyond `last_vector` are of another state of the corpus.
        With `check` every byte is read first, as after a crash: a damaged graph can kill the process.
        """
        self.folder: Final = folder
        self.model: Final = model
        self.dimensions: Final = dimensions
        self._corpus: Final = corpus
        self._last_vector = last_vector
        if writable:
            folder.mkdir(parents=True, exist_ok=True)
        self._open(check=check)
        if writable:
            self._sweep()

    def _open(self, *, check: bool = False) -> None:
        segments, self.reached = self._open_segments(check=check)
        self._segments_reach = self.reached
        self._view = _View(segments, np.empty(0, np.int64), np.empty((0, self.dimensions), np.int8))

    def reload(self) -> None:
        """See the segments that another process has written since; the tail is then to be read again."""
        if _segments_reach(self.folder) != self._segments_reach:
            self._open()

    def drop(self) -> None:
        """Forget everything, to be filled anew."""
        (self.folder / STATE).unlink(missing_ok=True)
        self._open()
        self._sweep()

    def __len__(self) -> int:
        return sum(map(len, self._view.segments)) + len(self._view.tail_keys)

    def _open_segments(self, *, check: bool) -> tuple[tuple[_Segment, ...], int]:
        try:
            state = _read_state(self.folder)
            if (state["corpus"], state["model"]) != (self._corpus, self.model) or state["seq"] > self._last_vector():
                return (), 0
            if check and any(problems_of(self.folder)):
                return (), 0
            segments = tuple(_Segment(self.folder, name, self.dimensions) for name in state["segments"])
            return segments, int(state["seq"])
        except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, RuntimeError):
            return (), 0

    # -- writing ----------------------------------------------------------------------------------------------

    def extend(self, vectors: StoredVectors) -> None:
        """Make vectors searchable at once, in memory; they are in papers.db already."""
        view = self._view
        keys = np.concatenate([view.tail_keys, vectors.keys])
        matrix = np.concatenate([view.tail, vectors.matrix])
        order = np.argsort(keys)
        self._view = view._replace(tail_keys=keys[order], tail=matrix[order])
        self.reached = vectors.last_seq

    def tail_is_long(self) -> bool:
        return len(self._view.tail_keys) > TAIL_ROWS

    def flush(self) -> None:
        """Turn the tail into a segment, merged with the latest ones while they are not much larger."""
        view = self._view
        if not len(view.tail_keys):
            return
        keep = list(view.segments)
        keys, matrices = [view.tail_keys], [view.tail]
        rows = len(view.tail_keys)
        while keep and len(keep[-1]) <= 2 * rows and len(keep[-1]) + rows <= SEGMENT_ROWS:
            segment = keep.pop()
            keys.append(segment.keys)
            matrices.append(segment.matrix[segment.rows])
            rows += len(segment)
        name = f"{self.reached:012d}"
        _Segment.build(self.folder, name, np.concatenate(keys), np.concatenate(matrices))
        names = [*(segment.name for segment in keep), name]
        crcs = {file: file_crc(self.folder / file) for file in _files_of(name)}
        known = _read_state(self.folder)["crc32"] if keep else {}
        crcs |= {file: known[file] for segment in keep for file in _files_of(segment.name)}
        state = {"corpus": self._corpus, "model": self.model, "seq": self.reached, "segments": names, "crc32": crcs}
        write_file(self.folder / STATE, json.dumps(state).encode())
        segments = (*keep, _Segment(self.folder, name, self.dimensions))
        self._view = _View(segments, np.empty(0, np.int64), np.empty((0, self.dimensions), np.int8))
        self._segments_reach = self.reached
        self._sweep()

    def _sweep(self) -> None:
        """Delete files of segments that are in use no more; a search that still maps one keeps its bytes."""
        used = {segment.name for segment in self._view.segments}
        for path in self.folder.glob("*"):
            if path.name != STATE and path.name.split(".", 1)[0] not in used:
                path.unlink(missing_ok=True)

    # -- searching --------------------------------------------------------------------------------------------

    def nearest(self, query: Floats, limit: int) -> Keys:
        """Candidates: about the `limit` nearest of each segment and of the tail, in no order.

        Raises DamagedIndexError, as all of these do.
        """
        view = self._view
        small = to_int8(query)
        with damage_of("vectors"):
            found = [segment.search(query, small, min(limit, len(segment))) for segment in view.segments]
            found.append(view.tail_keys[closest(query, view.tail, limit)])
            return np.concatenate(found)

    def nearest_among(self, query: Floats, keys: Keys, limit: int) -> Keys:
        """The `limit` nearest of the given papers, by an exact scan; those without a vector come last."""
        view = self._view
        with damage_of("vectors"):
            places = list(_places(view, keys))
            matrix = np.concatenate([part.take(at, axis=0) for part, at, _ in places])
            owners = np.concatenate([keys[found] for _, _, found in places])
            near = owners[closest(query, matrix, limit)]
            if len(near) < limit and len(near) < len(keys):
                near = np.concatenate([near, np.setdiff1d(keys, near)])[:limit]
            return near

    def scores(self, query: Floats, keys: Keys) -> Floats:
        """Cosines of given papers, computed exactly; NaN for those without a vector."""
        result = np.full(len(keys), np.nan, np.float32)
        with damage_of("vectors"):
            for matrix, at, found in _places(self._view, keys):
                result[found] = cosines(query, matrix.take(at, axis=0))
        return result


def problems_of(folder: Path) -> Iterator[str]:
    """What is wrong with the files of an index, in words. Reads all of them."""
    if not folder.is_dir() or not (state_path := folder / STATE).is_file():
        return
    try:
        state = _read_state(folder)
        expected = {file: state["crc32"][file] for segment in state["segments"] for file in _files_of(segment)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{folder.name}/{state_path.name}: not readable: {error!r}"
        return
    for file, crc in expected.items():
        try:
            if file_crc(folder / file) != crc:
                yield f"{folder.name}/{file}: damaged: its checksum does not match"
        except OSError as error:
            yield f"{folder.name}/{file}: {error.strerror}"


def _read_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / STATE).read_bytes())
    return state


def _segments_reach(folder: Path) -> int:
    try:
        return int(_read_state(folder)["seq"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _places(view: _View, keys: Keys) -> Iterator[tuple[Int8Matrix, NDArray[np.intp], NDArray[np.bool_]]]:
    """Where the vectors of papers stand: a matrix, the rows in it, and which of `keys` they belong to."""
    for segment in view.segments:
        at, found = _locate(segment.keys, keys)
        yield segment.matrix, segment.rows[at[found]], found
    if len(view.tail_keys) or not view.segments:
        at, found = _locate(view.tail_keys, keys)
        yield view.tail, at[found], found


def _locate(rising: Keys, wanted: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each wanted key stands in `rising`, and whether it is there at all."""
    if not len(rising):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), np.bool_)
    at = np.minimum(np.searchsorted(rising, wanted), len(rising) - 1)
    return at, rising[at] == wanted


def _order_by_content(matrix: Any) -> NDArray[np.intp]:
    rows = np.ascontiguousarray(matrix).view(np.dtype((np.void, matrix.shape[1]))).ravel()
    order: NDArray[np.intp] = np.argsort(rows, kind="stable")
    return order
