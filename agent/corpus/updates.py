"""Live additions and removals: what a corpus update message, `corpus add`, `corpus remove` and a harvest ask for."""

import logging
import time
from typing import Any, Final

import numpy as np

from agent.corpus.records import RecordError, parse_record
from agent.crash_points import crash_point
from agent.domain import CorpusUpdate, Paper
from agent.errors import NotReadyError, RequestError, ShortageError, SupersededError
from agent.search.api import SearchAPI
from agent.search.similarity import to_int8
from agent.search.text import arxiv_id_forms, arxiv_id_of
from agent.store.journal import Journal, OwnChange, Recorded
from agent.store.papers import PaperStore
from agent.store.rows import Int8Matrix

log = logging.getLogger(__name__)

GO_OVER_S: Final = 60.0
"""So long an update waits for the agent to go over to another generation; that takes a second or two."""
LOOK_S: Final = 0.02


class LiveUpdates:
    """Updates for the corpus that a running agent has open, whichever it is at the moment. Usable from any thread."""

    def __init__(self, api: SearchAPI, journal: Journal) -> None:
        self._api: Final = api
        self._journal: Final = journal

    def apply(self, update: CorpusUpdate) -> dict[str, int]:
        """As `apply_update`. While the agent goes over to another generation this waits, and goes there.

        Raises NotReadyError where that takes long, and RequestError where the corpus is open to read only.
        """
        until = time.monotonic() + GO_OVER_S
        while True:
            engine = self._api.engine  # kept while its index is used, or it might be closed
            papers = engine.index.papers
            if papers.read_only and not papers.held:
                raise RequestError("unsupported", "this agent has opened its corpus to read only; it takes no updates")
            try:
                return apply_update(papers, update, engine.index.model, engine.index.dimensions, self._journal)
            except SupersededError as error:
                while self._api.engine is engine:
                    if time.monotonic() > until:
                        raise NotReadyError("the corpus is being replaced; send it again later") from error
                    time.sleep(LOOK_S)


def apply_update(
    papers: PaperStore, update: CorpusUpdate, model: str, dimensions: int, journal: Journal | None
) -> dict[str, int]:
    """Carry out an update, wholly and durably when this returns; how many papers were `added`, `updated`, `removed` ..

    All records are read before the first is stored, so that a bad one changes nothing. The same update again changes
    nothing either. It is in the journal before it is in papers.db, so that it holds in whatever corpus comes next.
    Raises RequestError naming the record and the field, and CorpusError: SupersededError where this corpus is no longer
    the current one, ShortageError where the disk is full.
    """
    read = [_record(number, record, dimensions) for number, record in enumerate(update.add)]
    names = [form for name in update.remove for form in arxiv_id_forms(arxiv_id_of(name) or name)]
    changes = [
        *(OwnChange(paper.arxiv_id, paper, None if vector is None else model, vector) for paper, vector in read),
        *(OwnChange(name, None) for name in names),
    ]
    recorded = Recorded()
    try:
        with papers.transaction():
            done = papers.put([paper for paper, _ in read])
            found = [vector for _, vector in read]
            given = [(key, vector) for key, vector in zip(done.keys, found, strict=True) if key and vector is not None]
            if given:
                papers.put_vectors(model, [key for key, _ in given], np.stack([vector for _, vector in given]))
            removed = papers.remove(names)
            if journal:
                recorded = journal.record(changes)
                crash_point("updates.apply_update:journalled")
    except Exception as error:
        if isinstance(error, ShortageError):
            papers.refused = papers.refused or error.message  # also where it is agent.db: the status says so
        if journal:
            journal.take_back(recorded)
        raise
    return {
        "added": done.added,
        "updated": done.updated,
        "unchanged": done.unchanged,
        "older": done.older,
        "removed": len(removed),
    }


def _record(number: int, record: dict[str, Any], dimensions: int) -> tuple[Paper, Int8Matrix | None]:
    try:
        vector = _vector(record.get("vector"), dimensions)
        return parse_record(record), vector
    except RecordError as error:
        field = str(error).partition(":")[0]
        raise RequestError("invalid_request", f"add[{number}].{error}", field=f"add[{number}].{field}") from error


def _vector(value: Any, dimensions: int) -> Int8Matrix | None:
    if value is None:
        return None
    try:
        vector = np.array(value, np.float32)
    except (TypeError, ValueError) as error:
        raise RecordError(f"vector: expected {dimensions} numbers") from error
    if vector.shape != (dimensions,) or not np.isfinite(vector).all() or not vector.any():
        raise RecordError(f"vector: expected {dimensions} finite numbers that are not all 0")
    return to_int8(vector)
