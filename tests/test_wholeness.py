"""Whole after every crash and every damage: papers, vectors and keywords agree, and nothing that was done is lost."""

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import Client, run_command, wait_until

from agent.corpus.upkeep import rebuild, verify
from agent.domain import Paper
from agent.errors import CorpusError
from agent.search import vectors
from agent.search.corpus_index import CorpusIndex
from agent.search.similarity import to_int8
from benchmarks.kills import kill_and_compare

WORDS = ["galaxy", "neuron", "lattice", "quantum", "protein", "market", "turbulence", "graph", "prime", "theorem", "laser", "climate"]  # fmt: skip


def test_fifty_kills_leave_the_corpus_that_was_built_without_any(tmp_path: Path) -> None:
    outcome = kill_and_compare(tmp_path, seed=7, papers=500, kills=50, batch=9, longest_s=0.25)
    assert outcome.problems == []


# -- damaged files ----------------------------------------------------------------------------------------------------

MODEL, DIMENSIONS, PAPERS = "test-model", 16, 300


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of several vector and keyword segments, closed in order."""
    monkeypatch.setattr(vectors, "TAIL_ROWS", 50)
    rng = np.random.default_rng(3)
    folder = tmp_path / "generation"
    folder.mkdir()
    with CorpusIndex(folder, MODEL, DIMENSIONS, owner=True) as index:
        for start in range(0, PAPERS, 100):
            papers = [Paper(f"2301.{n:05d}", f"{WORDS[n % 12]} word{n}", "common") for n in range(start, start + 100)]
            matrix = to_int8(rng.normal(size=(100, DIMENSIONS)).astype(np.float32))
            index.papers.put_vectors(MODEL, index.papers.put(papers).keys, matrix)
            index.catch_up()
    assert verify(folder) == []
    return folder


def found_in(folder: Path, *, owner: bool = True) -> tuple:
    query = np.ones(DIMENSIONS, np.float32) / 4
    with CorpusIndex(folder, MODEL, DIMENSIONS, owner=owner) as index:
        index.catch_up()
        keys = np.array([key for key, _ in index.papers.papers()])
        near = index.vectors.nearest_among(query, keys, 20)  # the graph itself finds not quite the same each time
        matches = index.keywords.search(["common"], 2 * PAPERS)
        return sorted(near.tolist()), sorted(matches.keys.tolist()), index.papers.count()


def damage(path: Path, seed: int) -> None:
    """Lose a sector's worth of bytes somewhere in the file, as a card does."""
    content = path.read_bytes()
    rng = random.Random(seed)
    start = rng.randrange(max(1, len(content) - 64))
    lost = bytes(byte ^ rng.randrange(1, 256) for byte in content[start : start + 64])
    with path.open("r+b") as file:  # in place: a file that shrinks under a mapping kills the process that mapped it
        file.seek(start)
        file.write(lost)


CACHES = ["vectors/*.usearch", "vectors/*.rows.npy", "vectors/segments.json", "keywords/*.idx", "keywords/*.fast", "keywords/*.fieldnorm", "keywords/*.term", "keywords/*.store", "keywords/*.pos", "keywords/meta.json", "keywords/reached.json"]  # fmt: skip


@pytest.mark.parametrize("pattern", CACHES)
def test_damage_in_any_file_of_an_index_is_found_and_healed(folder: Path, pattern: str) -> None:
    expected = found_in(folder)
    for seed in range(3):
        path = random.Random(seed).choice(sorted(folder.glob(pattern)))
        damage(path, seed)
        problems = verify(folder)
        assert any(path.parent.name in problem for problem in problems), pattern
        rebuild(folder, MODEL, DIMENSIONS)
        assert verify(folder) == []
        assert found_in(folder) == expected


@pytest.mark.parametrize("pattern", CACHES)
def test_after_a_crash_the_start_heals_a_damaged_index_by_itself(folder: Path, pattern: str) -> None:
    expected = found_in(folder)
    damage(random.Random(1).choice(sorted(folder.glob(pattern))), 1)
    (folder / "caches.in-use").touch()  # what a killed owner leaves
    assert found_in(folder) == expected
    assert verify(folder) == []


@pytest.mark.parametrize("lost", ["keywords/*.idx", "keywords/*.term", "vectors/*.usearch", "vectors/*.rows.npy"])
def test_a_lost_file_of_an_index_is_found_and_healed(folder: Path, lost: str) -> None:
    expected = found_in(folder)
    next(iter(folder.glob(lost))).unlink()
    assert verify(folder)
    rebuild(folder, MODEL, DIMENSIONS)
    assert (verify(folder), found_in(folder)) == ([], expected)


