"""Small corpora to be packed, and what is in a folder."""

from pathlib import Path
from typing import Any

import numpy as np

from agent.corpus.packing import pack
from agent.domain import Paper
from agent.footprint import choose
from agent.protocol.pack_manifest import PackManifest
from agent.search.corpus_index import CorpusIndex
from agent.store.fresh import Snapshot

MODEL, DIMENSIONS = "all-MiniLM-L6-v2", 384
FITS = choose(512, 2)


def paper(number: int, **changed: Any) -> Paper:
    fields: dict[str, Any] = {
        "arxiv_id": f"2301.{number:05d}",
        "title": f"common word{number}",
        "abstract": f"as all of them, and wörd{number % 7}",
        "authors": ("Ä. One", f"Author {number}"),
        "categories": ("cs.LG", "stat.ML") if number % 3 else ("math.AG",),
        "published": f"20{10 + number % 10}-0{1 + number % 9}-11",
        "updated": "2023-01-02",
        "version": 1,
    }
    return Paper(**{**fields, **changed})


def vector_of(number: int) -> Any:
    return np.random.default_rng(number).integers(-127, 128, DIMENSIONS).astype(np.int8)


def fill(folder: Path, numbers: list[int], *, without: tuple[int, ...] = ()) -> Path:
    """A generation with these papers, each with its vector but for some."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_index(folder) as index:
        keys = index.papers.put([paper(number) for number in numbers]).keys
        given = [(key, vector_of(number)) for key, number in zip(keys, numbers, strict=True) if number not in without]
        index.papers.put_vectors(MODEL, [key or 0 for key, _ in given], np.stack([vector for _, vector in given]))
        index.catch_up()
    return folder


def open_index(folder: Path, *, owner: bool = True) -> CorpusIndex:
    return CorpusIndex(folder, MODEL, DIMENSIONS, owner=owner, fits=FITS)


def make(corpus: Path, target: Path, **options: Any) -> PackManifest:
    return pack(corpus, MODEL, DIMENSIONS, target, **options)


def rows_of(folder: Path, name: str = "papers.db") -> list[tuple[Paper, bytes | None]]:
    with Snapshot(folder / name, MODEL, DIMENSIONS) as snapshot:
        return list(snapshot.rows())


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
