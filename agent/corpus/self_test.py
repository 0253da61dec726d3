"""Questions that a corpus must be able to answer before it takes the place of another: made from its own papers."""

from typing import Final

import numpy as np

from agent.domain import Mode, Paper, SearchRequest
from agent.errors import AgentError
from agent.search.engine import SearchEngine

QUESTIONS: Final = 8
RANK: Final = 10
"""A paper should be among the first so many that its own title finds."""
MISSES: Final = 2
"""One in so many may be missed: titles are given twice, or say nothing."""


def failures_of(engine: SearchEngine) -> list[str]:
    """What is wrong with the answers of a corpus, in words; nothing for a sound one, or one that holds no papers."""
    index = engine.index
    try:
        found = _failures(engine, "keyword", _sample(engine, embedded=False))
        if engine.embedder:
            found += _failures(engine, "semantic", _sample(engine, embedded=True))
    except AgentError as error:
        return [error.message]
    except Exception as error:  # noqa: BLE001  whatever a library says of files that it cannot use
        return [f"{type(error).__name__}: {error}"]
    return [*found, index.papers.damage] if index.papers.damage else found


def _sample(engine: SearchEngine, *, embedded: bool) -> list[Paper]:
    """Some papers, spread over all of them, that the indexes know."""
    index = engine.index
    keys = index.papers.keys()
    keys = keys[keys <= index.keywords.reached]
    if embedded and len(keys):
        step = max(1, len(keys) // (QUESTIONS * QUESTIONS))
        some = keys[::step]
        query = np.ones(index.dimensions, np.float32)
        keys = some[~np.isnan(index.vectors.scores(query, some))]
    if not len(keys):
        return []
    chosen = keys[np.linspace(0, len(keys) - 1, QUESTIONS).astype(int)]
    return list(index.papers.get(np.unique(chosen).tolist()).values())


def _failures(engine: SearchEngine, mode: Mode, papers: list[Paper]) -> list[str]:
    missed: list[str] = []
    for paper in papers:
        request = SearchRequest(query=f"{paper.title} ", mode=mode, max_results=RANK)
        if mode == "keyword" and not engine.index.keywords.terms(paper.title):
            continue
        hits = engine.search(request).hits
        if not hits:
            return [f"a {mode} search for the title of {paper.arxiv_id} finds nothing"]
        scores = [hit.score for hit in hits]
        if scores != sorted(scores, reverse=True):
            return [f"a {mode} search for the title of {paper.arxiv_id} is out of order"]
        if all(hit.paper.arxiv_id != paper.arxiv_id for hit in hits):
            missed.append(paper.arxiv_id)
    if len(missed) * MISSES > len(papers):
        return [f"{mode} searches for the titles of {', '.join(missed)} do not find these papers"]
    return []