@pytest.mark.parametrize("seed", range(12))
def test_damage_in_papers_is_found_and_no_damaged_row_passes_for_a_whole_one(folder: Path, seed: int) -> None:
    before = {paper.arxiv_id: paper for paper in papers_of(folder)}
    damage(folder / "papers.db", seed)
    problems = verify(folder)
    try:
        done = rebuild(folder, MODEL, DIMENSIONS)
    except CorpusError as error:
        assert "cannot be read" in error.message  # the head of the file is gone
        assert problems
        return
    after = {paper.arxiv_id: paper for paper in papers_of(folder)}
    assert all(before[name] == paper for name, paper in after.items())
    assert verify(folder) == []
    if not problems:  # the damage fell on bytes that hold nothing
        assert (after, done.salvaged) == (before, None)
    assert len(found_in(folder)[1]) == len(after)


def test_a_flipped_bit_in_one_text_costs_that_paper_alone(folder: Path) -> None:
    content = (folder / "papers.db").read_bytes()
    assert content.count(b"word123") == 1
    (folder / "papers.db").write_bytes(content.replace(b"word123", b"word12s"))
    assert verify(folder) == ["papers.db: 1 damaged paper rows: 2301.00123"]
    done = rebuild(folder, MODEL, DIMENSIONS)
    assert (done.papers, done.vectors, done.salvaged.lost) == (PAPERS - 1, PAPERS - 1, 1)
    assert "2301.00123" not in {paper.arxiv_id for paper in papers_of(folder)}
    assert len(list(folder.glob("papers.db.damaged-*"))) >= 1  # kept for whoever wants to look


def papers_of(folder: Path) -> list[Paper]:
    with CorpusIndex(folder, MODEL, DIMENSIONS, owner=False) as index:
        return [paper for _, paper in index.papers.papers()]


@pytest.mark.parametrize("step", range(1, 5))
def test_a_rebuild_that_is_killed_between_its_renames_can_be_done_again(folder: Path, step: int, monkeypatch) -> None:
    content = (folder / "papers.db").read_bytes()
    (folder / "papers.db").write_bytes(content.replace(b"word123", b"word12s"))
    calls = []

    def then_die(method):
        def wrapped(self, target):
            calls.append(target)
            if len(calls) == step:
                raise KeyboardInterrupt
            return method(self, target)

        return wrapped

    with monkeypatch.context() as dying:
        for name in ("rename", "replace", "hardlink_to"):
            dying.setattr(Path, name, then_die(getattr(Path, name)))
        with suppress(KeyboardInterrupt):
            rebuild(folder, MODEL, DIMENSIONS)
    rebuild(folder, MODEL, DIMENSIONS)
    assert (verify(folder), len(papers_of(folder))) == ([], PAPERS - 1)


def test_a_corpus_that_never_held_a_paper_is_whole(tmp_path: Path) -> None:
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as index:
        index.catch_up()
    assert verify(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 500])
def test_papers_of_which_nothing_is_left_are_not_replaced_by_none(folder: Path, content: bytes) -> None:
    (folder / "papers.db").write_bytes(content)
    assert verify(folder)
    with pytest.raises(CorpusError, match="read"):
        rebuild(folder, MODEL, DIMENSIONS)
    assert (folder / "papers.db").read_bytes() == content


@pytest.mark.parametrize("name", ["keywords/reached.json", "vectors/segments.json"])
def test_a_state_file_that_rots_or_is_lost_is_found(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    for number, byte in enumerate(content):
        if chr(byte).isalnum():
            other = b"1" if byte != ord("1") else b"2"
            path.write_bytes(content[:number] + other + content[number + 1 :])
            assert any(path.parent.name in problem for problem in verify(folder)), number
    path.unlink()
    assert any(path.parent.name in problem for problem in verify(folder))


def test_a_full_disk_is_not_taken_for_damage(small_disk: Path) -> None:
    folder = small_disk / "generation"
    folder.mkdir()
    with CorpusIndex(folder, MODEL, DIMENSIONS, owner=True) as index:
        index.papers.put([Paper(f"2301.{n:05d}", f"word{n} common") for n in range(300)])
        index.catch_up()
        index.papers.put([Paper(f"2302.{n:05d}", f"later{n} common") for n in range(300)])
        (small_disk / "fill").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 20_000))
        with pytest.raises(CorpusError):
            index.catch_up()
        assert len(index.keywords.search(["common"], 1_000).keys) == 300, "what was there is still there"
        (small_disk / "fill").unlink()
        index.catch_up()
        assert len(index.keywords.search(["common"], 1_000).keys) == 600


