"""The candidates of one question, scored and in order.

Both scores are computed for every candidate: a cosine for those that only the keywords found, a BM25 score for
those that only the vectors found. Candidates come in tiers of 1, 4 and 16 times the configured number of each
list. The first ranks are the fused order of the first tier; deeper ones append what is new in the next, so a page
never changes an earlier one.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.domain import Filters, Mode
from agent.search import fusion
from agent.search.ahead import Ahead
from agent.search.clock import StageClock
from agent.search.corpus_index import CorpusIndex
from agent.search.keywords import MEMORABLE_ROWS, Matches
from agent.search.vectors import VectorIndex

TIERS: Final = (1, 4, 16)
SCAN_ROWS: Final = 40_000
"""Filters that leave at most so many papers are answered by an exact scan of those papers' vectors."""
OVER_FETCH: Final = 3.0
KNOWN_MATCHES: Final = 2
"""Times the candidates of a tier: so many keyword matches are taken, to know the BM25 scores of more of the others."""

Keys = NDArray[np.int64]
Floats = NDArray[np.float64]


class Question(NamedTuple):
    """What to look for. `vector` (unit, f32) is None in keyword mode; `terms` is empty in semantic mode.

    `matches` is the keyword search of the first tier, where it was begun ahead, as `first_matches` does it.
    """

    mode: Mode
    vector: NDArray[np.float32] | None
    terms: list[str]
    filters: Filters
    matches: Ahead[Matches] | None = None


class Ranking(NamedTuple):
    """How to rank: candidates from each list in the first tier, the cosine's share, ranks that will surely be read."""

    candidates: int
    semantic_weight: float
    page: int


Scored = Iterator[tuple[int, float]]
"""Keys and scores, best first."""


def ranks(index: CorpusIndex, question: Question, ranking: Ranking, clock: StageClock) -> Scored:
    """Yield keys and scores from best to worst, searching deeper tiers only as far as the caller reads."""
    seen: set[int] = set()
    lowest = 1.0
    for growth in TIERS:
        for key, score in _tier(index, question, ranking, ranking.candidates * growth, clock):
            if key not in seen:
                seen.add(key)
                lowest = min(lowest, score)  # scores fall across tiers as well
                yield key, lowest


def first_matches(index: CorpusIndex, terms: list[str], filters: Filters, candidates: int) -> Matches:
    """The keyword matches of the first tier of a hybrid question."""
    return index.keywords.search(terms, candidates * KNOWN_MATCHES, filters)


def _tier(index: CorpusIndex, question: Question, ranking: Ranking, size: int, clock: StageClock) -> Scored:
    if question.vector is None:
        found = index.keywords.search(question.terms, size, question.filters)
        clock.lap("keywords")
        return _in_order(found.keys, fusion.keyword_score(found.scores, _best(found)))
    near = _nearest(index, question.vector, size, question.filters, clock)
    if question.mode == "semantic":
        cosine = _cosines(index.vectors, question.vector, near)
        clock.lap("vectors")
        order = fusion.ranking(near, cosine)[:size]  # by the cosine as it is: below 0 all score 0, and still differ
        return zip(near[order].tolist(), fusion.cosine_score(cosine[order]).tolist(), strict=True)
    clock.lap("vectors")
    if question.matches and size == ranking.candidates:
        known = question.matches.result()
    else:
        known = first_matches(index, question.terms, question.filters, size)
    clock.lap("keywords")
    return _fused(index, question, question.vector, ranking, near, known, size, clock)


def _fused(
    index: CorpusIndex,
    question: Question,
    vector: NDArray[np.float32],
    ranking: Ranking,
    near: Keys,
    known: Matches,
    size: int,
    clock: StageClock,
) -> Scored:
    """Every candidate by both scores: the `near` ones, and the first `size` of the `known` matches.

    The BM25 score of a candidate that is not among the known matches is dear to look up. It cannot exceed the last
    of them (and is 0 where they are all), so for the ranks of the page it is looked up only where that bound leaves
    a chance; the idea is that of the threshold algorithm (Fagin, Lotem and Naor 2001).
    """
    scored = dict(zip(known.keys.tolist(), known.scores.tolist(), strict=True))
    matched = known.keys[:size].tolist()
    among = set(matched)
    others = [key for key in near.tolist() if key not in among]
    candidates = matched + [key for key in others if key in scored] + [key for key in others if key not in scored]
    keys = np.array(candidates, np.int64)
    cosine = _cosines(index.vectors, vector, keys)
    clock.lap("vectors")
    weight, best = ranking.semantic_weight, _best(known)
    bm25 = np.array([scored.get(key, 0.0) for key in candidates], np.float64)
    scores = fusion.hybrid_score(cosine, bm25, best, weight)
    unknown = np.arange(len(keys) - sum(key not in scored for key in others), len(keys))
    complete = len(known.keys) < size * KNOWN_MATCHES
    chance = 0.0 if complete or not best else (1 - weight) * float(known.scores[-1]) / best
    done = 0
    for wanted in (ranking.page, len(keys)):
        least = np.partition(scores, -wanted)[-wanted] if wanted < len(keys) else 0.0
        if chance and len(unknown):
            unsure = scores[unknown] + chance >= least
            looked_up, unknown = unknown[unsure], unknown[~unsure]
            found_scores = index.keywords.scores(question.terms, keys[looked_up].tolist())
            bm25[looked_up] = [found_scores.get(key, 0.0) for key in keys[looked_up].tolist()]
            scores[looked_up] = fusion.hybrid_score(cosine[looked_up], bm25[looked_up], best, weight)
            clock.lap("keywords")
        order = fusion.ranking(keys, scores)[done:wanted]
        clock.lap("fusion")
        yield from zip(keys[order].tolist(), scores[order].tolist(), strict=True)
        done = wanted


def _in_order(keys: Keys, scores: Floats) -> Scored:
    order = fusion.ranking(keys, scores)
    return zip(keys[order].tolist(), scores[order].tolist(), strict=True)


def _nearest(index: CorpusIndex, vector: NDArray[np.float32], size: int, filters: Filters, clock: StageClock) -> Keys:
    """At least the `size` nearest papers that satisfy the filters, where so many exist.

    Few papers are compared one by one. Where the filters let more through, the graph is asked for so many of the
    nearest that enough of them should satisfy the filters; where they do not (the question is about something else
    than the filters let through), all that satisfy them are compared after all.
    """
    if filters.empty:
        return index.vectors.nearest(vector, size)
    allowed = index.keywords.count(filters)
    clock.lap("plan")
    if allowed > SCAN_ROWS:
        reach = int(OVER_FETCH * size * len(index.vectors) / allowed)
        if allowed <= MEMORABLE_ROWS:
            index.keywords.allowed(filters, allowed)  # remembered, so that the papers found below are quickly looked up
        for further in (1, 4) if allowed > MEMORABLE_ROWS else (1,):
            near = index.vectors.nearest(vector, reach * further)
            kept = index.keywords.passing(filters, near)
            clock.lap("over_fetch")
            if len(kept) >= size:
                return kept
    near = index.vectors.nearest_among(vector, index.keywords.allowed(filters, allowed), size)
    clock.lap("scan")
    return near


def _cosines(vectors: VectorIndex, vector: NDArray[np.float32], keys: Keys) -> Floats:
    """0 for papers that have no vector yet."""
    return np.nan_to_num(vectors.scores(vector, keys).astype(np.float64), nan=0.0)


def _best(found: Matches) -> float:
    return float(found.scores[0]) if len(found.scores) else 0.0
