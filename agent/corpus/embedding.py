"""Vectors for papers that have none yet: after an import, by hand, or in the background of the running agent."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Final

import numpy as np

from agent.search.corpus_index import CorpusIndex
from agent.search.embedder import Embedder, Vectors
from agent.search.similarity import to_int8
from agent.store.generations import EMBEDDING_LOCK, FolderLock

WINDOW: Final = 512
"""Papers sorted by length at a time: long enough that little is padding."""
FRESH: Final = 32
"""Papers of the first window, and of the next one when new papers have just come: the newest are not kept waiting."""
COMMIT: Final = 64
"""Vectors stored in one transaction: a crash loses at most so many."""


def embed_missing(
    index: CorpusIndex,
    embedder: Embedder,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> int | None:
    """Embed every paper that lacks a vector of this model; returns how many, or None if another process is at it.

    `workers` runs go on at a time (default: the cores). `progress` is called with the number done so far; `stop`
    is asked after each run of the model.
    """
    model = embedder.manifest.name
    with FolderLock(index.folder / EMBEDDING_LOCK) as lock:
        if not lock.acquire():
            return None
        index.catch_up()
        done = 0
        size = FRESH
        while not stop() and index.papers.count() != index.papers.count_embedded(model):
            window, version = index.papers.without_vector(model, size), index.papers.data_version()

            def interrupted(version: int = version) -> bool:
                return stop() or index.papers.data_version() != version

            for stored in _embed_window(index, embedder, window, workers or os.cpu_count() or 1, interrupted):
                done += stored
                if progress:
                    progress(done)
            size = FRESH if interrupted() else WINDOW  # the newest of papers without a vector come first
            if not stop():
                index.catch_up()  # what is embedded by now is searchable, and papers that came meanwhile
        return done


def _embed_window(
    index: CorpusIndex,
    embedder: Embedder,
    window: list[tuple[int, str]],
    workers: int,
    stop: Callable[[], bool],
) -> Iterator[int]:
    """Embed and store; yields the number of papers after each transaction."""
    keys: list[int] = []
    vectors: list[Vectors] = []
    with closing(embedder.batches([text for _, text in window], workers=workers)) as batches:
        for positions, batch in batches:
            keys += [window[position][0] for position in positions]
            vectors.append(batch)
            if len(keys) >= COMMIT or stop():
                yield _store(index, embedder, keys, vectors)
            if stop():
                return
    if keys:
        yield _store(index, embedder, keys, vectors)


def _store(index: CorpusIndex, embedder: Embedder, keys: list[int], vectors: list[Vectors]) -> int:
    stored = index.papers.put_vectors(embedder.manifest.name, keys, to_int8(np.concatenate(vectors)))
    keys.clear()
    vectors.clear()
    return stored
