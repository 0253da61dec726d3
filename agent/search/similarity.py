"""How near two vectors are: int8 rows, f32 queries. Pure functions on arrays."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from agent.search.native import angular_distances
from agent.store.rows import Int8Matrix

EXACT_ROWS: Final = 1_024
"""So many rows are compared with the f32 query at once; of more, the int8 query first picks those worth it."""
WORTH: Final = 4
"""Times the rows wanted: so many are compared with the f32 query after the int8 query has picked them."""

Floats = NDArray[np.float32]


def to_int8(vectors: Floats) -> Int8Matrix:
    """Scale each row by its own largest component to +-127; cosines do not mind the scale."""
    largest = np.maximum(np.abs(vectors).max(axis=-1, keepdims=True), 1e-12)
    scaled: Int8Matrix = np.rint(vectors / largest * 127).astype(np.int8)
    return scaled


def cosines(query: Floats, matrix: Int8Matrix) -> Floats:
    """Cosine of a unit f32 query with int8 rows of any scale; shape (rows,)."""
    rows = matrix.astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    result: Floats = (rows @ query) / np.maximum(norms, 1e-12)
    return result


def closest(query: Floats, matrix: Int8Matrix, limit: int) -> NDArray[np.intp]:
    """Positions of the `limit` rows nearest to a unit f32 query, in no order."""
    if len(matrix) <= limit:
        return np.arange(len(matrix))
    if len(matrix) <= max(EXACT_ROWS, WORTH * limit):
        return np.argpartition(-cosines(query, matrix), limit)[:limit]
    rough = angular_distances(to_int8(query), matrix)
    worth = np.argpartition(rough, WORTH * limit)[: WORTH * limit]
    best: NDArray[np.intp] = worth[np.argpartition(-cosines(query, matrix[worth]), limit)[:limit]]
    return best
