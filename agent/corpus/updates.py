"""Live additions and removals: what a corpus update message, `corpus add` and `corpus remove` ask for."""

from typing import Any

import numpy as np

from agent.corpus.records import RecordError, parse_record
from agent.domain import CorpusUpdate, Paper
from agent.errors import RequestError
from agent.search.similarity import to_int8
from agent.search.text import arxiv_id_forms, arxiv_id_of
from agent.store.papers import PaperStore
from agent.store.rows import Int8Matrix


def apply_update(papers: PaperStore, update: CorpusUpdate, model: str, dimensions: int) -> dict[str, int]:
    """Carry out an update, durably when this returns; how many papers were `added`, `updated`, `removed` ..

    All records are read before the first is stored, so that a bad one changes nothing. The same update again changes
    nothing either. Raises RequestError naming the record and the field, and CorpusError.
    """
    read = [_record(number, record, dimensions) for number, record in enumerate(update.add)]
    done = papers.put([paper for paper, _ in read])
    given = [(key, vector) for key, (_, vector) in zip(done.keys, read, strict=True) if key and vector is not None]
    if given:
        papers.put_vectors(model, [key for key, _ in given], np.stack([vector for _, vector in given]))
    removed = papers.remove([form for name in update.remove for form in arxiv_id_forms(arxiv_id_of(name) or name)])
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
