"""papers.db: the truth, by change number."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.domain import Paper
from agent.errors import CorpusError
from agent.store.papers import PaperStore
from agent.store.rows import compare


@pytest.fixture
def store(tmp_path: Path):
    opened = PaperStore(tmp_path / "papers.db")
    yield opened
    opened.close()


def paper(number: int, text: str = "text", updated: str = "2020-01-01", version: int = 0) -> Paper:
    return Paper(f"2001.{number:05d}", f"Title {number}", text, updated=updated, version=version)


def vector(value: int) -> np.ndarray:
    return np.full((1, 4), value, np.int8)


steps = st.lists(
    st.tuples(st.sampled_from(["put", "remove"]), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=25
)


@given(steps)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_leaves_the_latest_papers_and_rising_change_numbers(tmp_path_factory, history) -> None:
    store = PaperStore(tmp_path_factory.mktemp("history") / "papers.db")
    expected: dict[str, Paper] = {}
    for action, number, text in history:
        before = store.last_change()
        given_paper = paper(number, f"text {text}")
        known = expected.get(given_paper.arxiv_id)
        if action == "put":
            store.put([given_paper])
            expected[given_paper.arxiv_id] = given_paper
            changed = known != given_paper
        else:
            removed = store.remove([given_paper.arxiv_id])
            changed = expected.pop(given_paper.arxiv_id, None) is not None
            assert changed == (removed == [given_paper.arxiv_id])
        assert store.last_change() == before + changed
    assert expected == {found.arxiv_id: found for _, found in store.papers()}
    followed: dict[str, Paper] = {}
    reached = 0
    while changes := store.changes_since(reached, 3):
        assert [change.number for change in changes] == sorted(change.number for change in changes)
        for change in changes:
            followed.pop(change.arxiv_id, None)
            if change.paper:
                followed[change.arxiv_id] = change.paper
        reached = changes[-1].number
    assert expected == followed
    store.close()


@pytest.mark.parametrize(
    ("stored", "given_version", "verdict"),
    [
        (paper(1), paper(1), "unchanged"),
        (paper(1, version=2), paper(1, "new", version=1), "older"),
        (paper(1, version=1), paper(1, "new", updated="2019-01-01", version=2), "updated"),
        (paper(1, updated="2020-05-12"), paper(1, "new", updated="2020-05-11"), "older"),
        (paper(1, updated="2020-05-12"), paper(1, "new", updated="2020-05"), "updated"),
        (paper(1, updated="2020-05-12"), paper(1, "new", updated="2020-05-12"), "updated"),
        (paper(1, updated=""), paper(1, "new"), "updated"),
        (paper(1), paper(1, "new", updated=""), "updated"),
    ],
)
def test_which_of_two_versions_is_the_newer(stored: Paper, given_version: Paper, verdict: str) -> None:
    assert verdict == compare(stored, given_version)


def test_a_changed_text_drops_its_vector_and_an_unchanged_one_keeps_it(store: PaperStore) -> None:
    keys = store.put([paper(1), paper(2)]).keys
    assert store.put_vectors("m", keys, np.vstack([vector(1), vector(2)])) == 2
    store.put([paper(1, updated="2021-01-01"), paper(2, "other text")])
    stored = store.vectors_since(0, "m", 4, 10)
    assert [store.find("2001.00001")[0]] == stored.keys.tolist()
    assert vector(1).tolist() == stored.matrix.tolist()
    assert [(store.find("2001.00002")[0], "Title 2. other text")] == store.without_vector("m", 10)


def test_a_vector_is_stored_once_and_only_for_a_current_paper(store: PaperStore) -> None:
    key = store.put([paper(1)]).keys[0]
    assert store.put_vectors("m", [key], vector(1)) == 1
    assert store.put_vectors("m", [key], vector(9)) == 0
    assert store.put_vectors("m", [key + 100], vector(9)) == 0
    assert store.put_vectors("another model", [key], vector(5)) == 1
    assert (store.count_embedded("m"), store.count_embedded("another model")) == (0, 1)


def test_a_removed_paper_takes_its_vector_along(store: PaperStore) -> None:
    key = store.put([paper(1)]).keys[0]
    store.put_vectors("m", [key], vector(1))
    store.remove(["2001.00001"])
    assert (store.count(), store.count_embedded("m")) == (0, 0)
    assert store.get([key]) == {}


def test_another_connection_sees_a_change_and_is_told_of_it(store: PaperStore, tmp_path: Path) -> None:
    other = PaperStore(tmp_path / "papers.db", read_only=True)
    before = other.data_version()
    store.put([paper(1)])
    assert before != other.data_version()
    assert other.count() == 1
    with pytest.raises(CorpusError):
        other.put([paper(2)])
    other.close()


def test_many_threads_write_and_nothing_is_lost(store: PaperStore) -> None:
    threads = [
        threading.Thread(target=lambda start=start: [store.put([paper(start + i)]) for i in range(20)])
        for start in range(0, 80, 20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (store.count(), store.last_change()) == (80, 80)


def test_a_failed_batch_leaves_nothing_behind(store: PaperStore) -> None:
    with pytest.raises(AttributeError):
        store.put([paper(1), "no paper"])
    assert store.count() == 0
    store.put([paper(1)])


def test_a_file_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "papers.db").write_bytes(b"not a database at all, but long enough to be read as one" * 20)
    with pytest.raises(CorpusError, match=r"papers\.db"):
        PaperStore(tmp_path / "papers.db")


def test_processes_that_open_a_new_corpus_at_once_all_succeed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from agent.store.papers import PaperStore; from agent.domain import Paper\n"
        f"store = PaperStore(pathlib.Path({str(tmp_path)!r}) / 'papers.db')\n"
        "store.put([Paper(sys.argv[1], 'title')]); print(store.count() > 0)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, f"2001.{i:05d}"], stdout=subprocess.PIPE) for i in range(6)
    ]
    assert [process.communicate()[0].strip() for process in processes] == [b"True"] * 6
    store = PaperStore(tmp_path / "papers.db", read_only=True)
    assert store.count() == 6
    store.close()
