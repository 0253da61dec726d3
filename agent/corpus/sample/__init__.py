"""The sample corpus: well-known papers with summaries of our own, and their vectors by the default model."""

import json
from pathlib import Path
from typing import Final

SAMPLE_PAPERS: Final = Path(__file__).parent / "papers.jsonl"
SAMPLE_VECTORS: Final = Path(__file__).parent / "vectors.npy"
SAMPLE_MODEL: Final = "all-MiniLM-L6-v2"


def sample_vectors(model: str) -> Path | None:
    """The file of the vectors that ship, if they are of this model; else the papers are embedded like any other."""
    return SAMPLE_VECTORS if model == SAMPLE_MODEL else None


def sample_ids() -> tuple[str, ...]:
    return tuple(json.loads(line)["arxiv_id"] for line in SAMPLE_PAPERS.read_text("utf-8").splitlines())
