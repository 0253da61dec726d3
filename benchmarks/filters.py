"""Filters that let many, some and few papers through: enough hits, the right ones, and how long they take."""

import time
from typing import Any

import numpy as np

from agent.search import SearchAPI
from benchmarks.data import corpus, papers_file, queries, vectors_of
from benchmarks.exact import ExactScan, choose_filters
from benchmarks.peers.engine import Source
from benchmarks.report import percentiles, publish

LIMIT = 10
MODES = ("semantic", "keyword", "hybrid")


def measure(size: str, questions: int) -> None:
    source = Source(papers_file(size), vectors_of(size))
    papers = list(source.papers())
    rows_of = {paper["arxiv_id"]: row for row, paper in enumerate(papers)}
    everything = np.ones(len(papers), np.bool_)
    cases: dict[str, tuple[list[str], Any]] = {"none": ([], everything)}
    cases |= choose_filters(paper["terms"] for paper in papers)
    del papers
    exact = ExactScan(source.vectors)
    texts = queries(questions)
    table: dict[str, dict[str, Any]] = {}
    with SearchAPI(corpus(size)) as api:
        api.open()
        vectors = [api.embedder.query(text) for text in texts]
        for name, (categories, allowed) in cases.items():
            row: dict[str, Any] = {"papers": int(allowed.sum())}
            for mode in MODES:
                filters = {"mode": mode, "max_results": LIMIT} | ({"category": categories} if categories else {})
                answers, times = _ask(api, texts, filters)
                found = [[rows_of[paper["arxiv_id"]] for paper in answer["results"]] for answer in answers]
                row[f"{mode}_p50_ms"] = percentiles(times)["p50_ms"]
                row[f"{mode}_least_hits"] = min(map(len, found))
                row[f"{mode}_outside"] = sum(int((~allowed[hits]).sum()) for hits in found)
                if mode == "semantic":
                    scans = [exact.recall(v, hits, LIMIT, allowed) for v, hits in zip(vectors, found, strict=True)]
                    row["recall"] = round(float(np.mean(scans)), 4)
            table[f"{name} {'+'.join(categories)}"] = row
    publish(f"filters-{size}", table, questions=questions)


def _ask(api: SearchAPI, texts: list[str], filters: dict[str, Any]) -> tuple[list[dict[str, Any]], list[float]]:
    answers, times = [], []
    for text in texts:
        started = time.perf_counter()
        answers.append(api.search_sync(text, filters))
        times.append(time.perf_counter() - started)
    return answers, times
