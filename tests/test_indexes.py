"""The vector and keyword indexes: against brute force, and as they follow their papers."""

import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.config import SearchConfig
from agent.corpus.embedding import embed_missing
from agent.domain import Filters, Paper, SearchRequest
from agent.errors import CorpusError
from agent.search import SearchAPI, fusion
from agent.search.corpus_index import CorpusIndex
from agent.search.embedder import Embedder
from agent.search.engine import SearchEngine
from agent.search.segments import problems_of
from agent.search.similarity import cosines, to_int8
from agent.search.vectors import TAIL_ROWS

MODEL, DIMENSIONS = "test-model", 16


# -- the parts, against brute force -----------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path):
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as opened:
        yield opened


def fill(index: CorpusIndex, count: int, *, start: int = 0, seed: int = 1) -> np.ndarray:
    """Papers with random vectors, made searchable; returns the stored int8 vectors."""
    matrix = to_int8(np.random.default_rng(seed).normal(size=(count, DIMENSIONS)).astype(np.float32))
    papers = [Paper(f"2001.{start + i:05d}", f"word{start + i} common") for i in range(count)]
    index.papers.put_vectors(MODEL, index.papers.put(papers).keys, matrix)
    index.catch_up()
    return matrix


def query_vector(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=DIMENSIONS).astype(np.float32)
    return vector / np.linalg.norm(vector)


def test_vectors_of_papers_that_were_removed_are_not_missed(tmp_path: Path) -> None:
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as index:
        fill(index, 150)
        index.papers.remove([f"2001.{i:05d}" for i in range(150)])
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as index:
        index.catch_up()
        assert (index.papers.count(), index.problems()) == (0, [])
        fill(index, 3)
        assert len(index.vectors) == 3


def test_the_tail_and_several_segments_give_the_nearest_of_all(index: CorpusIndex) -> None:
    matrix = np.vstack(
        [
            fill(index, 6 * TAIL_ROWS),
            fill(index, TAIL_ROWS + 1, start=50_000, seed=2),
            fill(index, 300, start=70_000, seed=3),
        ]
    )
    assert len(list(index.vectors.folder.glob("*.usearch"))) == 2
    assert len(index.vectors) == len(matrix)
    found = 0
    for seed in range(20):
        query = query_vector(seed)
        exact = set((np.argsort(-cosines(query, matrix))[:10] + 1).tolist())  # keys count from 1
        keys = index.vectors.nearest(query, 100)
        scores = index.vectors.scores(query, keys)
        best = keys[np.argsort(-scores)[:10]]
        np.testing.assert_allclose(scores, cosines(query, matrix[keys - 1]), rtol=1e-5)
        found += len(exact & set(best.tolist()))
    assert found >= 196  # recall@10 of 0.98


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_short_corpus_is_searched_exactly(tmp_path_factory, seed: int, count: int) -> None:
    with CorpusIndex(tmp_path_factory.mktemp("short"), MODEL, DIMENSIONS, owner=True) as index:
        matrix = fill(index, count, seed=seed)
        query = query_vector(seed ^ 1)
        keys = index.vectors.nearest(query, 5)
        expected = np.argsort(-cosines(query, matrix), kind="stable")[:5] + 1
        assert set(expected.tolist()) <= set(keys.tolist())


def test_papers_that_change_again_and_again_do_not_crowd_out_the_others(tmp_path: Path, monkeypatch) -> None:
    """Each version has a vector of its own; those of former versions must not take the candidates' places."""
    monkeypatch.setattr("agent.search.vectors.TAIL_ROWS", 60)
    matrix = to_int8(np.random.default_rng(1).normal(size=(300, DIMENSIONS)).astype(np.float32))
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as index:
        for version in range(12):
            papers = [Paper(f"2001.{i:05d}", f"word{i} in version {version}", version=version) for i in range(300)]
            for start in range(0, 300, 50):
                part = slice(start, start + 50)
                index.papers.put_vectors(MODEL, index.papers.put(papers[part]).keys, matrix[part])
                index.catch_up()
        current = set(index.papers.keys().tolist())
        assert len(index.vectors) <= 2 * 300
        assert list(problems_of(index.vectors.folder, index.papers.corpus_id(), index.papers.last_vector())) == []
        names = {key: paper.arxiv_id for key, paper in index.papers.papers()}
        for seed in range(20):
            near = [key for key in index.vectors.nearest(query_vector(seed), 100).tolist() if key in current]
            exact = np.argsort(-cosines(query_vector(seed), matrix), kind="stable")[:10]
            assert {f"2001.{n:05d}" for n in exact} <= {names[key] for key in near}
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=False) as index:
        assert current <= set(index.vectors.nearest(query_vector(1), 10_000).tolist())


