"""The running agent keeps its corpus as it is wished for: by the shadow, a job, a timer; search goes on all the while."""

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import WAIT_S, AgentProcess, Client, run_command, wait_until
from local_cloud import QUICK, STATUS, LocalCloud, Shadow, status
from packed import Operator, command, paper

from agent.config import load_config
from agent.corpus.switching import roll_back
from agent.corpus.trials import HeldBackPacks
from agent.crash_points import VARIABLE
from agent.errors import PackError
from agent.local_cloud.mosquitto import Mosquitto, free_port
from agent.paths import find_model
from agent.protocol.targets import parse_targets
from agent.search import SearchAPI
from agent.store.agent_db import AgentDatabase
from agent.store.journal import Journal
from agent.store.remembered import Remembered
from agent.updating import Updater

UPDATE_S = 60.0
MODEL_NAME = "all-MiniLM-L6-v2"
QUESTION = {"query": "how tightly can equal spheres be packed"}


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    made = Operator(tmp_path_factory.mktemp("operator"))
    made.publish("1", "2")
    made.publish("2", "3", channel="beta")
    return made


@pytest.fixture
def data_dir(operator: Operator, tmp_path: Path) -> Path:
    """Of a device that begins with pack 1."""
    command("--data-dir", tmp_path / "data", "corpus", "install", operator.pack("1"))
    return tmp_path / "data"


def under_way(data_dir: Path) -> None:
    """As a killed agent leaves it whose timer had begun an update: the next one goes on at once."""
    database = AgentDatabase(data_dir / "agent.db")
    Remembered(database, "update under way").save(document=True)
    database.close()


def is_under_way(data_dir: Path) -> bool:
    database = AgentDatabase(data_dir / "agent.db")
    try:
        return bool(Remembered(database, "update under way").load())
    finally:
        database.close()


Start = Callable[..., AgentProcess]


@pytest.fixture
def start(
    start_agent: Callable[..., AgentProcess], operator: Operator, data_dir: Path, cloud: LocalCloud, broker: Mosquitto
) -> Start:
    """Start the agent of that device, between a local broker and the local cloud."""

    def started(**more: str) -> AgentProcess:
        environment = {**operator.environment(), **QUICK, **more}
        return start_agent(data_dir, broker.port, config=cloud.config("device"), **environment)

    return started


@pytest.fixture
def shadow(cloud: LocalCloud) -> Shadow:
    return Shadow(cloud, "device")


def target(shadow: Shadow, name: str = "corpus") -> dict[str, Any]:
    told: dict[str, Any] = (shadow.reported or {}).get("targets", {}).get(name, {})
    return told


def reaches(shadow: Shadow, version: str) -> None:
    wait_until(
        lambda: target(shadow).get("state") == "current" and target(shadow)["version"].startswith(f"{version}+"),
        UPDATE_S,
    )


class Asking:
    """Somebody who asks the same question all the time; every answer must be whole and of one corpus or the other."""

    def __init__(self, port: int) -> None:
        self._client = Client(port)
        self._stop = threading.Event()
        self.versions: list[str] = []
        self.errors: list[Any] = []
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._client.ask(QUESTION)
            except AssertionError as error:
                self.errors.append(error)
                return
            if "error" in answer or answer["results"][0]["arxiv_id"] != "1603.04246":
                self.errors.append(answer)
            else:
                self.versions.append(answer["metadata"]["corpus_version"].partition("+")[0])

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()


@contextmanager
def asking(port: int) -> Iterator[Asking]:
    asker = Asking(port)
    try:
        yield asker
    finally:
        asker.close()


def test_a_wish_of_the_shadow_is_fulfilled_reported_and_undone_while_every_question_is_answered(
    start, broker, shadow
) -> None:
    agent = start()
    with asking(broker.port) as asker:
        wait_until(lambda: asker.versions)
        shadow.wish(targets={"corpus": {"version": "2"}})
        reaches(shadow, "2")
        wait_until(lambda: "2" in asker.versions)
        done = run_command("corpus", "rollback", data_dir=agent.data_dir)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: asker.versions[-1] == "1")
    assert asker.errors == []
    changes = [
        version for before, version in zip(["", *asker.versions], asker.versions, strict=False) if before != version
    ]
    assert changes == ["1", "2", "1"]


def test_channel_and_version_are_chosen_by_the_shadow_and_what_is_not_there_is_named(start, shadow) -> None:
    start()
    shadow.wish(targets={"corpus": {"channel": "beta"}})
    reaches(shadow, "3")
    shadow.wish(targets={"corpus": {"channel": "beta", "version": "17"}})
    wait_until(lambda: target(shadow).get("state") == "failed", UPDATE_S)
    assert "no version 17" in target(shadow)["error"]
    assert target(shadow)["version"].startswith("3+")
    shadow.wish(targets={"corpus": {"channel": "stable", "version": "1"}})
    reaches(shadow, "1")


