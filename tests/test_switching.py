"""From one generation to another and back: what was added and removed on this device holds in all of them."""

import json
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_command, wait_until
from generations import (
    built,
    config_of,
    current,
    held_back,
    install,
    is_whole,
    lay,
    manifest,
    numbers,
    papers_in,
    record,
    update,
)

from agent.corpus import switching
from agent.corpus.keeper import CorpusKeeper
from agent.corpus.switching import activate, roll_back, sweep_quietly
from agent.corpus.trials import HeldBackPacks, TrialError
from agent.corpus.updates import LiveUpdates
from agent.domain import CorpusUpdate
from agent.errors import CorpusError, DamagedPapersError
from agent.search import SearchAPI
from agent.store.agent_db import NAME, AgentDatabase
from agent.store.generations import ON_TRIAL, FolderLock, pack_of, previous_of, update_lock
from agent.store.healing import heal, sweep
from agent.store.journal import Journal, journal_of
from agent.store.papers import PaperStore

MODEL, DIMENSIONS = "all-MiniLM-L6-v2", 384
SWITCHES = 6
OWN = {"arxiv_id": "2401.00001", "title": "A zebra of this device", "abstract": "x", "version": 1}
LATER = {"arxiv_id": "2401.00002", "title": "A quagga of this device", "abstract": "x", "version": 1}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("pack"), [record(number, 2) for number in range(20)])


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A corpus of its own, of ten papers."""
    built(tmp_path / "data", [record(number) for number in range(10)])
    return tmp_path / "data"


def back(data_dir: Path) -> dict[str, Any]:
    done = run_command("corpus", "rollback", "--json", data_dir=data_dir)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def found(data_dir: Path, word: str) -> list[str]:
    """By keyword."""
    with SearchAPI(config_of(data_dir)) as api:
        api.open(model=False)
        return [hit["arxiv_id"] for hit in api.search_sync(word, {"mode": "keyword"})["results"]]


def vectors_in(folder: Path) -> dict[str, int]:
    """The first component of each vector of the model, by arXiv id."""
    with closing(PaperStore(folder / "papers.db", read_only=True)) as papers:
        names = [paper.arxiv_id for _, paper in papers.papers()]
        return {name: int(vector[0]) for name, (_, vector) in papers.vectors_of(MODEL, names).items()}


def test_what_was_added_and_removed_before_and_after_a_switch_holds_there_and_back_and_there_again(
    data_dir: Path, pack: Path
) -> None:
    update(
        data_dir, CorpusUpdate(add=(OWN, record(3, 3), record(4, 1, "changed")), remove=("2301.00005", "2301.00015"))
    )
    switched = install(data_dir, pack, "2026-11")
    assert (switched.before, switched.after, switched.replayed.entries) == ("local", "2026-11", 5)
    there = {f"2301.{number:05d}": 2 for number in range(20)} | {"2301.00003": 3, OWN["arxiv_id"]: 1}
    there = {name: version for name, version in there.items() if name not in ("2301.00005", "2301.00015")}
    assert papers_in(data_dir / "current") == there
    assert (found(data_dir, "zebra"), found(data_dir, "number15"), found(data_dir, "changed")) == (
        [OWN["arxiv_id"]],
        [],
        [],
    )

    update(data_dir, CorpusUpdate(add=(LATER,), remove=("2301.00007", OWN["arxiv_id"])))
    told = back(data_dir)
    assert (told["from"], told["to"], told["own_changes"]) == ("2026-11", "local", 7)
    here = {f"2301.{number:05d}": 1 for number in range(10) if number not in (5, 7)} | {"2301.00003": 3}
    assert papers_in(data_dir / "current") == here | {LATER["arxiv_id"]: 1}
    assert (found(data_dir, "quagga"), found(data_dir, "changed")) == ([LATER["arxiv_id"]], ["2301.00004"])

    assert back(data_dir)["to"] == "2026-11"
    there = {name: version for name, version in there.items() if name not in ("2301.00007", OWN["arxiv_id"])}
    assert papers_in(data_dir / "current") == there | {LATER["arxiv_id"]: 1}
    assert is_whole(data_dir)


def test_the_version_of_a_corpus_is_that_of_its_pack_and_its_own_change_number(data_dir: Path, pack: Path) -> None:
    install(data_dir, pack, "2026-11")
    update(data_dir, CorpusUpdate(add=(OWN,)))
    stats = json.loads(run_command("corpus", "stats", "--json", data_dir=data_dir).stdout)
    assert (stats["version"], stats["papers"]) == ("2026-11+21", 21)


def test_a_vector_of_the_same_text_and_model_is_taken_over_and_no_other(data_dir: Path, pack: Path) -> None:
    given = {**OWN, "vector": [1.0, *[0.5] * (DIMENSIONS - 1)]}
    update(data_dir, CorpusUpdate(add=(given, LATER, record(12, 3))))
    with closing(PaperStore((data_dir / "current").resolve() / "papers.db")) as papers:
        for name, first in ((LATER["arxiv_id"], 7), ("2301.00012", 8)):  # embedded in the background, say
            key, _ = papers.find(name)
            papers.put_vectors(MODEL, [key], np.full((1, DIMENSIONS), first, np.int8))
        key, _ = papers.find("2301.00002")
        papers.put_vectors(MODEL, [key], np.full((1, DIMENSIONS), 9, np.int8))
    install(data_dir, pack, "2026-11")
    taken = {OWN["arxiv_id"]: 127, LATER["arxiv_id"]: 7, "2301.00012": 8}
    assert vectors_in((data_dir / "current").resolve()) == taken, "the pack's own papers bring their vectors themselves"
    with update_lock(data_dir):
        lay(data_dir, pack, manifest("other", model="another", dimensions=16))
        activate(SearchAPI(config_of(data_dir)), data_dir / "generations" / ".incoming", journal_of(data_dir))
    assert vectors_in((data_dir / "current").resolve()) == {}


def test_a_corpus_is_searched_with_the_model_of_its_pack_or_by_keyword(data_dir: Path, pack: Path) -> None:
    with update_lock(data_dir):
        lay(data_dir, pack, manifest("other", model="another", dimensions=16))
        activate(SearchAPI(config_of(data_dir)), data_dir / "generations" / ".incoming", journal_of(data_dir))
    with SearchAPI(config_of(data_dir)) as api:
        api.open(owner=True)
        assert (api.model_name, api.dimensions, api.engine.model) == ("another", 16, None)
        assert "model another is not installed: keyword search only" in api.problems
        answer = api.search_sync("number3")
        assert (answer["metadata"]["mode"], answer["results"][0]["arxiv_id"]) == ("keyword", "2301.00003")
        before = api.use(api.engine_of(api.index_of(previous_of(api.engine.index.folder), owner=True)))
        assert (api.model_name, api.engine.model, api.engine.problem) == (MODEL, MODEL, None)
        before.close()
    back(data_dir)
    with SearchAPI(config_of(data_dir)) as api:
        assert api.open().engine.corpus_version == "local+10"


def blank(incoming: Path) -> None:
    """Keywords of no paper, that say they reach all of them."""
    path = incoming / "keywords" / "meta.json"
    content = json.loads(path.read_bytes())
    content["segments"] = []
    path.write_text(json.dumps(content))


def damaged(incoming: Path) -> None:
    path = incoming / "papers.db"
    path.write_bytes(path.read_bytes()[:4096] + b"x" * 30_000)


@pytest.mark.parametrize(("damage", "error"), [(blank, TrialError), (damaged, DamagedPapersError)])
def test_a_generation_that_does_not_answer_well_is_not_taken(data_dir: Path, pack: Path, damage, error) -> None:
    incoming = lay(data_dir, pack, manifest("bad"))
    damage(incoming)
    with update_lock(data_dir), pytest.raises(error):
        activate(SearchAPI(config_of(data_dir)), incoming, journal_of(data_dir))
    assert (current(data_dir), is_whole(data_dir)) == ("0001", True)
    sweep_quietly(data_dir)
    assert numbers(data_dir) == ["0001"]


def test_where_there_is_nothing_to_go_back_to_the_command_says_so(data_dir: Path, tmp_path: Path) -> None:
    refused = run_command("corpus", "rollback", data_dir=data_dir)
    assert (refused.returncode, b"no generation to go back to" in refused.stderr) == (1, True)
    refused = run_command("corpus", "rollback", data_dir=tmp_path / "none")
    assert (refused.returncode, b"no corpus in" in refused.stderr) == (1, True)


def test_only_one_update_goes_on_at_a_time(data_dir: Path, pack: Path) -> None:
    install(data_dir, pack, "2026-11")
    with update_lock(data_dir):
        refused = run_command("corpus", "rollback", data_dir=data_dir)
        lay(data_dir, pack, manifest("next"))
        sweep_quietly(data_dir)
        assert ".incoming" in numbers(data_dir), "it is being made"
    assert (refused.returncode, b"another update of the corpus is going on" in refused.stderr) == (1, True)
    assert current(data_dir) == "0002"


def test_a_pack_that_was_rolled_back_is_held_back_until_it_is_taken_by_hand(data_dir: Path, pack: Path) -> None:
    install(data_dir, pack, "2026-11")
    back(data_dir)
    assert held_back(data_dir) == {"2026-11": "rolled back by hand"}
    back(data_dir)
    assert held_back(data_dir) == {}


def test_the_current_generation_and_its_previous_one_are_kept_and_one_that_is_open(data_dir: Path, pack: Path) -> None:
    for version in ("a", "b"):
        install(data_dir, pack, version)
    with FolderLock(data_dir / "generations" / "0001" / "caches.lock") as lock:
        lock.acquire()
        sweep_quietly(data_dir)
        assert numbers(data_dir) == ["0001", "0002", "0003"]
    sweep_quietly(data_dir)
    assert numbers(data_dir) == ["0002", "0003"]
    back(data_dir)
    assert (current(data_dir), numbers(data_dir)) == ("0002", ["0002", "0003"])


def test_a_healed_generation_is_still_that_of_its_pack_and_can_be_gone_back_from(data_dir: Path, pack: Path) -> None:
    install(data_dir, pack, "2026-11")
    (data_dir / "current" / "model").mkdir()
    (data_dir / "current" / "model" / "model.yaml").write_text("name: all")
    heal(data_dir, (data_dir / "current").resolve() / "papers.db")
    sweep_quietly(data_dir)
    assert numbers(data_dir) == ["0001", "0002", "0003"], "what is damaged is still to be kept"
    sweep(data_dir)
    healed = (data_dir / "current").resolve()
    assert (healed.name, pack_of(healed).version, previous_of(healed).name) == ("0003", "2026-11", "0001")
    assert ((healed / ON_TRIAL).read_text(), (healed / "model" / "model.yaml").read_text()) == ("0", "name: all")
    assert back(data_dir)["to"] == "local"


def test_a_healed_generation_that_was_left_before_it_was_cleared_up_after_can_be_gone_back_to(data_dir, pack) -> None:
    before = papers_in(data_dir / "current")
    healed = heal(data_dir, (data_dir / "current").resolve() / "papers.db").folder
    install(data_dir, pack, "2026-11")
    sweep(data_dir)
    assert previous_of((data_dir / "current").resolve()) == healed
    assert back(data_dir)["to"] == "local"
    assert papers_in(data_dir / "current") == before


def test_a_damaged_corpus_can_be_left_for_another_one(data_dir: Path, pack: Path) -> None:
    update(data_dir, CorpusUpdate(add=(OWN,)))
    damaged((data_dir / "current").resolve())
    install(data_dir, pack, "2026-11")
    assert OWN["arxiv_id"] in papers_in(data_dir / "current")


# -- in the agent -----------------------------------------------------------------------------------------------------


class Kept:
    """An agent's corpus, with its keeper, whose turns are taken by the test."""

    def __init__(self, data_dir: Path) -> None:
        database = AgentDatabase(data_dir / NAME)
        self.api, self.journal, self.held_back = (
            SearchAPI(config_of(data_dir)),
            Journal(database),
            HeldBackPacks(database),
        )
        self.keeper = CorpusKeeper(self.api, self.journal, self.held_back, stop=lambda: False, changed=lambda: None)
        self.updates = LiveUpdates(self.api, self.journal)
        self.keeper.open()

    def close(self) -> None:
        self.keeper.end_trial()
        self.keeper.close()
        self.api.close()


