"""Ranking quality, measured."""

import gzip
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import SearchConfig
from agent.errors import CorpusError
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


CORPUS = '{"_id": "d1", "title": "Zebrafish", "text": "A fish."}'
QUERIES = '{"_id": "q1", "text": "zebrafish"}'
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\n"


def folder_of(path: Path, **changes: str | bytes) -> Path:
    """A BEIR-style folder of one document and one query, with some of its files otherwise."""
    (path / "qrels").mkdir()
    files = {"corpus": CORPUS, "queries": QUERIES, "qrels": QRELS, **changes}
    for name, place in {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels/test.tsv"}.items():
        content = files[name]
        (path / place).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"corpus": '{"_id": "d1", "title": null, "text": "zebrafish"}'},
        {"corpus": '{"_id": "d1", "text": "zebrafish", "metadata": {}}'},
        {"queries": '{"_id": 1, "text": "zebrafish"}', "qrels": QRELS.replace("q1", "1")},
        {"corpus": "\ufeff" + CORPUS, "queries": "\ufeff" + QUERIES, "qrels": "\ufeff" + QRELS},
    ],
)
def test_what_is_clear_though_unusual_is_read(changes: dict, embedder: Embedder, tmp_path: Path) -> None:
    scores = evaluate_folder(folder_of(tmp_path, **changes), ["test"], embedder, SearchConfig())["test"]
    assert scores["hybrid"] == {"ndcg@10": 1.0, "recall@100": 1.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": f'{CORPUS}\n{{"_id": "d2", "text": null}}'}, r"corpus\.jsonl line 2: text: Expected `str`"),
        ({"corpus": '{"_id": "d1", "title": 5, "text": "x"}'}, r"line 1: title: Expected `str \| null`"),
        ({"corpus": '{"_id": "d1", "text": "\\ud800 and more"}'}, r"corpus\.jsonl line 1: "),
        ({"queries": '{"_id": "q1", "text": "\\udc00"}'}, r"queries\.jsonl line 1: "),
        ({"queries": '{"_id": "q1"}'}, "line 1: .*`text`"),
        ({"queries": b'{"_id": "q1", "text": "\xff"}'}, "line 1: .*utf-8"),
        ({"queries": "[" * 5_000}, "line 1: "),
        ({"queries": '{"_id": "q2", "text": "x"}'}, "judged but not there: q1"),
        ({"qrels": "q1\td1\t1\nq1\td1\t1\n"}, r"test\.tsv cannot be read as judgements"),
        ({"qrels": QRELS + "q1\td2\tgood\n"}, "good"),
        ({"qrels": QRELS + "q1\t" + "d" * 200_000 + "\t1\n"}, "field larger"),
        ({"qrels": b"\xff\xfe"}, "utf-8"),
    ],
)
def test_a_malformed_file_is_a_clear_error(changes: dict, said: str, embedder: Embedder, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=said):
        evaluate_folder(folder_of(tmp_path, **changes), ["test"], embedder, SearchConfig())


def test_a_part_of_scifact_is_ranked_as_well_as_the_whole_promises(
    shared: Path, embedder: Embedder, tmp_path: Path
) -> None:
    """Of all documents the bench tells, `scripts/bench relevance`: embedding them takes minutes.

    Here are those that are judged, and an eighth of the others. Among fewer documents each is found more easily: the
    bounds are as far below what was measured here (.814, .809, .858, .993) as those of the whole (.66, .645, .73, .95) below .689, .650, .738 and its recall.
    """
    source = shared / "data" / "scifact"
    for name in ("queries.jsonl.gz", "qrels"):
        (tmp_path / name).symlink_to(source / name)
    judged = {line.split("\t")[1] for line in (source / "qrels" / "test.tsv").read_text("utf-8").splitlines()}
    with gzip.open(source / "corpus.jsonl.gz", "rt", encoding="utf-8") as documents:
        lines = [line for number, line in enumerate(documents) if number % 8 == 0 or json.loads(line)["_id"] in judged]
    (tmp_path / "corpus.jsonl").write_text("".join(lines), "utf-8")
    scores = evaluate_folder(tmp_path, ["test"], embedder, SearchConfig())["test"]
    best_alone = max(scores["keyword"]["ndcg@10"], scores["semantic"]["ndcg@10"])
    assert scores["keyword"]["ndcg@10"] >= 0.785
    assert scores["semantic"]["ndcg@10"] >= 0.803
    assert scores["hybrid"]["ndcg@10"] >= 0.85
    assert scores["hybrid"]["ndcg@10"] >= best_alone + 0.03
    assert scores["hybrid"]["recall@100"] >= 0.98
