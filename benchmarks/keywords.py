"""Keyword search beside bare tantivy on the same files, for queries of one term to a whole abstract."""

import random
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from agent.search import SearchAPI
from agent.store.generations import current_generation
from benchmarks.bare import BareKeywords
from benchmarks.data import corpus, papers, queries
from benchmarks.report import percentiles, publish

SEED = 3
LENGTHS = (1, 2, 3)


def measure(size: str, questions: int) -> None:
    config = corpus(size)
    generation = current_generation(config.data_dir)
    assert generation
    bare = BareKeywords(generation / "keywords")
    rows: dict[str, dict[str, Any]] = {}
    with SearchAPI(config) as api:
        api.open(model=False)
        for name, texts in _queries(api, questions).items():
            _timed(bare.search, texts[:20])
            _timed(lambda text: api.search_sync(text, {"mode": "keyword"}), texts[:20])
            alone: list[float] = []
            whole: list[float] = []
            stage: list[float] = []
            for text in texts:
                alone += _timed(bare.search, [text])
                started = time.perf_counter()
                answer = api.search_sync(text, {"mode": "keyword"})
                whole.append(time.perf_counter() - started)
                stage.append(answer["metadata"]["timings_ms"]["keywords"] / 1e3)
            ours, tantivy = percentiles(whole), percentiles(alone)
            rows[name] = {
                "terms": sum(len(api.engine.index.keywords.terms(text)) for text in texts) / len(texts),
                "bare_p50_ms": tantivy["p50_ms"],
                "p50_ms": ours["p50_ms"],
                "p95_ms": ours["p95_ms"],
                "keywords_stage_p50_ms": percentiles(stage)["p50_ms"],
                "ratio_of_medians": round(ours["p50_ms"] / tantivy["p50_ms"], 2),
            }
    publish(f"keywords-{size}", rows, questions=questions)


def _queries(api: SearchAPI, count: int) -> dict[str, list[str]]:
    """Words of titles that are no stop words, seeded; then questions, titles and whole abstracts."""
    choose = random.Random(SEED)
    rows = list(islice(papers("10k"), 4 * count))
    terms = api.engine.index.keywords.terms
    # Beside another word a stop word is no term.
    words = [word for row in rows for word in row["title"].split() if word.isalpha() and len(terms(f"q {word}")) == 2]
    asked = {f"{n} terms": [" ".join(choose.sample(words, n)) for _ in range(count)] for n in LENGTHS}
    mixed = queries(2 * count)
    abstracts = [row["abstract"] for row in rows[:count]]
    return asked | {"questions": mixed[::2], "titles": mixed[1::2], "abstracts": abstracts}


def _timed(search: Callable[[str], Any], texts: list[str]) -> list[float]:
    times = []
    for text in texts:
        started = time.perf_counter()
        search(text)
        times.append(time.perf_counter() - started)
    return times