@pytest.fixture
def kept(data_dir: Path):
    opened = Kept(data_dir)
    yield opened
    opened.close()


def test_an_update_that_waited_for_a_switch_goes_to_the_new_corpus(
    kept, data_dir: Path, pack: Path, monkeypatch
) -> None:
    swap = switching.set_current
    updating = threading.Thread(target=lambda: kept.updates.apply(CorpusUpdate(add=(OWN,), remove=("2301.00002",))))

    def slow_swap(*arguments: Any, **options: Any) -> None:
        updating.start()
        updating.join(0.3)  # it waits for the lock of the outgoing papers
        assert updating.is_alive()
        swap(*arguments, **options)

    monkeypatch.setattr(switching, "set_current", slow_swap)
    install(data_dir, pack, "2026-11")
    updating.join(0.3)
    assert updating.is_alive(), "it waits for the agent to go over"
    kept.keeper.turn()
    updating.join(20)
    assert not updating.is_alive()
    assert kept.api.engine.index.version == "2026-11"
    papers = papers_in(data_dir / "generations" / "0002")
    assert (papers[OWN["arxiv_id"]], "2301.00002" in papers) == (1, False)
    assert OWN["arxiv_id"] not in papers_in(data_dir / "generations" / "0001")
    kept.keeper.turn()  # lets go of the one before, which else is waited for
    back(data_dir)
    assert OWN["arxiv_id"] in papers_in(data_dir / "generations" / "0001")