def test_one_paper_that_changes_a_thousand_times_is_still_found(index: CorpusIndex) -> None:
    fill(index, 150)
    for version in range(1, 1_001):
        keys = index.papers.put([Paper("9901.00001", f"zebra {version}", version=version)]).keys
        index.papers.put_vectors(MODEL, keys, to_int8(query_vector(1)[None]))
        if version % 10 == 0:
            index.catch_up()
    assert keys[0] in index.vectors.nearest(query_vector(1), 100)
    assert len(index.vectors) <= 160


def test_remembered_filters_are_few_and_go_with_the_index_they_are_of(index: CorpusIndex) -> None:
    fill(index, 3)
    for number in range(200):
        index.keywords.allowed(Filters(authors=(f"Nobody {number}",)), 0)
    remembered = index.keywords._allowed  # noqa: SLF001  what it costs shows nowhere else
    assert len(remembered) <= 64
    fill(index, 1, start=10)
    assert not remembered


def test_threads_that_have_ended_leave_no_connection_behind(index: CorpusIndex) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        thread = threading.Thread(target=index.papers.count)
        thread.start()
        thread.join()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 10


def test_int8_vectors_keep_their_direction() -> None:
    vectors = np.random.default_rng(4).normal(size=(100, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert min(cosines(v, to_int8(v)[None])[0] for v in vectors) > 0.9998
    assert not np.isnan(cosines(vectors[0], np.zeros((1, 384), np.int8))).any()


def test_keyword_scores_of_given_papers_equal_those_of_the_search(sample_api: SearchAPI) -> None:
    keywords = sample_api.engine.index.keywords
    terms = keywords.terms("neural networks quantum gravity")
    found = keywords.search(terms, 100)
    assert 10 < len(found.keys) < 100
    scores = keywords.scores(terms, found.keys.tolist())
    assert dict(zip(found.keys.tolist(), found.scores.tolist(), strict=True)) == scores
    everything = keywords.scores(terms, range(1, 150))
    assert {key for key, score in everything.items() if score > 0} == set(scores)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 50)), min_size=1, max_size=20), st.floats(0, 1))
def test_fused_scores_stay_between_zero_and_one_and_respect_both_scores(pairs, weight: float) -> None:
    cosine, bm25 = (np.array(column) for column in zip(*pairs, strict=True))
    scores = fusion.hybrid_score(cosine, bm25, float(bm25.max()), weight)
    assert ((scores >= 0) & (scores <= 1 + 1e-9)).all()
    order = fusion.ranking(np.arange(len(scores)), scores)
    assert sorted(scores, reverse=True) == scores[order].tolist()


# -- indexes follow their papers --------------------------------------------------------------------------------------


def engine_of(index: CorpusIndex) -> SearchEngine:
    return SearchEngine(index, None, SearchConfig())


def keyword_hits(index: CorpusIndex, query: str) -> list[str]:
    result = engine_of(index).search(SearchRequest(query=query, mode="keyword"))
    return [hit.paper.arxiv_id for hit in result.hits]


def test_an_update_and_a_removal_are_searchable_after_catching_up(index: CorpusIndex) -> None:
    fill(index, 3)
    index.papers.put([Paper("2001.00001", "zebra")])
    index.papers.remove(["2001.00002"])
    assert keyword_hits(index, "common") == ["2001.00000"]  # rows that are no longer current drop out at once
    index.catch_up()
    assert keyword_hits(index, "zebra") == ["2001.00001"]
    assert keyword_hits(index, "word1") == keyword_hits(index, "word2") == []


def test_a_reader_beside_the_owner_sees_what_the_owner_has_committed(index: CorpusIndex) -> None:
    fill(index, 3)
    with CorpusIndex(index.folder, MODEL, DIMENSIONS, owner=False) as reader:
        assert keyword_hits(reader, "word2") == ["2001.00002"]
        fill(index, TAIL_ROWS + 1, start=10)
        reader.catch_up()
        assert keyword_hits(reader, "word500") == ["2001.00500"]
        assert len(reader.vectors) == len(index.vectors) == TAIL_ROWS + 4


def test_a_second_owner_writes_papers_but_leaves_the_caches_to_the_first_until_it_ends(tmp_path: Path) -> None:
    first = CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True)
    second = CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True)
    assert (first.writable, second.writable) == (True, False)
    fill(second, 3)
    assert first.keywords.reached == 0
    assert first.is_behind()
    first.catch_up()
    assert keyword_hits(first, "word1") == ["2001.00001"]
    second.catch_up()
    assert keyword_hits(second, "word1") == ["2001.00001"]
    first.close()
    fill(second, 1, start=9)
    assert second.writable
    assert keyword_hits(second, "word9") == ["2001.00009"]
    second.close()


