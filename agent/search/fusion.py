"""Scores of candidates, combined. Pure functions on arrays; every score lies in [0, 1]."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Keys = NDArray[np.int64]


def cosine_score(cosine: Floats) -> Floats:
    return np.clip(cosine, 0.0, 1.0)


def keyword_score(bm25: Floats, best: float) -> Floats:
    """BM25 scores relative to the best match of the query in the corpus."""
    return np.clip(bm25 / best, 0.0, 1.0) if best > 0 else np.zeros_like(bm25)


def hybrid_score(cosine: Floats, bm25: Floats, best: float, semantic_weight: float) -> Floats:
    """Weighted sum of both scores, each known for **every** candidate.

    Needs no statistics beyond the candidates and keeps the cosine's absolute meaning: a nonsense query scores low.
    docs/search.md has the measurements against rank fusion and min-max.
    """
    return semantic_weight * cosine_score(cosine) + (1 - semantic_weight) * keyword_score(bm25, best)


def ranking(keys: Keys, scores: Floats) -> NDArray[np.intp]:
    """Positions from best to worst; equal scores by key, so that the order is always the same."""
    order: NDArray[np.intp] = np.lexsort((keys, -scores))
    return order