def test_the_generation_that_was_left_is_closed_in_order_once_no_question_is_under_way(kept, data_dir, pack) -> None:
    question = kept.api.engine  # under way
    install(data_dir, pack, "2026-11")
    kept.keeper.turn()
    kept.keeper.turn()
    assert question.search is not None
    assert (data_dir / "generations" / "0001" / "caches.in-use").exists()
    del question
    kept.keeper.turn()
    assert not (data_dir / "generations" / "0001" / "caches.in-use").exists()


def test_a_generation_that_fails_when_the_agent_opens_it_is_given_back_at_once(
    kept, data_dir: Path, pack: Path
) -> None:
    install(data_dir, pack, "2026-11")
    damaged(data_dir / "generations" / "0002")
    kept.keeper.turn()
    kept.keeper.turn()
    assert (current(data_dir), kept.api.engine.index.version) == ("0001", "local")
    assert any("corpus 2026-11 was given back for local" in problem for problem in kept.keeper.problems)
    assert list(held_back(data_dir)) == ["2026-11"]
    kept.updates.apply(CorpusUpdate(add=(OWN,)))
    assert OWN["arxiv_id"] in papers_in(data_dir / "current")


def test_a_trial_ends_after_two_minutes_of_answers(kept, data_dir: Path, pack: Path, monkeypatch) -> None:
    install(data_dir, pack, "2026-11")
    kept.keeper.turn()
    assert (data_dir / "current" / ON_TRIAL).read_text() == "1"
    kept.keeper.turn()
    assert (data_dir / "current" / ON_TRIAL).exists()
    monkeypatch.setattr("agent.corpus.trials.TRIAL_S", 0.0)
    kept.keeper.turn()
    assert not (data_dir / "current" / ON_TRIAL).exists()