def test_a_wish_that_makes_no_sense_fails_by_itself_and_holds_up_nothing_else(start, shadow) -> None:
    start()
    shadow.wish(targets={"corpus": {"version": 5}, "model": {"name": "another"}})
    wait_until(lambda: target(shadow, "model").get("state") == "failed", UPDATE_S)
    assert "targets.corpus.version" in target(shadow)["error"]
    assert "another" in target(shadow, "model")["error"]
    shadow.wish(targets={"corpus": {"version": "2"}, "model": None})
    reaches(shadow, "2")


def test_the_timer_takes_what_is_newest_without_any_cloud(start_agent, operator, data_dir, broker) -> None:
    under_way(data_dir)
    start_agent(data_dir, broker.port, **operator.environment())
    client = Client(broker.port)
    wait_until(lambda: client.ask(QUESTION)["metadata"]["corpus_version"].startswith("2+"), UPDATE_S)
    client.close()


def test_a_command_updates_beside_the_running_agent_which_goes_over(start_agent, operator, data_dir, broker) -> None:
    start_agent(data_dir, broker.port, ARXPLORER__CORPUS__SYNC_INTERVAL_S="0")
    client = Client(broker.port)
    assert client.ask(QUESTION)["metadata"]["corpus_version"].startswith("1+")
    done = run_command("corpus", "sync", "--json", data_dir=data_dir, **operator.environment())
    assert json.loads(done.stdout)["installed"] == ["2"], done.stderr
    wait_until(lambda: client.ask(QUESTION)["metadata"]["corpus_version"].startswith("2+"), UPDATE_S)
    record = paper(50)
    client.publish("arxplorer/corpus/updates", json.dumps({"add": [record]}).encode())
    wait_until(lambda: record["arxiv_id"] in str(client.ask({"query": record["title"]})), UPDATE_S)
    client.close()


def test_jobs_update_the_corpus_and_restart_the_agent(start, cloud) -> None:
    agent = start()
    job = cloud.run("job", "create", "device", json.dumps({"operation": "corpus.update", "version": "2"}))
    identity = job.stdout.decode().strip()

    def execution() -> dict[str, Any]:
        told: dict[str, Any] = json.loads(cloud.run("job", "get", "device", identity).stdout)
        return told

    wait_until(lambda: execution()["status"] == "SUCCEEDED", UPDATE_S)
    assert execution()["statusDetails"]["version"] == "2"
    identity = cloud.run("job", "create", "device", '{"operation": "agent.restart"}').stdout.decode().strip()
    assert agent.process.wait(UPDATE_S) == 0
    agent.start()
    wait_until(lambda: execution()["status"] == "SUCCEEDED", UPDATE_S)
    identity = (
        cloud.run("job", "create", "device", '{"operation": "model.update", "name": "none-such"}')
        .stdout.decode()
        .strip()
    )
    wait_until(lambda: execution()["status"] == "FAILED", UPDATE_S)
    assert "none-such" in json.dumps(execution()["statusDetails"])


OTHER = "other-mini"


