"""Switches, ways back, trials and live additions with a real agent, real kills and commands beside it."""

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Client, run_command, wait_until
from generations import built, config_of, current, held_back, install, is_whole, papers_in, record

from agent.crash_points import VARIABLE
from agent.domain import CorpusUpdate
from agent.local_cloud.mosquitto import Mosquitto
from agent.search import SearchAPI
from agent.store.generations import ON_TRIAL

UPDATES = "arxplorer/corpus/updates"
ROOM_TO_COUNT = 8_192
"""For the mark that a generation on trial is opened, and for nothing else."""
OWN = {"arxiv_id": "2401.00001", "title": "A zebra of this device", "abstract": "Stripes on horses", "version": 1}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("pack"), [record(number, 2) for number in range(20)])


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    built(tmp_path / "data", [record(number) for number in range(10)])
    return tmp_path / "data"


def answered_from(client: Client) -> str:
    """The version of the corpus that answers."""
    answer = client.ask({"query": "number1", "filters": {"mode": "keyword"}})
    version: str = answer["metadata"]["corpus_version"]
    return version.split("+", maxsplit=1)[0]


def back(data_dir: Path) -> None:
    done = run_command("corpus", "rollback", data_dir=data_dir)
    assert done.returncode == 0, done.stderr


def test_an_update_message_is_searchable_by_keyword_and_by_meaning(agent, client: Client) -> None:
    reported = client.ask({"add": [OWN]}, UPDATES)
    assert reported["added"] == 1, reported
    for mode, question in (("keyword", "zebra"), ("semantic", "striped equine animals")):

        def found(mode: str = mode, question: str = question) -> bool:
            results = client.ask({"query": question, "filters": {"mode": mode, "max_results": 3}})["results"]
            return OWN["arxiv_id"] in [hit["arxiv_id"] for hit in results]

        wait_until(found, 60)


def test_a_running_agent_goes_over_and_back_with_all_updates_and_no_question_fails(
    start_agent: Any, data_dir: Path, pack: Path, broker: Mosquitto
) -> None:
    agent = start_agent(data_dir, broker.port)
    client = Client(broker.port)
    given: dict[str, int] = {}
    for number in range(6):
        install(data_dir, pack, "2026-11") if number == 0 else back(data_dir)
        expected = "2026-11" if number % 2 == 0 else "local"
        # Sent at once: it meets the agent before, in, or after its going over.
        name = f"2402.{number:05d}"
        told = client.ask({"add": [{**OWN, "arxiv_id": name}], "remove": [f"2301.{number:05d}"]}, UPDATES)
        assert (told.get("added"), told["metadata"]["corpus_version"].split("+")[0]) == (1, expected), told
        given[name] = 1
        assert answered_from(client) == expected
        answer = client.ask({"query": "zebra", "filters": {"mode": "keyword", "max_results": 50}})
        assert answer.get("results") is not None, answer
    assert agent.stop() == 0
    for folder in ("0001", "0002"):
        assert current(data_dir) == folder
        papers = papers_in((data_dir / "current").resolve())
        assert given.items() <= papers.items()
        assert not {f"2301.{number:05d}" for number in range(6)} & papers.keys()
        back(data_dir)
    assert is_whole(data_dir)
    assert "Traceback" not in agent.log.read_text()
    client.close()


KILLED_ON = """
import os, signal
from agent.search.engine import SearchEngine
search = SearchEngine.search
def deadly(self, request):
    if self.index.version == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return search(self, request)
SearchEngine.search = deadly
"""


def test_a_generation_on_which_the_agent_crashes_twice_is_given_back_and_named(
    start_agent: Any, data_dir: Path, pack: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLED_ON)
    environment = {"PYTHONPATH": str(tmp_path / "site"), "ARXPLORER__HEALTH__HEARTBEAT_S": "1"}
    agent = start_agent(data_dir, broker.port, **environment)
    client = Client(broker.port)
    assert client.ask({"add": [OWN]}, UPDATES)["added"] == 1
    install(data_dir, pack, "deadly")
    assert agent.process.wait(60) == -signal.SIGKILL
    assert agent.spawn().process.wait(60) == -signal.SIGKILL
    assert (current(data_dir), (data_dir / "current" / ON_TRIAL).read_text()) == ("0002", "2")
    agent.start()
    assert answered_from(client) == "local"
    client.subscribe("arxplorer/status/test-agent")

    def named() -> bool:
        details = json.loads(client.next(60).payload).get("details", {})
        return any("corpus deadly was given back for local" in one for one in details.get("problems", ()))

    wait_until(named, 60)
    assert list(held_back(data_dir)) == ["deadly"]
    assert OWN["arxiv_id"] in papers_in((data_dir / "current").resolve())
    assert agent.stop() == 0
    client.close()


ANSWERS_BADLY = """
from agent.corpus import self_test
failures_of = self_test.failures_of
self_test.failures_of = lambda engine: ["no hit"] if engine.index.version == "bad" else failures_of(engine)
"""


