"""Compare what scripts/test-arm64 found on each processor with x86-64, and put it into docs/device-checks.md.

Vectors must have a cosine of 0.9998 at least; rankings must be the same up to swaps of scores within 0.001.
"""

import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from check_report import table, write_section

COSINE = 0.9998
TOLERANCE = 0.001
SLACK = 1e-9  # scores are rounded to six digits, and their differences are floats

Ranking = Sequence[tuple[str, float]]


def compare_vectors(expected: Any, found: Any) -> tuple[float, float]:
    """The worst and the mean cosine of row to row. Raises ValueError where there are others, or no numbers."""
    one, other = (np.asarray(rows, np.float64) for rows in (expected, found))
    if one.shape != other.shape or one.ndim != 2:  # noqa: PLR2004
        raise ValueError(f"vectors of shape {other.shape} instead of {one.shape}")
    with np.errstate(invalid="ignore"):
        cosines = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    if not np.isfinite(cosines).all():
        raise ValueError("vectors that are no numbers, or zero")
    return float(cosines.min()), float(cosines.mean())


def difference(expected: Ranking, found: Ranking) -> str | None:
    """What is different in two lists of (id, score), best first, beyond swaps of scores within TOLERANCE; or None.

    A paper may be in one list only if it is as good as the last one of that list: it was swapped with what follows.
    """
    mine, theirs = dict(expected), dict(found)
    if not len(mine) == len(theirs) == len(expected) == len(found):
        return f"{len(found)} results, {len(theirs)} papers, instead of {len(expected)}"
    for paper in [*mine, *theirs]:
        own, other, last = (mine, theirs, expected) if paper in mine else (theirs, mine, found)
        against = other.get(paper, last[-1][1])
        if not abs(own[paper] - against) <= TOLERANCE + SLACK:  # nor is a NaN
            return f"{paper} has {own[paper]}, against {against}{'' if paper in other else ' of the last one'}"
    ranks = {paper: rank for rank, paper in enumerate(theirs)}
    for one, other_one in combinations([paper for paper in mine if paper in theirs], 2):
        if ranks[one] > ranks[other_one] and mine[one] - mine[other_one] > TOLERANCE + SLACK:
            return f"{other_one} before {one}, which has {mine[one] - mine[other_one]:.6f} more"
    return None


def compare(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Rows for the page: what was compared, whether it holds, what was seen."""
    worst, mean = compare_vectors(expected["vectors"], found["vectors"])
    vectors = f"{len(expected['vectors'])}: cosine {worst:.7f} at worst, {mean:.7f} in the mean"
    rows = {"vectors as on x86-64": ("yes" if worst >= COSINE else "NO", vectors)}
    lists, others = expected["rankings"], found["rankings"]
    if not lists or lists.keys() != others.keys():
        raise ValueError(f"{len(others)} rankings instead of {len(lists)}, or of other questions")
    order = {query: [paper for paper, _ in ranking] for query, ranking in lists.items()}
    swapped = [query for query, ranking in others.items() if [paper for paper, _ in ranking] != order[query]]
    reasons = [f"{query}: {why}" for query in lists if (why := difference(lists[query], others[query]))]
    seen = f"{len(lists)}: {len(lists) - len(swapped)} equal, {len(swapped)} with swaps"
    if reasons:
        seen += f", {len(reasons)} different beyond them: {reasons[0]}"
    rows["top 10 as on x86-64"] = ("NO" if reasons else "yes", seen)
    return rows


def column(expected: dict[str, Any], file: Path) -> dict[str, tuple[str, str]]:
    """All that is said of one processor."""
    try:
        found = json.loads(file.read_text("utf-8"))
        checks = {name: (result, seen) for name, (result, seen) in found["checks"].items()}
        return checks | compare(expected, found) | {"took, emulated": ("yes", f"{found['took_s']:.0f} s")}
    except (OSError, ValueError, LookupError) as error:
        return {"the checks came to their end": ("NO", f"{type(error).__name__}: {error}")}


def main(suite: str, facts: str, reference: str, folder: str, *processors: str) -> None:
    expected = json.loads(Path(reference).read_text("utf-8"))
    columns = {name: column(expected, Path(folder) / f"{name}.json") for name in processors}
    missing = ("NO", "not reached")
    rows, failed = [], []
    for check in dict.fromkeys(check for checks in columns.values() for check in checks):
        cells = [checks.get(check, missing) for checks in columns.values()]
        rows.append([check, *(seen if result == "yes" else f"NO: {seen}" for result, seen in cells)])
        failed += [f"{name}: {row}" for name, row in zip(columns, rows[-1][1:], strict=True) if row.startswith("NO: ")]
    words = (
        "By `scripts/test-arm64`: emulated by QEMU on an x86-64 machine, no Raspberry Pi. It shows that all of it\n"
        "runs and finds the same, and says nothing about speed. Vectors and lists are of the sample corpus; a\n"
        f"cosine of {COSINE} is needed, and lists that are equal but for swaps of scores within {TOLERANCE}.\n\n"
    )
    write_section(f"{suite} arm64, emulated", facts, words + table(("", *columns), rows))
    sys.exit("\n".join(["test-arm64: does not hold:", *failed]) if failed else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
