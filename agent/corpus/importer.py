"""Import: a stream of records into papers.db, searchable by keyword at once and by meaning as vectors follow."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.corpus.records import RecordError, parse_line
from agent.corpus.source import MAX_LINE_BYTES, open_lines
from agent.domain import Paper
from agent.errors import CorpusError
from agent.search.corpus_index import CorpusIndex
from agent.search.vectors import to_int8
from agent.store.papers import Int8Matrix

BATCH: Final = 1_000
BATCHES_A_CATCH_UP: Final = 10
"""So often papers become searchable by keyword while an import goes on."""
SHOWN_PROBLEMS: Final = 20

Progress = Callable[[int], None]
"""Called with the number of lines or papers done so far."""


class Problem(NamedTuple):
    line: int
    reason: str


class ImportReport(msgspec.Struct):
    """What became of the lines of one input. `problems` holds the first malformed ones."""

    lines: int = 0
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    older: int = 0
    malformed: int = 0
    vectors: int = 0
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
) -> ImportReport:
    """Read `path` (`-` for standard input) into the corpus, in transactions of BATCH lines.

    `vectors`: row i for input line i, malformed lines included. Malformed lines are counted and reported, never
    fatal. Raises CorpusError when the file cannot be read at all or breaks off; what came before is kept.
    """
    report = ImportReport()
    try:
        with open_lines(path) as lines:
            for number, batch in enumerate(_batches(_good_rows(lines, report)), 1):
                _store(batch, index, model, vectors, report)
                if number % BATCHES_A_CATCH_UP == 0:
                    index.catch_up_keywords()
                if progress:
                    progress(report.lines)
    finally:
        index.catch_up()
    if vectors is not None and len(vectors) != report.lines:
        raise CorpusError(
            f"--vectors has {len(vectors)} rows, but the input has {report.lines} lines",
            hint="row i must belong to line i; the papers are imported, check their vectors",
        )
    return report


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
            if len(report.problems) < SHOWN_PROBLEMS:
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


def _store(batch: list[_Row], index: CorpusIndex, model: str, vectors: Int8Matrix | None, report: ImportReport) -> None:
    done = index.papers.put([row.paper for row in batch])
    report.added += done.added
    report.updated += done.updated
    report.unchanged += done.unchanged
    report.older += done.older
    if vectors is None:
        return
    # Of a paper that stands twice in the batch only the last row's key is current; the others are passed over.
    keyed = [
        (key, row.position)
        for row, key in zip(batch, done.keys, strict=True)
        if key is not None and row.position < len(vectors)
    ]
    if keyed:
        keys, positions = zip(*keyed, strict=True)
        report.vectors += index.papers.put_vectors(model, keys, np.ascontiguousarray(vectors[list(positions)]))


def read_vectors(path: Path, dimensions: int) -> Int8Matrix:
    """Open a .npy of vectors, i8 or f32, shape (n, dimensions). Raises CorpusError saying what would be right."""
    try:
        matrix: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path} cannot be read as .npy: {error}") from error
    if matrix.ndim != 2 or matrix.shape[1] != dimensions:  # noqa: PLR2004  rows and columns
        raise CorpusError(f"{path} has shape {matrix.shape}, expected (lines, {dimensions})")
    if matrix.dtype == np.int8:
        return matrix  # type: ignore[return-value]
    if matrix.dtype == np.float32:
        return to_int8(np.asarray(matrix, np.float32))
    raise CorpusError(f"{path} holds {matrix.dtype}, expected int8 or float32")
