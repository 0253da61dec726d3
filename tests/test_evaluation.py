"""Ranking quality, measured."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import SearchConfig
from agent.evaluation import evaluate_folder, ndcg, recall
from agent.search.embedder import Embedder


def test_ndcg_of_a_known_ranking() -> None:
    relevance = {"a": 1, "b": 1, "c": 0}
    assert ndcg(["a", "b"], relevance) == 1.0
    assert ndcg(["x", "a"], relevance) == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert ndcg(["x"] * 10 + ["a"], relevance) == 0.0
    assert recall(["x", "a"], relevance) == 0.5


@given(st.permutations("abcdefgh"), st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 3), min_size=1))
def test_no_ranking_beats_the_ideal_one(ranking: list[str], relevance: dict[str, int]) -> None:
    ideal = sorted(relevance, key=relevance.__getitem__, reverse=True)
    assert 0 <= ndcg(ranking, relevance) <= ndcg(ideal, relevance) + 1e-12
    assert recall(ranking, relevance) == 1.0


def test_scifact_is_ranked_as_well_as_promised(shared: Path, embedder: Embedder) -> None:
    scores = evaluate_folder(shared / "data" / "scifact", ["test"], embedder, SearchConfig())["test"]
    best_alone = max(scores["keyword"]["ndcg@10"], scores["semantic"]["ndcg@10"])
    assert scores["keyword"]["ndcg@10"] >= 0.66
    assert scores["semantic"]["ndcg@10"] >= 0.645
    assert scores["hybrid"]["ndcg@10"] >= 0.73
    assert scores["hybrid"]["ndcg@10"] >= best_alone + 0.03
    assert scores["hybrid"]["recall@100"] >= 0.95
