"""Inputs of the bench: real papers beside the checkout, corpora made from them once and kept."""

import gzip
import hashlib
import inspect
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import zstandard

from agent.config import Config, load_config
from agent.corpus.importer import import_papers
from agent.search import SearchAPI
from agent.store import schema
from benchmarks.multiplied import write_multiplied

ROOT: Final = Path(__file__).parents[1]
SHARED: Final = ROOT.parent / "shared" / "data"
OUTPUT: Final = ROOT / "benchmarks" / "output"
VECTORS: Final = SHARED / "arxiv_dev_100k.all-MiniLM-L6-v2.i8.npy"
SIZES: Final = ("10k", "100k", "750k")
MADE: Final = "750k"
"""Not real: the 100,000 papers multiplied."""


def papers_file(name: str) -> Path:
    """JSON lines of a size; those that are not real are made at the first call."""
    if name != MADE:
        return SHARED / f"arxiv_dev_{name}.jsonl.zst"
    file = OUTPUT / f"papers-{name}.jsonl.zst"
    if not file.is_file():
        OUTPUT.mkdir(parents=True, exist_ok=True)
        write_multiplied(list(papers("100k")), VECTORS, 750_000, file, OUTPUT / f"vectors-{name}.npy")
    return file


def papers(name: str) -> Iterator[dict[str, Any]]:
    """The papers of a size, in order."""
    return read_papers(papers_file(name))


def read_papers(file: Path) -> Iterator[dict[str, Any]]:
    with zstandard.open(file, "rb") as lines:
        for line in io.BufferedReader(lines):
            yield json.loads(line)


def vectors_of(name: str) -> Path:
    """Vectors for the lines of `name`, row by row."""
    if name == "100k":
        return VECTORS
    path = OUTPUT / f"vectors-{name}.npy"
    if name == MADE:
        papers_file(name)
    elif not path.is_file():
        rows = {paper["arxiv_id"]: row for row, paper in enumerate(papers("100k"))}
        OUTPUT.mkdir(parents=True, exist_ok=True)
        np.save(path, np.load(VECTORS, mmap_mode="r")[[rows[paper["arxiv_id"]] for paper in papers(name)]])
    return path


def corpus(name: str) -> Config:
    """A corpus of `name` with the given vectors, made at the first call; the configuration to use it.

    It is made anew when the agent lays out papers.db in another way; the caches the agent mends itself.
    """
    config = load_config(environment={}, data_dir=OUTPUT / f"corpus-{name}")
    whole = config.data_dir / "whole"
    if not whole.is_file() or whole.read_text("ascii") != layout():
        shutil.rmtree(config.data_dir, ignore_errors=True)
        with SearchAPI(config) as api:
            api.open(owner=True, model=False)
            matrix = np.load(vectors_of(name), mmap_mode="r")
            import_papers(str(papers_file(name)), api.engine.index, config.model.name, vectors=matrix)
        whole.write_text(layout(), "ascii")
    return config


def layout() -> str:
    """Of papers.db, as the code has it."""
    return hashlib.sha256(inspect.getsource(schema).encode()).hexdigest()


def queries(count: int) -> list[str]:
    """Half questions (SciFact claims), half titles of papers, interleaved."""
    with gzip.open(SHARED / "scifact" / "queries.jsonl.gz", "rt", encoding="utf-8") as lines:
        claims = [json.loads(line)["text"] for line in lines][: count // 2]
    titles = [paper["title"] for paper, _ in zip(papers("10k"), range(count // 2), strict=False)]
    return [text for pair in zip(claims, titles, strict=True) for text in pair]
