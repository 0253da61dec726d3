"""The measurement inside the fresh process. Seconds and what was found; what is right is judged outside."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from agent.device.host import memory_mb
from benchmarks.peers.engine import Engine, Question


def measure(
    engine: Engine, warm_up: Sequence[str], queries: Sequence[str], filters: Mapping[str, Sequence[str]], limit: int
) -> dict[str, Any]:
    """`open_s` is loading the libraries, opening index and model, and a first answer.

    Hybrid questions first: memory is read after them, before anything else has been asked.
    """
    started = time.perf_counter()
    engine.open()
    engine.ask("ready", limit)
    opened = time.perf_counter() - started
    _timed(engine, warm_up, partial(engine.ask, limit=limit))
    hybrid = _timed(engine, queries, partial(engine.ask, limit=limit))
    result: dict[str, Any] = {
        "open_s": opened,
        "memory": memory_mb(),
        "hybrid_s": hybrid["whole_s"],
        "hybrid_without_embedding_s": hybrid["seconds"],
    }
    questions = [Question(text, engine.model.embed(text)) for text in queries]
    _timed(engine, questions[:20], partial(engine.dense, limit=limit))
    result["dense"] = _searched(engine, questions, partial(engine.dense, limit=limit))
    if engine.keywords:
        result["keyword_s"] = _timed(engine, queries, partial(engine.keyword, limit=limit))["seconds"]
    result["filtered"] = {
        name: _searched(engine, questions, partial(engine.dense, limit=limit, within=within))
        for name, within in filters.items()
    }
    return result


def _searched(engine: Engine, questions: Sequence[Question], search: Callable[[Question], Any]) -> dict[str, Any]:
    found: list[Any] = []
    done = _timed(engine, questions, lambda question: found.append(search(question)))
    return {"seconds": done["seconds"], "found": [engine.identities(each) for each in found]}


def _timed(engine: Engine, asked: Sequence[Any], search: Callable[[Any], Any]) -> dict[str, list[float]]:
    """Seconds of each call, with (`whole_s`) and without (`seconds`) the embedding of the question."""
    whole, without = [], []
    for one in asked:
        engine.embedding_s = 0.0
        started = time.perf_counter()
        search(one)
        took = time.perf_counter() - started
        whole.append(took)
        without.append(took - engine.embedding_s)
    return {"whole_s": whole, "seconds": without}