def test_questions_from_several_threads_during_switches_are_answered_from_one_corpus_each(
    kept, data_dir: Path, pack: Path
) -> None:
    install(data_dir, pack, "2026-11")
    kept.keeper.turn()
    wrong: list[Any] = []
    answers = {"local": 0, "2026-11": 0}
    stop = threading.Event()
    sizes = {"local": 10, "2026-11": 20}

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = kept.api.search_sync("version1 version2 number", {"max_results": 100})
            except Exception as error:  # noqa: BLE001  whatever it is, it is wrong
                wrong.append(repr(error))
                return
            version = answer["metadata"]["corpus_version"].split("+")[0]
            answers[version] += 1
            told = {hit["title"][-8:] for hit in answer["results"]}
            expected = "version1" if version == "local" else "version2"
            if told != {expected} or len(answer["results"]) != sizes[version]:
                wrong.append((version, told, len(answer["results"])))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(SWITCHES):
        api = SearchAPI(config_of(data_dir))
        roll_back(api, kept.journal, kept.held_back, patience_s=0.5)
        kept.keeper.turn()
        version = "local" if number % 2 == 0 else "2026-11"
        assert kept.api.engine.index.version == version
        before = answers[version]
        wait_until(lambda before=before, version=version: answers[version] > before or wrong)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_switch_of_nothing_is_refused(data_dir: Path) -> None:
    with pytest.raises(CorpusError, match="current generation already"):
        activate(SearchAPI(config_of(data_dir)), (data_dir / "current").resolve(), journal_of(data_dir))
