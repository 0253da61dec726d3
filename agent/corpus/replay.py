"""The device's own changes put into a generation, whichever it is: the journal, carried out on its papers.db."""

from collections import Counter
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np

from agent.crash_points import crash_point
from agent.errors import DamagedPapersError
from agent.store.journal import Journal, OwnChange
from agent.store.papers import PaperStore
from agent.store.rows import Int8Matrix

BATCH: Final = 500


class Replayed(NamedTuple):
    """Up to which entry, how many entries, and what became of them: `added`, `updated`, `unchanged`, `older` .."""

    seq: int
    entries: int
    counts: Counter[str]


NOTHING: Final = Replayed(0, 0, Counter())


def replay(
    journal: Journal, papers: PaperStore, model: str, *, after: Replayed, outgoing: PaperStore | None
) -> Replayed:
    """Carry out what the journal says after `after`. The same again changes nothing; a newer version of a paper wins.

    A vector that was given with a paper, or that `outgoing` has of the same text by the same `model`, is taken over;
    what has none is embedded later. Raises CorpusError.
    """
    seq, entries, counts = after.seq, after.entries, Counter(after.counts)
    while batch := journal.since(seq, BATCH):
        counts.update(_apply([entry.change for entry in batch], papers, model, outgoing))
        seq, entries = batch[-1].seq, entries + len(batch)
        crash_point("replay.replay:between-batches")
    return Replayed(seq, entries, counts)


def _apply(changes: list[OwnChange], papers: PaperStore, model: str, outgoing: PaperStore | None) -> Counter[str]:
    additions = [(change, change.paper) for change in changes if change.paper]
    with papers.transaction():
        done = papers.put([paper for _, paper in additions])
        wanted = [(key, change) for key, (change, _) in zip(done.keys, additions, strict=True) if key]
        vectors = _vectors([change for _, change in wanted], model, outgoing)
        given = [(key, vectors[change.arxiv_id]) for key, change in wanted if change.arxiv_id in vectors]
        if given:
            papers.put_vectors(model, [key for key, _ in given], np.stack([vector for _, vector in given]))
        removed = papers.remove([change.arxiv_id for change in changes if change.paper is None])
    return Counter(
        added=done.added,
        updated=done.updated,
        unchanged=done.unchanged,
        older=done.older,
        removed=len(removed),
    )


def _vectors(changes: list[OwnChange], model: str, outgoing: PaperStore | None) -> dict[str, Int8Matrix]:
    found = {
        change.arxiv_id: change.vector for change in changes if change.vector is not None and change.model == model
    }
    rest = {change.arxiv_id: change.paper.text for change in changes if change.paper and change.arxiv_id not in found}
    if outgoing and rest:
        with suppress(DamagedPapersError):  # they are embedded again
            stored = outgoing.vectors_of(model, list(rest))
            found |= {name: vector for name, (text, vector) in stored.items() if text == rest[name]}
    return found
