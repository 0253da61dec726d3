"""Papers out: JSON lines as an import reads them, and their vectors beside them."""

from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import numpy as np

from agent.errors import CorpusError
from agent.store.papers import PaperStore

READ_VECTORS: Final = 10_000


def export_papers(papers: PaperStore, stream: BinaryIO, model: str, vectors: Path | None, dimensions: int) -> int:
    """Write every paper, oldest change first; returns how many.

    `vectors` gets a .npy of i8, shape (papers, dimensions): row i for line i, zeros where a paper has none. Raises
    CorpusError when a file cannot be written.
    """
    keys: list[int] = []
    try:
        for key, paper in papers.papers():
            keys.append(key)
            stream.write(msgspec.json.encode(paper) + b"\n")
        stream.flush()
        if vectors:
            _export_vectors(papers, np.array(keys, np.int64), model, vectors, dimensions)
    except OSError as error:
        raise CorpusError(f"the export cannot be written: {error.strerror or error}") from error
    return len(keys)


def _export_vectors(
    papers: PaperStore, keys: np.ndarray[tuple[int], np.dtype[np.int64]], model: str, path: Path, dimensions: int
) -> None:
    matrix = np.zeros((len(keys), dimensions), np.int8)
    seq = 0
    while len((run := papers.vectors_since(seq, model, dimensions, READ_VECTORS)).keys):
        known = np.isin(run.keys, keys)  # a paper may have come since
        matrix[np.searchsorted(keys, run.keys[known])] = run.matrix[known]
        seq = run.last_seq
    with path.open("wb") as file:
        np.save(file, matrix)