@pytest.fixture(scope="module")
def other_model(operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pack for a model that no device has, published with the model in it: the usual one under another name."""
    folder = tmp_path_factory.mktemp("models")
    source = find_model(folder, MODEL_NAME)
    assert source
    shutil.copytree(source, folder / "source")
    manifest = folder / "source" / "model.yaml"
    manifest.write_text(manifest.read_text("utf-8").replace(f"name: {MODEL_NAME}", f"name: {OTHER}"), "utf-8")
    data_dir, environment = folder / "data", {"ARXPLORER__MODEL__NAME": OTHER}
    for arguments in (
        ["model", "install", OTHER, "--from", str(folder / "source")],
        ["corpus", "import", "--sample", "--no-embed"],
        ["corpus", "embed"],
        ["corpus", "pack", str(folder / "pack"), "--version", "m1", "--with-model"],
    ):
        done = run_command(*arguments, data_dir=data_dir, **environment)
        assert done.returncode == 0, done.stderr
    command("corpus", "publish", operator.repository, "--pack", folder / "pack", "--keys", operator.keys)
    # A pack of what came by a pack is for the model of that, whatever is configured.
    for arguments in (
        ["corpus", "install", str(folder / "pack")],
        ["corpus", "pack", str(folder / "again"), "--with-model", "--json"],
    ):
        done = run_command(*arguments, data_dir=folder / "device")
        assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["model"], told["embedded"]) == (OTHER, told["papers"])
    return OTHER


def test_a_model_travels_with_its_vectors_and_goes_back_with_them(start, broker, shadow, other_model) -> None:
    agent = start()
    shadow.wish(targets={"model": {"name": other_model}})
    wait_until(lambda: target(shadow, "model") == {"name": other_model, "state": "current"}, UPDATE_S)
    client = Client(broker.port)
    answer = client.ask(QUESTION | {"filters": {"mode": "semantic"}})
    assert (answer["metadata"]["model"], answer["results"][0]["arxiv_id"]) == (other_model, "1603.04246")
    added = paper(60)
    client.publish("arxplorer/corpus/updates", json.dumps({"add": [added]}).encode())
    semantic = {"query": added["title"], "filters": {"mode": "semantic", "max_results": 3}}
    wait_until(lambda: added["arxiv_id"] in str(client.ask(semantic)["results"]), UPDATE_S)
    assert run_command("corpus", "rollback", data_dir=agent.data_dir).returncode == 0
    wait_until(lambda: client.ask(QUESTION)["metadata"]["model"] == MODEL_NAME, UPDATE_S)
    wait_until(lambda: added["arxiv_id"] in str(client.ask(semantic)["results"]), UPDATE_S)
    client.close()


def test_a_repository_that_never_answers_keeps_the_agent_neither_from_answering_nor_from_stopping(
    start_agent, operator, data_dir, broker
) -> None:
    under_way(data_dir)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(WAIT_S)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        agent = start_agent(data_dir, broker.port, **operator.environment(REPOSITORY=address))
        with silent.accept()[0]:
            client = Client(broker.port)
            assert client.ask(QUESTION)["results"]
            client.close()
            assert agent.stop() == 0


def test_a_repository_out_of_reach_is_said_of_the_wish_and_is_no_problem_of_the_device(start, broker, shadow) -> None:
    start(ARXPLORER__CORPUS__REPOSITORY=f"http://127.0.0.1:{free_port()}", ARXPLORER__HEALTH__HEARTBEAT_S="1")
    shadow.wish(targets={"corpus": {"version": "2"}})
    wait_until(lambda: target(shadow).get("state") == "failed", UPDATE_S)
    assert "cannot be reached" in target(shadow)["error"]
    client = Client(broker.port)
    client.subscribe(f"{STATUS}/device")
    heard = [status(client) for _ in range(3)][-1]  # the first is what was said before
    client.close()
    assert (heard["status"], heard["details"]["problems"]) == ("online", [])


def test_an_update_fails_with_the_reason_when_its_corpus_is_given_back(operator, data_dir) -> None:
    config = load_config(data_dir=data_dir, environment=operator.environment())
    database = AgentDatabase(data_dir / "agent.db")

    def give_back() -> None:  # as the running agent does with one that answers badly
        reason = {"reason": "it answers badly", "on_trial": False, "patience_s": 0.0}
        roll_back(SearchAPI(config), Journal(database), HeldBackPacks(database), **reason)

    with closing(database), SearchAPI(config).open(owner=True, model=False) as api:
        updater = Updater(api, database, changed=give_back, gone_over=lambda: True)
        wish = parse_targets({"corpus": {"version": "2"}}).wish
        with pytest.raises(PackError, match="2 was given back"):
            updater.update(wish, lambda _: None, lambda: False)
        with pytest.raises(PackError, match="2 was not kept: it answers badly"):
            updater.update(wish, lambda _: None, lambda: False)


def test_a_killed_agent_goes_on_with_what_was_wished_for_and_with_nothing_newer(start, shadow) -> None:
    agent = start(**{VARIABLE: "installing.make:complete"})
    shadow.wish(targets={"corpus": {"channel": "beta", "version": "2"}})
    assert agent.process.wait(UPDATE_S) == -9
    agent = start(ARXPLORER__AWS_IOT__ENABLED="false")  # nobody says it again
    wait_until(
        lambda: json.loads(command("--data-dir", agent.data_dir, "corpus", "stats", "--json"))["version"][:2] == "2+",
        UPDATE_S,
    )


def test_a_target_that_makes_no_sense_leaves_the_device_with_the_one_before(start, shadow) -> None:
    agent = start()
    shadow.wish(targets={"corpus": {"version": "1"}})
    wait_until(lambda: target(shadow).get("state") == "current", UPDATE_S)
    shadow.wish(targets={"corpus": {"version": 1}})
    wait_until(lambda: target(shadow).get("state") == "failed", UPDATE_S)
    agent.stop()
    under_way(agent.data_dir)
    agent = start()
    wait_until(lambda: not is_under_way(agent.data_dir), UPDATE_S)  # the agent has looked, and would have taken 2
    told = json.loads(command("--data-dir", agent.data_dir, "corpus", "stats", "--json"))
    assert told["version"].startswith("1+")