@pytest.mark.parametrize("lost", ["keywords", "vectors", "keywords/reached.json", "vectors/segments.json", "keywords/meta.json"])  # fmt: skip
def test_a_lost_cache_is_made_again_from_the_papers(tmp_path: Path, lost: str) -> None:
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as index:
        matrix = fill(index, TAIL_ROWS + 5)
    subprocess.run(["rm", "-r", tmp_path / lost], check=True)
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as index:
        index.catch_up()
        assert keyword_hits(index, "word7") == ["2001.00007"]
        assert 1 in index.vectors.nearest(np.float32(matrix[0]) / np.linalg.norm(np.float32(matrix[0])), 10)
        assert len(index.vectors) == TAIL_ROWS + 5


def test_what_failed_to_follow_once_is_followed_the_next_time(index: CorpusIndex, monkeypatch) -> None:
    with CorpusIndex(index.folder, MODEL, DIMENSIONS, owner=True) as other:
        other.papers.put([Paper("1", "zebra")])
    with monkeypatch.context() as broken:
        broken.setattr(index.keywords, "apply", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(CorpusError, match="space"):
            index.catch_up()
    assert index.is_behind()
    index.catch_up()
    assert keyword_hits(index, "zebra") == ["1"]
    assert not index.is_behind()


def test_papers_are_searchable_while_the_rest_is_still_being_embedded(tmp_path, embedder, monkeypatch) -> None:
    for name in ("WINDOW", "FRESH"):
        monkeypatch.setattr(f"agent.corpus.embedding.{name}", 8)
    with CorpusIndex(tmp_path, embedder.manifest.name, embedder.dimensions, owner=True) as index:
        index.papers.put([Paper(f"2001.{i:05d}", f"word{i}") for i in range(20)])
        searchable: list[int] = []
        embed_missing(index, embedder, progress=lambda _: searchable.append(len(index.vectors)))
        assert 8 in searchable
        assert keyword_hits(index, "word3") == ["2001.00003"]


def test_an_empty_file_of_a_segment_is_a_lost_cache(tmp_path: Path) -> None:
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as index:
        fill(index, TAIL_ROWS + 5)
    for path in (tmp_path / "vectors").glob("*.rows.npy"):
        path.write_bytes(b"")
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as index:
        assert len(index.vectors) == TAIL_ROWS + 5


def test_vectors_of_another_model_are_not_used(tmp_path: Path) -> None:
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as index:
        fill(index, TAIL_ROWS + 5)
    with CorpusIndex(tmp_path, "another", 4, owner=True) as index:
        assert len(index.vectors) == 0


def test_every_paper_is_embedded_once(tmp_path: Path, embedder: Embedder) -> None:
    model = embedder.manifest.name
    with CorpusIndex(tmp_path, model, embedder.dimensions, owner=True) as index:
        index.papers.put([Paper(f"2001.{i:05d}", f"Title {i}", "words " * (i % 40)) for i in range(70)])
        seen: list[int] = []
        assert embed_missing(index, embedder, progress=seen.append) == 70
        assert seen == sorted(seen)
        assert embed_missing(index, embedder) == 0
        assert index.papers.count_embedded(model) == len(index.vectors) == 70
        index.papers.put([Paper("2001.00003", "Another title")])
        assert embed_missing(index, embedder) == 1
        assert embed_missing(index, embedder, stop=lambda: True) == 0


def test_only_one_process_embeds_at_a_time(tmp_path: Path, embedder: Embedder) -> None:
    with CorpusIndex(tmp_path, embedder.manifest.name, embedder.dimensions, owner=True) as index:
        index.papers.put([Paper("1", "t")])
        inner: list[int | None] = []
        embed_missing(index, embedder, progress=lambda _: inner.append(embed_missing(index, embedder)))
        assert inner == [None]


def test_the_order_of_loading_the_native_libraries_does_not_crash(tmp_path: Path) -> None:
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as index:
        fill(index, TAIL_ROWS + 1)
    code = (
        "from pathlib import Path; from agent.search.corpus_index import CorpusIndex\n"
        f"CorpusIndex(Path({str(tmp_path)!r}), {MODEL!r}, {DIMENSIONS}, owner=False)\n"
        "from agent.config import load_config; from agent.search.api import load_embedder\n"
        "print(load_embedder(load_config(environment={})).query('x').shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "(384,)", done.stderr


GROUP = """
import os, sys
os.umask(0o007)
from agent.cli import cli
cli(["--data-dir", sys.argv[1], "corpus", "import", "--sample"])
"""


def test_what_one_user_makes_the_others_of_the_group_may_change(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    subprocess.run([sys.executable, "-c", GROUP, str(data_dir)], check=True, capture_output=True)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in data_dir.rglob("*") if not path.is_symlink()}
    assert {path.name for path in found} >= {"papers.db", "meta.json", ".managed.json"}
    assert [(path, oct(mode)) for path, mode in found.items() if mode != (0o770 if path.is_dir() else 0o660)] == []
