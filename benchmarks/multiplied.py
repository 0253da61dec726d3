"""750,000 papers out of the real 100,000: copies with other words' order, other ids and noise on their vectors.

Everything is seeded, so two machines make the same corpus. The first copy is the real papers as they are.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import zstandard

from benchmarks.bare import int8_of

SEED: Final = 750
NOISE: Final = 20.0
"""Standard deviation a component, of +-127: a copy's cosine to its original is about 0.9, as that of near papers."""


def write_multiplied(papers: list[dict[str, Any]], vectors: Path, rows: int, file: Path, matrix: Path) -> None:
    """Write `rows` papers as JSON lines to `file` and their vectors to `matrix`, both beside and then renamed."""
    _replace(matrix, lambda path: _write_vectors(np.load(vectors, mmap_mode="r"), rows, path))
    _replace(file, lambda path: _write_papers(papers, rows, path))


def _replace(path: Path, write: Any) -> None:
    beside = path.with_name(f"unfinished-{path.name}")
    write(beside)
    beside.replace(path)


def _write_vectors(original: Any, rows: int, path: Path) -> None:
    written = np.lib.format.open_memmap(path, "w+", np.int8, (rows, original.shape[1]))
    for copy, (first, last) in enumerate(_copies(rows, len(original))):
        part = np.asarray(original[: last - first], np.float32)
        if copy:
            part += np.random.default_rng([SEED, copy]).normal(0, NOISE, part.shape).astype(np.float32)
        written[first:last] = int8_of(part)
    written.flush()


def _write_papers(papers: list[dict[str, Any]], rows: int, path: Path) -> None:
    with zstandard.open(path, "wb") as lines:
        for copy, (first, last) in enumerate(_copies(rows, len(papers))):
            shuffle = random.Random(f"{SEED} {copy}").shuffle
            for paper in papers[: last - first]:
                lines.write(msgspec.json.encode(_copied(paper, copy, shuffle) if copy else paper) + b"\n")


def _copied(paper: dict[str, Any], copy: int, shuffle: Any) -> dict[str, Any]:
    texts = {}
    for field in ("title", "abstract"):
        words = paper[field].split()
        shuffle(words)
        texts[field] = " ".join(words)
    return {**paper, "arxiv_id": f"{paper['arxiv_id']}.copy{copy}", **texts}


def _copies(rows: int, a_copy: int) -> Iterator[tuple[int, int]]:
    """First and last row of each copy; the last copy may be a part."""
    return ((first, min(first + a_copy, rows)) for first in range(0, rows, a_copy))