@pytest.mark.parametrize("openings", ["0", "2"])
def test_a_generation_that_a_full_disk_keeps_from_being_given_back_does_not_prove_itself_meanwhile(
    start_agent: Any, data_dir: Path, pack: Path, broker: Mosquitto, small_disk: Path, tmp_path: Path, openings: str
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(ANSWERS_BADLY)
    shutil.move(data_dir, small_disk / "data")
    data_dir.symlink_to(small_disk / "data")  # so that the log is on another disk
    install(data_dir, pack, "bad")
    (data_dir / "current" / ON_TRIAL).write_text(openings)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - ROOM_TO_COUNT))
    agent = start_agent(data_dir, broker.port, PYTHONPATH=str(tmp_path / "site"))
    client = Client(broker.port)
    assert answered_from(client) == "bad", "better than nothing"
    assert agent.stop() == 0
    assert (data_dir / "current" / ON_TRIAL).read_text() == str(max(1, int(openings)))
    ballast.unlink()
    agent.start()
    wait_until(lambda: answered_from(client) == "local")
    assert list(held_back(data_dir)) == ["bad"]
    client.close()


def test_an_agent_that_is_killed_while_it_goes_over_goes_over_at_its_next_start(
    start_agent: Any, data_dir: Path, pack: Path, broker: Mosquitto
) -> None:
    agent = start_agent(data_dir, broker.port, **{VARIABLE: "trials.begin:counted"})
    install(data_dir, pack, "2026-11")
    assert agent.process.wait(60) == -signal.SIGKILL
    del agent.environment[VARIABLE]
    agent.start()
    client = Client(broker.port)
    assert answered_from(client) == "2026-11"
    assert (data_dir / "current" / ON_TRIAL).read_text() == "2"
    assert agent.stop() == 0
    assert not (data_dir / "current" / ON_TRIAL).exists()
    client.close()


CHANGES, A_MESSAGE, KILLS = 1_000, 10, 12


def plan(rng: random.Random) -> list[CorpusUpdate]:
    """Additions, new versions and removals, in messages."""
    versions: dict[str, int] = {}
    removed: set[str] = set()
    messages = []
    for _ in range(CHANGES // A_MESSAGE):
        add: dict[str, Any] = {}
        remove: set[str] = set()
        for _ in range(A_MESSAGE):
            there = sorted(versions.keys() - removed - add.keys())
            if there and rng.random() < 0.35:
                remove.add(rng.choice(there))
                continue
            name = rng.choice(there) if there and rng.random() < 0.3 else f"2403.{len(versions):05d}"
            versions[name] = versions.get(name, 0) + 1
            add[name] = record(int(name[-5:]), versions[name]) | {"arxiv_id": name}
        remove -= add.keys()
        removed |= remove
        messages.append(CorpusUpdate(add=tuple(add.values()), remove=tuple(sorted(remove))))
    return messages


def test_a_thousand_additions_and_removals_survive_kills_with_nothing_lost_or_doubled(
    start_agent: Any, data_dir: Path, pack: Path, broker: Mosquitto
) -> None:
    rng = random.Random(11)
    expected = papers_in((data_dir / "current").resolve())
    own: dict[str, int | None] = {}
    messages = plan(rng)
    kills = sorted(rng.sample(range(1, len(messages)), KILLS))
    agent = start_agent(data_dir, broker.port)
    client = Client(broker.port)
    for number, message in enumerate(messages):
        payload = json.dumps({"add": message.add, "remove": message.remove}).encode()
        client.publish(UPDATES, payload, response_topic=client.answers, correlation=str(number).encode())
        if kills and kills[0] == number:
            del kills[0]
            time.sleep(rng.uniform(0.0, 0.08))  # any moment of it
            agent.stop(signal.SIGKILL)
            agent.start()  # the broker delivers again what was not acknowledged

        def reported(number: int = number) -> dict[str, Any] | None:
            answer = client.next(60)
            told: dict[str, Any] = json.loads(answer.payload)
            return told if answer.properties.CorrelationData == str(number).encode() else None

        told = wait_until(reported, 60)
        assert "error" not in told, told
        own |= {one["arxiv_id"]: one["version"] for one in message.add} | dict.fromkeys(message.remove)
    assert agent.stop() == 0
    expected |= {name: version for name, version in own.items() if version}
    expected = {name: version for name, version in expected.items() if own.get(name, version)}
    folder = (data_dir / "current").resolve()
    assert papers_in(folder) == expected
    with SearchAPI(config_of(data_dir)) as api:
        index = api.open(owner=True, model=False).engine.index
        index.catch_up()
        keys = index.keywords.search(["number"] + [f"number{number}" for number in range(10)], 10_000).keys
        assert len(set(keys.tolist())) == len(keys)
    assert is_whole(data_dir)
    # And all of it is in the journal: another corpus gets the same.
    install(data_dir, pack, "2026-11")
    there = {f"2301.{number:05d}": 2 for number in range(20)} | {n: v for n, v in own.items() if v}
    assert papers_in((data_dir / "current").resolve()) == there
    client.close()
