"""Part `peers`: every engine over the same papers and the same given vectors, each in a fresh process, in one run."""

import csv
import gzip
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import zstandard

from agent.config import load_config
from agent.evaluation import ndcg
from agent.paths import find_model
from agent.search.api import load_embedder
from benchmarks.bare import BareModel, int8_of
from benchmarks.data import OUTPUT, SHARED, layout, papers_file, queries, vectors_of
from benchmarks.exact import ExactScan, choose_filters
from benchmarks.peers.engine import Source
from benchmarks.peers.environment import LOCK
from benchmarks.peers.registry import ENGINES, OURS, in_fresh_process
from benchmarks.report import percentiles, publish

FOLDER: Final = OUTPUT / "peers"
SCIFACT: Final = "scifact"
ROUNDS: Final = 5
"""Of the ranking: qdrant-edge breaks the ties of reciprocal ranks by chance."""


def measure(size: str, engines: tuple[str, ...], count: int) -> None:
    source = source_of(size)
    papers = list(source.papers())
    rows = {paper["arxiv_id"]: row for row, paper in enumerate(papers)}
    filters = choose_filters(paper["terms"] for paper in papers)
    del papers
    texts = queries(count)
    model = BareModel(model_folder())
    vectors = [model.embed(text) for text in texts]
    exact = ExactScan(source.vectors)

    def recall(searched: dict[str, Any], allowed: Any = None) -> float:
        ids = [[rows.get(one, one) for one in found] for found in searched["found"]]
        each = [exact.recall(vector, found, allowed=allowed) for vector, found in zip(vectors, ids, strict=True)]
        return round(float(np.mean(each)), 4)

    table: dict[str, dict[str, Any]] = {}
    versions = set()
    for name in engines or tuple(ENGINES):
        folder, built = index_of(name, size)
        order = {"warm_up": queries(40)[20:], "queries": texts, "filters": {key: f[0] for key, f in filters.items()}}
        done = in_fresh_process(name, {"do": "measure", "folder": str(folder), "model": str(model_folder()), **order})
        pairs = zip(done["hybrid_s"], done["hybrid_without_embedding_s"], strict=True)
        embedding = [whole - without for whole, without in pairs]
        table[name] = {
            **_times("dense", done["dense"]["seconds"]),
            "dense_recall": recall(done["dense"]),
            **_times("keyword", done.get("keyword_s", [])),
            **_times("hybrid", done["hybrid_without_embedding_s"]),
            **_times("hybrid_embedded", done["hybrid_s"]),
            # The same work in every process: where it differs, the machine was not the same.
            "embedding_p50_ms": percentiles(embedding)["p50_ms"],
        }
        for key, (_, allowed) in filters.items():
            searched = done["filtered"][key]
            table[name] |= {
                f"{key}_p50_ms": percentiles(searched["seconds"])["p50_ms"],
                f"{key}_recall": recall(searched, allowed),
                f"{key}_hits": min(map(len, searched["found"])),
            }
        table[name] |= {f"{kind}_mib": value for kind, value in done["memory"].items()}
        versions.add(done["version"])
        table[name] |= {"open_s": round(done["open_s"], 3), **built, "ndcg": ranking(name)}
    publish(
        f"peers-{size}-part" if engines else f"peers-{size}",  # a part does not replace the whole
        table,
        filters={key: chosen for key, (chosen, _) in filters.items()},
        queries=len(texts),
        versions=sorted(versions),
    )


def _times(name: str, seconds: list[float]) -> dict[str, float]:
    times = percentiles(seconds) if seconds else {}
    return {f"{name}_{key}": value for key, value in times.items() if key != "p99_ms"}


def model_folder() -> Path:
    config = load_config(environment={})
    folder = find_model(config.data_dir, config.model.name)
    assert folder
    return folder


def source_of(size: str) -> Source:
    return _scifact() if size == SCIFACT else Source(papers_file(size), vectors_of(size))


def index_of(name: str, size: str) -> tuple[Path, dict[str, Any]]:
    """The folder of the engine's index, and what building took.

    Built at the first call and kept until the way in which it is built changes.
    """
    folder = FOLDER / size / ENGINES[name].folder
    record, index, stamp = folder / "built.json", folder / "index", _stamp(name)
    built: dict[str, Any] = json.loads(record.read_text("ascii")) if record.is_file() else {}
    if built.get("stamp") != stamp:
        shutil.rmtree(folder, ignore_errors=True)
        index.mkdir(parents=True)
        source = source_of(size)
        order = {"do": "build", "file": str(source.file), "vectors": str(source.vectors)}
        done = in_fresh_process(name, {**order, "folder": str(index), "model": str(model_folder())})
        disk = sum(path.lstat().st_blocks * 512 for path in index.rglob("*") if path.is_file())
        built = {"stamp": stamp, "build_cpu_s": round(done["cpu_s"], 1), "disk_mb": round(disk / 1e6, 1)}
        record.write_text(json.dumps(built), "ascii")
    return index, {key: built[key] for key in ("build_cpu_s", "disk_mb")}


def _stamp(name: str) -> str:
    """Of all that decides what an index holds: the peer's module and the versions, or the layout of papers.db."""
    if name == OURS:
        return layout()
    module = Path(__file__).parent / "peers" / f"{ENGINES[name].module}.py"
    return hashlib.sha256(module.read_bytes() + LOCK.read_bytes()).hexdigest()


def ranking(name: str) -> float:
    """nDCG@10 on SciFact's test questions of what the engine answers to a hybrid question."""
    judged: dict[str, dict[str, int]] = {}
    with (SHARED / SCIFACT / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            judged.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    with gzip.open(SHARED / SCIFACT / "queries.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = {row["_id"]: row["text"] for row in map(json.loads, lines) if row["_id"] in judged}
    folder, _ = index_of(name, SCIFACT)
    asked = list(texts) * ROUNDS
    order = {"do": "rank", "folder": str(folder), "model": str(model_folder()), "queries": [texts[q] for q in asked]}
    rankings = in_fresh_process(name, order)["rankings"]
    gains = [ndcg(found, judged[query]) for query, found in zip(asked, rankings, strict=True)]
    return round(float(np.mean(gains)), 4)


def _scifact() -> Source:
    """SciFact's documents as papers with their vectors, made at the first call."""
    source = Source(OUTPUT / "scifact.jsonl.zst", OUTPUT / "scifact.npy")
    if not source.vectors.is_file():
        OUTPUT.mkdir(parents=True, exist_ok=True)
        with gzip.open(SHARED / SCIFACT / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        papers = [{"arxiv_id": row["_id"], "title": row["title"], "abstract": row["text"]} for row in rows]
        with zstandard.open(source.file, "wb") as file:
            file.write("".join(json.dumps(paper) + "\n" for paper in papers).encode())
        texts = [f"{paper['title']}. {paper['abstract']}" for paper in papers]
        np.save(source.vectors, int8_of(load_embedder(load_config(environment={})).documents(texts, workers=2)))
    return source
