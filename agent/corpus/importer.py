"""Import: a stream of records into papers.db, searchable by keyword at once and by meaning as vectors follow."""

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from agent.corpus.records import RecordError, parse_line
from agent.corpus.source import MAX_LINE_BYTES, open_lines
from agent.domain import Paper
from agent.errors import CorpusError
from agent.search.corpus_index import CorpusIndex
from agent.search.similarity import to_int8
from agent.store.generations import EMBEDDING_LOCK, FolderLock
from agent.store.journal import Journal, OwnChange
from agent.store.rows import Int8Matrix

BATCH: Final = 1_000
BATCHES_A_CATCH_UP: Final = 10
"""So often papers become searchable by keyword while an import goes on."""
KEPT_PROBLEMS: Final = 1_000

Keys = NDArray[np.int64]
Progress = Callable[[int], None]
"""Called with the number of lines or papers done so far."""


class Problem(NamedTuple):
    line: int
    reason: str


class ImportReport(msgspec.Struct):
    """What became of the lines of one input.

    `unusable_vectors` are rows without a direction (zeros, NaN, infinity); `problems` holds the first malformed lines.
    """

    lines: int = 0
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    older: int = 0
    malformed: int = 0
    vectors: int = 0
    unusable_vectors: int = 0
    problems: list[Problem] = []


class _Row(NamedTuple):
    """A good line and its place among the rows of a vectors file."""

    position: int
    paper: Paper


def import_papers(
    path: str,
    index: CorpusIndex,
    model: str,
    *,
    vectors: Int8Matrix | None = None,
    progress: Progress | None = None,
    report: ImportReport | None = None,
    journal: Journal | None = None,
) -> ImportReport:
    """Read `path` (`-` for standard input) into the corpus, in transactions of BATCH lines.

    `vectors`: row i for input line i, malformed lines included; a row of zeros is no vector. They are stored at the
    end, once it is known that there is one for each line: else all of them might be shifted. Malformed lines are
    counted and reported, never fatal. An import is not journalled, but what `journal` says of these papers is brought
    up to date: one that was removed by hand, and comes back, is not removed again.

    Raises CorpusError when the file cannot be read at all or breaks off, or vectors and lines do not match. The
    papers that came before are kept, and `report` says what became of them: it is filled as the import goes on.
    """
    report = ImportReport() if report is None else report
    keys, positions = array("q"), array("q")
    try:
        with open_lines(path) as lines, _nobody_embeds(index) if vectors is not None else nullcontext():
            for number, batch in enumerate(_batches(_good_rows(lines, report)), 1):
                stored = store_batch(batch, index, report, journal)
                if vectors is not None:
                    keys.extend(key or 0 for key in stored)
                    positions.extend(row.position for row in batch)
                if number % BATCHES_A_CATCH_UP == 0:
                    index.catch_up_keywords()
                if progress:
                    progress(report.lines)
            if vectors is not None:
                _store_vectors(vectors, np.array(keys), np.array(positions), index, model, report)
    finally:
        index.catch_up()
    return report


@contextmanager
def _nobody_embeds(index: CorpusIndex) -> Iterator[None]:
    """Keep agent and commands from embedding papers that are about to get a given vector."""
    with FolderLock(index.folder / EMBEDDING_LOCK) as lock:
        lock.acquire()  # whoever is at it already may go on; their vectors are as good
        yield


def _good_rows(lines: Iterator[tuple[int, bytes | None]], report: ImportReport) -> Iterator[_Row]:
    for number, line in lines:
        report.lines = number
        if line == b"":
            continue
        try:
            if line is None:
                raise RecordError(f"longer than {MAX_LINE_BYTES} bytes")  # noqa: TRY301  one place reports
            yield _Row(number - 1, parse_line(line))
        except RecordError as error:
            report.malformed += 1
            if len(report.problems) < KEPT_PROBLEMS:
                report.problems.append(Problem(number, str(error)))


def _batches(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    """Runs of BATCH rows; when the input breaks off, what came before is still handed on."""
    batch: list[_Row] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH:
                yield batch
                batch = []
    except CorpusError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def store_batch(
    batch: list[_Row], index: CorpusIndex, report: ImportReport, journal: Journal | None
) -> list[int | None]:
    with index.papers.transaction():
        done = index.papers.put([row.paper for row in batch])
        if journal:
            journal.record([OwnChange(row.paper.arxiv_id, row.paper) for row in batch], only_known=True)
    report.added += done.added
    report.updated += done.updated
    report.unchanged += done.unchanged
    report.older += done.older
    return done.keys


def _store_vectors(
    vectors: Int8Matrix, keys: Keys, positions: Keys, index: CorpusIndex, model: str, report: ImportReport
) -> None:
    if len(vectors) != report.lines:
        raise CorpusError(
            f"--vectors has {len(vectors)} rows, but the input has {report.lines} lines",
            hint="row i must belong to line i; the papers are imported, without these vectors",
        )
    for start in range(0, len(keys), BATCH):
        part = slice(start, start + BATCH)
        rows = np.ascontiguousarray(vectors[positions[part]])
        current = keys[part] > 0  # 0 where the corpus holds a newer version
        usable = current & rows.any(axis=1)
        report.unusable_vectors += int(current.sum() - usable.sum())
        # The key of a paper that a later line has replaced is no longer there, and is passed over.
        report.vectors += index.papers.put_vectors(model, keys[part][usable].tolist(), rows[usable])


def read_vectors(path: Path, dimensions: int) -> Int8Matrix:
    """Open a .npy of vectors, i8 or f32, shape (n, dimensions); rows with NaN or infinity become zeros: no vector.

    Raises CorpusError saying what would be right.
    """
    try:
        matrix: NDArray[Any] = open_memmap(path, mode="r")
    except Exception as error:  # the library raises nothing narrower for a damaged header
        raise CorpusError(f"{path} cannot be read as .npy: {error}") from error
    if matrix.ndim != 2 or matrix.shape[1] != dimensions:  # noqa: PLR2004  rows and columns
        raise CorpusError(f"{path} has shape {matrix.shape}, expected (lines, {dimensions})")
    if matrix.dtype == np.float32:
        matrix = _scaled(matrix)
    if matrix.dtype != np.int8:
        raise CorpusError(f"{path} holds {matrix.dtype}, expected int8 or float32")
    if len(matrix) and not matrix.any():
        raise CorpusError(f"{path} holds no vector: every row is zeros, NaN or infinity")
    return matrix


def _scaled(matrix: NDArray[np.float32]) -> Int8Matrix:
    """Part by part, since the whole file as floats may be larger than the memory."""
    scaled = np.zeros(matrix.shape, np.int8)
    for start in range(0, len(matrix), BATCH):
        part = np.asarray(matrix[start : start + BATCH])
        finite = np.isfinite(part).all(axis=1)
        scaled[start : start + BATCH][finite] = to_int8(part[finite])
    return scaled
