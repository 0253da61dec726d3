"""Settings from the Device Shadow, seen from outside: what a running agent does on its local link from then on."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import AgentProcess, Client, wait_until
from local_cloud import ANSWER, QUESTION, QUICK, STATUS, LocalCloud, Shadow, first, status

from agent.local_cloud.mosquitto import Mosquitto

REQUESTS = "arxplorer/search/requests"


@pytest.fixture
def device(start_agent, sample_data_dir: Path, cloud: LocalCloud, broker: Mosquitto) -> AgentProcess:
    """On both links; config.yaml asks for seven results by keyword, and for a heartbeat that no test will see."""
    file = cloud.config("device")
    own = {"search": {"max_results": 7, "default_mode": "keyword"}, "health": {"heartbeat_s": 3600.0}}
    file.write_text(file.read_text() + yaml.safe_dump(own))
    agent = start_agent(sample_data_dir, broker.port, config=file, **QUICK)
    wait_until(lambda: Shadow(cloud, "device").reported.get("config"))
    return agent


@pytest.fixture
def set_(cloud: LocalCloud, device: AgentProcess) -> Callable[..., dict[str, Any]]:
    """Wish for settings, and wait until the agent says that they are in effect; returns what it reports."""
    shadow = Shadow(cloud, "device")

    def wish(**settings: Any) -> dict[str, Any]:
        version = shadow.wish(settings=settings)

        def decided() -> dict[str, Any] | None:
            said = shadow.reported
            return said if said["config"]["document_version"] == version else None

        said: dict[str, Any] = wait_until(decided)
        assert said["config"]["status"] == "applied"
        return said["settings"]

    return wish


@pytest.fixture
def local(client: Client) -> Iterator[Client]:
    client.subscribe(f"{STATUS}/device")
    return client


def shape(answer: dict[str, Any]) -> tuple[str, int]:
    return answer["metadata"]["mode"], answer["count"]


def test_the_next_question_goes_by_the_mode_and_number_of_results_that_were_set(set_, local: Client) -> None:
    assert shape(local.ask(QUESTION)) == ("keyword", 7)
    set_(search={"default_mode": "semantic", "max_results": 3})
    assert shape(local.ask(QUESTION)) == ("semantic", 3)
    set_(search={"default_mode": "hybrid", "max_results": 12})
    assert shape(local.ask(QUESTION)) == ("hybrid", 12)


def test_a_question_that_names_mode_and_number_goes_by_its_own(set_, local: Client) -> None:
    set_(search={"default_mode": "semantic", "max_results": 3})
    assert shape(local.ask({**QUESTION, "filters": {"mode": "hybrid", "max_results": 5}})) == ("hybrid", 5)


def test_a_key_that_is_removed_is_as_in_config_yaml_again(set_, local: Client) -> None:
    set_(search={"default_mode": "semantic", "max_results": 3})
    set_(search={"max_results": None})
    assert shape(local.ask(QUESTION)) == ("semantic", 7)
    set_(search=None)
    assert shape(local.ask(QUESTION)) == ("keyword", 7)


def test_requests_over_the_rate_that_was_set_are_told_overloaded(set_, local: Client) -> None:
    set_(limits={"requests_per_minute": 1})
    assert first(local.ask(QUESTION)) == ANSWER
    assert {local.ask(QUESTION)["error"]["code"] for _ in range(5)} == {"overloaded"}
    assert local.ask({"text": "galaxies"}, "arxplorer/embeddings")["error"]["code"] == "overloaded"
    assert local.ask({"remove": ["2401.00001"]}, "arxplorer/corpus/updates")["removed"] == 0  # updates are not counted
    set_(limits={"requests_per_minute": 0})
    assert [first(local.ask(QUESTION)) for _ in range(5)] == [ANSWER] * 5


def test_no_request_is_lost_while_max_pending_changes(set_, local: Client) -> None:
    names = {f"flow-{number}" for number in range(120)}
    for number, name in enumerate(sorted(names)):
        request = {**QUESTION, "request_id": name}
        local.publish(REQUESTS, json.dumps(request).encode(), response_topic=local.answers)
        if number % 40 == 20:
            assert set_(limits={"max_pending": 1 + number})["limits"]["max_pending"] == 1 + number
    answered: set[str] = set()
    said: list[int] = []
    while answered != names or said[-1:] != [101]:
        message = local.next()
        document = json.loads(message.payload)
        if message.topic == local.answers:
            assert first(document) == ANSWER
            answered.add(document["request_id"])
        elif "queue" in document["details"]:
            said.append(document["details"]["queue"]["max_pending"])


def test_the_heartbeat_that_was_set_is_kept(set_, local: Client) -> None:
    set_(health={"heartbeat_s": 1})
    uptimes = [status(local)["details"]["uptime_s"] for _ in range(6)]  # of which few are due to the change itself
    assert uptimes == sorted(uptimes)
    assert uptimes[-1] - uptimes[-2] > 0.5


def test_the_log_level_that_was_set_reaches_the_log(device: AgentProcess, set_, local: Client) -> None:
    set_(logging={"level": "debug"})
    local.ask(QUESTION)
    wait_until(lambda: b"[DEBUG]" in device.log.read_bytes())  # the MQTT library's own
    set_(logging={"level": "error"})
    quiet = len(device.log.read_bytes())
    local.ask(
        {"add": [{"arxiv_id": "2401.00001", "title": "Zebrafish", "abstract": "Fish."}]}, "arxplorer/corpus/updates"
    )
    assert b"corpus update" not in device.log.read_bytes()[quiet:]
    set_(logging={"level": "info"})
    local.ask({"remove": ["2401.00001"]}, "arxplorer/corpus/updates")
    wait_until(lambda: b"corpus update" in device.log.read_bytes()[quiet:])


def test_what_was_accepted_last_holds_after_a_restart_without_the_cloud(
    device: AgentProcess, cloud: LocalCloud, set_, local: Client
) -> None:
    set_(search={"default_mode": "semantic", "max_results": 3})
    cloud.stop()
    assert device.stop() == 0
    device.start()
    assert shape(local.ask(QUESTION)) == ("semantic", 3)