def test_an_index_of_another_state_of_the_corpus_is_not_believed(folder: Path, tmp_path: Path) -> None:
    """papers.db was restored from before, or is another one: what the indexes know is not in it."""
    older = tmp_path / "older"
    shutil.copytree(folder, older)
    with CorpusIndex(folder, MODEL, DIMENSIONS, owner=True) as index:
        more = [Paper(f"2302.{n:05d}", f"common later{n}") for n in range(100)]
        index.papers.put_vectors(MODEL, index.papers.put(more).keys, np.ones((100, DIMENSIONS), np.int8))
        index.catch_up()
    shutil.copy(older / "papers.db", folder / "papers.db")
    assert found_in(folder) == found_in(older)
    for path in folder.glob("papers.db*"):
        path.unlink()
    with CorpusIndex(folder, MODEL, DIMENSIONS, owner=True) as index:
        index.papers.put([Paper(f"2303.{n:05d}", "common") for n in range(500)])
    assert len(found_in(folder)[1]) == 500


def test_an_agent_on_a_damaged_index_answers_by_the_other_and_heals_it(start_agent, sample_data_dir, broker) -> None:
    """Damage that a clean stop left unseen: a search finds it."""
    for path in (sample_data_dir / "current" / "keywords").glob("*.idx"):
        content = path.read_bytes()
        path.write_bytes(b"\x00" * (len(content) - 200) + content[-200:])
    start_agent(sample_data_dir, broker.port)
    client = Client(broker.port)
    question = "how tightly can equal spheres be packed"
    hybrid = client.ask({"query": question})
    assert hybrid["results"][0]["arxiv_id"] == "1603.04246"

    def healed() -> bool:
        answer = client.ask({"query": question, "filters": {"mode": "keyword"}})
        return bool(answer["results"]) and answer["results"][0]["arxiv_id"] == "1603.04246"

    wait_until(healed)
    client.close()


def test_an_agent_with_a_damaged_model_answers_by_keyword_and_says_so(start_agent, sample_data_dir, broker) -> None:
    model = sample_data_dir / "models" / "all-MiniLM-L6-v2"
    model.mkdir(parents=True)
    for name in ("model.onnx", "model.yaml", "tokenizer.json"):
        (model / name).write_bytes(b"not what it should be")
    agent = start_agent(sample_data_dir, broker.port)
    client = Client(broker.port)
    answer = client.ask({"query": "sphere packing"})
    assert (answer["metadata"]["mode"], answer["results"][0]["arxiv_id"]) == ("keyword", "1603.04246")
    client.subscribe("arxplorer/status/test-agent")
    status = json.loads(client.next().payload)
    assert status["status"] == "degraded"
    assert "model all-MiniLM-L6-v2 is damaged" in status["details"]["problems"][0]
    client.close()
    assert agent.stop() == 0


def test_the_commands_find_damage_and_make_it_whole(sample_data_dir: Path) -> None:
    assert run_command("corpus", "verify", data_dir=sample_data_dir).stdout == b"the corpus is whole\n"
    path = next((sample_data_dir / "current" / "keywords").glob("*.term"))
    damage(path, 1)
    found = run_command("corpus", "verify", "--json", data_dir=sample_data_dir)
    assert (found.returncode, path.name in json.loads(found.stdout)["problems"][0]) == (1, True)
    assert b"corpus rebuild" in found.stderr
    healed = run_command("corpus", "rebuild", "--json", data_dir=sample_data_dir)
    assert json.loads(healed.stdout) == {"papers": 149, "vectors": 149, "salvaged": None}
    assert run_command("corpus", "verify", data_dir=sample_data_dir).returncode == 0


def test_a_search_without_its_keyword_index_says_so_and_embedding_heals_it(sample_data_dir: Path) -> None:
    shutil.rmtree(sample_data_dir / "current" / "keywords")
    lost = run_command("search", "sphere packing", "--mode", "keyword", data_dir=sample_data_dir)
    assert b"keyword index lacks the latest 149 changes" in lost.stderr
    run_command("corpus", "embed", data_dir=sample_data_dir)
    healed = run_command("search", "sphere packing", "--mode", "keyword", "--json", data_dir=sample_data_dir)
    assert (json.loads(healed.stdout)["results"][0]["arxiv_id"], healed.stderr) == ("1603.04246", b"")
