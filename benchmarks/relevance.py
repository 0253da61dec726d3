"""Ranking quality on SciFact: nDCG@10 and recall@100 on test (reported) and train (for tuning)."""

from agent.config import load_config
from agent.evaluation import evaluate_folder
from agent.search.api import load_embedder
from benchmarks.data import SHARED
from benchmarks.report import publish


def measure() -> None:
    config = load_config(environment={})
    scores = evaluate_folder(SHARED / "scifact", ["test", "train"], load_embedder(config), config.search)
    rows = {f"{name} {mode}": dict(figures) for name, modes in scores.items() for mode, figures in modes.items()}
    publish("relevance", rows)
