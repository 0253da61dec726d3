"""Nearest vectors, by usearch.

A few usearch segments, mapped from disk, and a short tail in memory that is scanned exactly. Segments give
candidates; scores are always computed here, from the f32 query and the stored int8 vectors, so that results of
several segments and of the tail compare.

Like the keyword index this is a cache of papers.db, in the files that segments.py describes.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.crash_points import crash_point
from agent.errors import CorpusError
from agent.search.native import damage_of
from agent.search.segments import STATE, Near, Segment, file_crc, files_of, problems_of
from agent.search.similarity import Floats, closest, cosines
from agent.search.state import DISK_HINT, read_state, write_state
from agent.store.rows import Int8Matrix, StoredVectors

log = logging.getLogger(__name__)

TAIL_ROWS: Final = 2_048
"""A longer tail becomes a segment. Scanning it takes about 0.3 ms; adding to a graph 0.5 ms a vector."""
SPARE: Final = 8
"""One in so many candidates is kept beyond those wanted."""
STALE_SHARE: Final = 4
"""A segment of which one row in so many belongs to no current paper is made again without them."""

Keys = NDArray[np.int64]


class _View(NamedTuple):
    """What a search sees; replaced as a whole, never changed."""

    segments: tuple[Segment, ...]
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
        segment_rows: int,
        writable: bool,
        check: bool,
        threads: int | None = None,
    ) -> None:
        """Open the segments of this `corpus` and `model`; others, and damaged ones, are forgotten.

        (They are deleted if `writable`.) Segments that reach beyond `last_vector` are of another state of the corpus.
        One of more than `segment_rows` is not merged any more: building takes memory. With `check` every byte is read
        first, as after a crash: a damaged graph can kill the process. `threads` build a segment, by default one a core.
        """
        self.folder: Final = folder
        self.model: Final = model
        self.dimensions: Final = dimensions
        self._corpus: Final = corpus
        self._last_vector = last_vector
        self._segment_rows: Final = segment_rows
        self._threads: Final = threads
        if writable:
            folder.mkdir(parents=True, exist_ok=True)
        self._open(check=check)
        if writable:
            self._sweep()

    def _open(self, *, check: bool = False) -> None:
        self._crcs: dict[str, int] = {}  # of the files of the segments
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
        crash_point("vectors.drop:no-state")
        self._open()
        self._sweep()

    def __len__(self) -> int:
        return sum(map(len, self._view.segments)) + len(self._view.tail_keys)

    def _open_segments(self, *, check: bool) -> tuple[tuple[Segment, ...], int]:
        try:
            state = read_state(self.folder / STATE)
            if (state["corpus"], state["model"]) != (self._corpus, self.model) or state["seq"] > self._last_vector():
                return (), 0
            if check and (problem := next(problems_of(self.folder, self._corpus, self._last_vector()), None)):
                raise ValueError(problem)  # noqa: TRY301  as what opening finds
            segments = tuple(Segment(self.folder, name, self.dimensions) for name in state["segments"])
            self._crcs = {file: state["crc32"][file] for name in state["segments"] for file in files_of(name)}
            return segments, int(state["seq"])
        except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
            if (self.folder / STATE).exists():
                log.warning("the index of vectors is damaged: %s; it is made anew", error)
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

    @property
    def tail_keys(self) -> Keys:
        return self._view.tail_keys

    def keep_of_tail(self, current: Keys) -> None:
        """Leave the vectors of papers that are no longer `current` out of the tail."""
        kept = np.isin(self._view.tail_keys, current)
        if not kept.all():
            view = self._view
            self._view = view._replace(tail_keys=view.tail_keys[kept], tail=view.tail[kept])

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
        while keep and len(keep[-1]) <= 2 * rows and len(keep[-1]) + rows <= self._segment_rows:
            segment = keep.pop()
            keys.append(segment.keys)
            matrices.append(segment.matrix[segment.rows])
            rows += len(segment)
        new = self._built(f"{self.reached:012d}", np.concatenate(keys), np.concatenate(matrices))
        empty = np.empty(0, np.int64), np.empty((0, self.dimensions), np.int8)
        self._commit(_View((*keep, new), *empty), self.reached)

    def compact(self, current: Keys) -> None:
        """Leave the vectors of papers that are no longer `current` out of segments that hold many of them."""
        kept: list[Segment] = []
        for number, segment in enumerate(self._view.segments):
            alive = np.isin(segment.keys, current)
            if alive.sum() * STALE_SHARE >= len(segment) * (STALE_SHARE - 1):
                kept.append(segment)
            elif alive.any():
                name = f"{self._segments_reach:012d}-{number}"
                kept.append(self._built(name, segment.keys[alive], segment.matrix[segment.rows[alive]]))
        self._commit(self._view._replace(segments=tuple(kept)), self._segments_reach)

    def _built(self, name: str, keys: Keys, matrix: Int8Matrix) -> Segment:
        Segment.build(self.folder, name, keys, matrix, threads=self._threads)
        try:
            return Segment(self.folder, name, self.dimensions)
        except (OSError, ValueError, RuntimeError) as error:
            # numpy and usearch do not look whether the last bytes of a file got to the disk.
            raise CorpusError(f"segment {name} cannot be written: {error}", hint=DISK_HINT) from error

    def _commit(self, view: _View, reached: int) -> None:
        """Make the segments of a view those of the folder, and search them."""
        before = set(self._view.segments)
        crcs: dict[str, int] = {}
        for segment in view.segments:
            for file in files_of(segment.name):
                crcs[file] = self._crcs[file] if segment in before else file_crc(self.folder / file)
        names = [segment.name for segment in view.segments]
        state = {"corpus": self._corpus, "model": self.model, "seq": reached, "segments": names, "crc32": crcs}
        crash_point("vectors.commit:before-state")
        write_state(self.folder / STATE, state)
        self._view, self._segments_reach, self._crcs = view, reached, crcs
        self._sweep()

    def _sweep(self) -> None:
        """Delete files of segments that are in use no more; a search that still maps one keeps its bytes."""
        used = {segment.name for segment in self._view.segments}
        for path in self.folder.glob("*"):
            if path.name != STATE and path.name.split(".", 1)[0] not in used:
                path.unlink(missing_ok=True)
                crash_point("vectors.sweep:between-files")

    # -- searching --------------------------------------------------------------------------------------------

    def nearest(self, query: Floats, limit: int) -> Keys:
        """Candidates: the `limit` nearest and a few more, in no order.

        Raises DamagedIndexError, as all of these do.
        """
        view = self._view
        with damage_of("vectors"):
            found = [segment.search(query, min(limit, len(segment))) for segment in view.segments]
            if len(view.tail_keys) or not found:
                rows = closest(query, view.tail, limit)
                found.append(Near(view.tail_keys[rows], 1 - cosines(query, view.tail[rows])))
        keys = np.concatenate([near.keys for near in found])
        few = limit + limit // SPARE
        if len(keys) <= few:
            return keys
        # Distances by the int8 query are off by a little, so a few more than wanted are kept.
        return keys[np.argpartition(np.concatenate([near.distances for near in found]), few)[:few]]

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


def _segments_reach(folder: Path) -> int:
    try:
        return int(read_state(folder / STATE)["seq"])
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
    last = len(rising) - 1
    if rising[last] - rising[0] == last:  # without a gap, as after an import: no search, no cache misses
        at = wanted - rising[0]
        return np.clip(at, 0, last), (at >= 0) & (at <= last)
    at = np.minimum(np.searchsorted(rising, wanted), last)
    return at, rising[at] == wanted
