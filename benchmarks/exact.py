"""What is right: an exact scan of the stored vectors, and three filters that let many, some and few papers through."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SHARES: Final = (0.087, 0.00065, 0.37)
COMMON: Final = 15
TIE: Final = 1e-5
_CATEGORY: Final = re.compile(r"[a-z-]+(\.[A-Za-z-]+)?")


class ExactScan:
    """Cosines of f32 queries with every stored int8 vector."""

    def __init__(self, vectors: Path) -> None:
        matrix = np.load(vectors).astype(np.float32)
        self._matrix: Final = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)

    def recall(
        self, vector: Any, found: Sequence[int], limit: int = 10, allowed: NDArray[np.bool_] | None = None
    ) -> float:
        """Share of the true `limit` nearest that were found; of equally near papers any will do.

        A paper that `allowed` rules out counts as not found.
        """
        cosines = self._matrix @ vector
        if allowed is not None:
            cosines = np.where(allowed, cosines, -2.0)
        possible = limit if allowed is None else min(limit, int(allowed.sum()))
        least = np.partition(cosines, -possible)[-possible]
        good = [row for row in dict.fromkeys(found) if cosines[row] >= least - TIE]
        return len(good[:possible]) / possible


def choose_filters(terms: Iterable[Sequence[str]]) -> dict[str, tuple[list[str], NDArray[np.bool_]]]:
    """For each of SHARES the category, or pair of common ones, that comes nearest, with the papers it lets through.

    `terms`: of each paper the categories that it belongs to, archives included.
    """
    held = [frozenset(paper) for paper in terms]
    counts = Counter(term for paper in held for term in paper if _CATEGORY.fullmatch(term))
    common = [term for term, _ in counts.most_common(COMMON)]
    sizes: dict[tuple[str, ...], int] = {(term,): count for term, count in counts.items()}
    sizes |= {pair: sum(not paper.isdisjoint(pair) for paper in held) for pair in combinations(sorted(common), 2)}
    chosen = {}
    for share in SHARES:
        names = min(sorted(sizes), key=lambda names: abs(sizes[names] / len(held) - share))
        allowed = np.array([not paper.isdisjoint(names) for paper in held])
        chosen[f"{100 * allowed.mean():.2g}%"] = (list(names), allowed)
    return chosen
