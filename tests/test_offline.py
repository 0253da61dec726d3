"""Offline first: what a link cannot take is kept and delivered, what kills is set aside, and all the rest flows."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import AgentProcess, Client, wait_until
from faults.figures import written
from local_cloud import ANSWER, CLOUD_ONLY, QUESTION, QUICK, STATUS, LocalCloud, first, status

from agent.cloud.policy import THING_VARIABLE, agent_policy
from agent.config import AwsIot, OutboxConfig
from agent.local_cloud.mosquitto import Mosquitto, free_port
from agent.protocol.topics import AgentTopics
from agent.store.agent_db import AgentDatabase
from agent.store.outbox import Kept, Outbox, look

OWN = "arxplorer/search/requests/device"
OTHER_QUESTION, OTHER_ANSWER = {"query": "why do cars bunch up on a motorway"}, "adap-org/9502004"


@pytest.fixture
def behind(cloud: LocalCloud) -> Iterator[Client]:
    """An application that no fault of the cloud touches."""
    client = cloud.insider()
    yield client
    client.close()


def kept(agent: AgentProcess) -> list[tuple[Any, ...]]:
    """Topic and the reason for which it was set aside, of all that is in the outbox."""
    with closing(sqlite3.connect(f"file:{agent.data_dir / 'agent.db'}?mode=ro", uri=True)) as db:
        try:
            return db.execute("SELECT topic, set_aside FROM outbox ORDER BY seq").fetchall()
        except sqlite3.OperationalError:  # not made yet
            return []


def has_outbox(agent: AgentProcess) -> bool:
    return (agent.data_dir / "agent.db").exists() and bool(kept(agent))


def ask_without_waiting(client: Client, **more: Any) -> bytes:
    correlation = uuid.uuid4().bytes
    request = json.dumps(QUESTION | more).encode()
    client.publish(OWN, request, response_topic=client.answers, correlation=correlation)
    return correlation


def answers_to(client: Client, *asked: bytes) -> dict[bytes, list[dict[str, Any]]]:
    """Collect until each has an answer."""
    found: dict[bytes, list[dict[str, Any]]] = {one: [] for one in asked}
    while not all(found.values()):
        message = client.next()
        mark = getattr(message.properties, "CorrelationData", None)
        if mark in found:
            found[mark].append(json.loads(message.payload))
    return found


def test_an_answer_whose_puback_is_lost_with_the_link_is_kept_and_delivered(
    device: AgentProcess, cloud: LocalCloud, behind: Client
) -> None:
    """Delivered already, as it happens, which the agent cannot know: at least once."""
    cloud.fault("drop-puback")
    asked = [ask_without_waiting(behind) for _ in range(5)]
    once = answers_to(behind, *asked)
    cloud.fault("refuse")
    wait_until(lambda: has_outbox(device) and len(kept(device)) >= len(asked))
    cloud.fault("clear")
    again = answers_to(behind, *asked)
    for mark in asked:
        assert first(once[mark][0]) == ANSWER
        assert {json.dumps(one) for one in again[mark]} >= {json.dumps(once[mark][0])}, "the same, to the letter"
    wait_until(lambda: not kept(device))


def test_what_was_kept_is_delivered_by_the_next_run_too(
    device: AgentProcess, cloud: LocalCloud, behind: Client
) -> None:
    cloud.fault("drop-puback")
    asked = [ask_without_waiting(behind) for _ in range(3)]
    answers_to(behind, *asked)
    cloud.fault("refuse")
    wait_until(lambda: has_outbox(device) and len(kept(device)) >= len(asked))
    device.stop(signal.SIGKILL)
    cloud.fault("clear")
    device.start()
    found = answers_to(behind, *asked)
    assert all(first(one) == ANSWER for copies in found.values() for one in copies)
    wait_until(lambda: not kept(device))


@pytest.mark.parametrize("correlation", [b"always the same", None])
def test_a_client_that_hard_codes_its_request_id_gets_the_answer_to_what_it_asked(
    device: AgentProcess, cloud: LocalCloud, behind: Client, correlation: bytes | None
) -> None:
    cloud.fault("drop-puback")
    asked = {ANSWER: QUESTION, OTHER_ANSWER: OTHER_QUESTION}
    for question in asked.values():
        request = json.dumps(question | {"request_id": "1"}).encode()
        behind.publish(OWN, request, response_topic=behind.answers, correlation=correlation)
    assert {first(json.loads(behind.next().payload)) for _ in asked} == set(asked)
    cloud.fault("refuse")
    wait_until(lambda: has_outbox(device) and len(kept(device)) >= len(asked))
    cloud.fault("clear")
    again = set()
    while again != set(asked):
        again.add(first(json.loads(behind.next().payload)))
    wait_until(lambda: not kept(device))


def test_queries_write_nothing_to_disk_while_the_links_are_up(
    start_agent, sample_data_dir: Path, broker: Mosquitto, cloud: LocalCloud, client: Client, behind: Client, tmp_path
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    environment = {"RUNTIME_DIRECTORY": str(runtime), "ARXPLORER__HEALTH__HEARTBEAT_S": "3600", **QUICK}
    agent = start_agent(sample_data_dir, broker.port, config=cloud.config("device"), **environment)
    wait_until(lambda: f"connected to localhost:{cloud.port}".encode() in agent.log.read_bytes())

    def state() -> dict[str, tuple[int, int]]:
        return {
            str(file): (file.stat().st_size, file.stat().st_mtime_ns)
            for file in sample_data_dir.rglob("*")
            if file.is_file()
        }

    for app in (client, behind):
        assert first(app.ask(QUESTION, topic=OWN)) == ANSWER
    before, bytes_, said = state(), written(agent.process.pid), agent.log.stat().st_size
    for number in range(100):
        for app in (client, behind):
            request = {"query": f"sphere packing {number}", "request_id": str(number)}
            assert app.ask(request, topic=OWN)["results"]
    after = state()
    assert after == before, [name for name in after if after[name] != before.get(name)]
    assert written(agent.process.pid) == bytes_ or agent.log.stat().st_size != said
    assert not (sample_data_dir / "agent.db").exists()


def deny(cloud: LocalCloud, topic: str) -> None:
    """Let the policy of the device forbid it to publish there."""
    aws_iot = AwsIot()
    policy = agent_policy(AgentTopics.of(aws_iot.topics, THING_VARIABLE), aws_iot.share_group)
    resource = f"arn:aws:iot:*:*:topic/{topic}"
    policy["Statement"].append({"Effect": "Deny", "Action": "iot:Publish", "Resource": resource})
    (cloud.folder / "policies" / "device.json").write_text(json.dumps(policy))


@pytest.mark.parametrize(("topic", "other"), [(STATUS, f"{STATUS}/device"), (f"{STATUS}/device", STATUS)])
def test_a_status_that_the_cloud_refuses_by_disconnecting_does_not_keep_the_link_from_standing(
    start_agent, sample_data_dir: Path, cloud: LocalCloud, behind: Client, topic: str, other: str
) -> None:
    deny(cloud, topic)
    environment = {"ARXPLORER__HEALTH__HEARTBEAT_S": "1", **CLOUD_ONLY, **QUICK}
    agent = start_agent(sample_data_dir, free_port(), config=cloud.config("device"), **environment)
    refused = rf"status not sent: publishing on '{topic}' .* the broker ends the link over it \(0x87\)".encode()
    wait_until(lambda: re.search(refused, agent.log.read_bytes()))
    assert first(behind.ask(QUESTION, topic=OWN)) == ANSWER
    ended = agent.log.read_bytes().count(b"not authorized")
    behind.subscribe(other)
    for _ in range(4):  # heartbeats, and with each the other report is not sent
        status(behind)
    assert agent.log.read_bytes().count(b"not authorized") == ended


@pytest.mark.parametrize("others", [10, 0])
def test_a_publish_that_the_cloud_refuses_by_disconnecting_is_set_aside_and_the_rest_flows(
    start_agent, sample_data_dir: Path, cloud: LocalCloud, behind: Client, others: int
) -> None:
    deny(cloud, "arxplorer/responses/poison")
    agent = start_agent(sample_data_dir, free_port(), config=cloud.config("device"), **CLOUD_ONLY, **QUICK)
    behind.subscribe("arxplorer/search/results")
    good = [ask_without_waiting(behind) for _ in range(others)]
    poison = json.dumps(QUESTION | {"request_id": "the poison"}).encode()
    behind.publish(OWN, poison, response_topic="arxplorer/responses/poison", correlation=b"poison")
    good += [ask_without_waiting(behind) for _ in range(others)]
    told = None
    found: dict[bytes, Any] = {}
    while told is None or len(found) < len(good):
        message = behind.next()
        if message.topic == "arxplorer/search/results":
            told = json.loads(message.payload)
        elif getattr(message.properties, "CorrelationData", None) in good:
            found[message.properties.CorrelationData] = json.loads(message.payload)
    assert all(first(one) == ANSWER for one in found.values())
    assert (told["request_id"], told["error"]["code"]) == ("the poison", "invalid_request")
    wait_until(lambda: any(reason for _, reason in kept(agent)) if has_outbox(agent) else False)
    assert {topic for topic, reason in kept(agent) if reason} == {"arxplorer/responses/poison"}
    ended = agent.log.read_bytes().count(b"not authorized")
    behind.publish(OWN, poison, response_topic="arxplorer/responses/poison", correlation=b"again")
    assert first(behind.ask(QUESTION, topic=OWN)) == ANSWER
    bad = json.dumps({"query": "", "request_id": "bad"}).encode()
    behind.publish(OWN, bad, response_topic="arxplorer/responses/poison", correlation=b"bad")
    while json.loads(behind.next().payload).get("request_id") != "bad":
        pass  # an error is not withheld either
    assert agent.log.read_bytes().count(b"not authorized") == ended, "the link does not end over it any more"


DEADLY = """
import os, sys
from agent.search.engine import SearchEngine
search = SearchEngine.search
def deadly(self, request):
    if "deadly" in request.query:
        os.abort()
    return search(self, request)
SearchEngine.search = deadly
from agent.__main__ import main
sys.argv[0] = "arxplorer-agent"
main()
"""


def test_a_request_that_has_killed_the_agent_twice_is_answered_with_an_error_and_not_tried_again(
    sample_data_dir: Path, broker: Mosquitto, client: Client, tmp_path: Path
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    environment = {
        **os.environ,
        "ARXPLORER__LOCAL_BROKER__PORT": str(broker.port),
        "ARXPLORER__AWS_IOT__THING_NAME": "test-agent",
        "RUNTIME_DIRECTORY": str(runtime),
    }
    command = [sys.executable, "-c", DEADLY, "--data-dir", str(sample_data_dir), "run"]
    for death in range(2):
        with (tmp_path / "deadly.log").open("ab") as log:
            agent = subprocess.Popen(command, env=environment, stderr=log, cwd=tmp_path)
        if not death:
            wait_until(lambda: b"connected to" in (tmp_path / "deadly.log").read_bytes())
            request = json.dumps({"query": "a deadly question", "request_id": "deadly"}).encode()
            client.publish("arxplorer/search/requests", request, response_topic=client.answers, correlation=b"deadly")
        assert agent.wait(60) == -signal.SIGABRT
    with (tmp_path / "deadly.log").open("ab") as log:
        agent = subprocess.Popen(command, env=environment, stderr=log, cwd=tmp_path)
    try:
        answer = json.loads(client.next(60).payload)
        assert (answer["request_id"], answer["error"]["code"]) == ("deadly", "internal")
        assert "twice" in answer["error"]["message"]
        assert first(client.ask(QUESTION)) == ANSWER
        assert client.ask(request)["error"]["code"] == "internal", "sent again, with another correlation"
        (aside,) = look(sample_data_dir / "agent.db")["refused"]
        assert (aside["kind"], aside["topic"], "twice" in aside["reason"]) == (
            "request",
            "arxplorer/search/requests",
            True,
        )
        assert agent.poll() is None
    except AssertionError:
        raise AssertionError((tmp_path / "deadly.log").read_text()) from None
    finally:
        agent.kill()
        agent.wait()


def test_reports_of_an_outage_are_delivered_after_the_newest_status_and_marked(
    start_agent, sample_data_dir: Path, cloud: LocalCloud, broker: Mosquitto, client: Client, behind: Client
) -> None:
    agent = start_agent(
        sample_data_dir,
        broker.port,
        config=cloud.config("device"),
        ARXPLORER__HEALTH__HEARTBEAT_S="1",
        **QUICK,
    )
    behind.subscribe(STATUS)
    assert status(behind)["status"] == "online"
    cloud.fault("refuse")
    wait_until(lambda: has_outbox(agent))
    while not behind.received.empty():
        behind.next()
    cloud.fault("clear")
    connected: list[bool] = []
    marked: list[bool] = []
    while not any(marked):
        message = behind.next()
        properties = dict(getattr(message.properties, "UserProperty", []))
        marked.append("kept" in properties)
        links = json.loads(message.payload)["details"]["links"]
        connected.append(next(link["connected"] for link in links if link["name"] == "cloud"))
    assert (connected[0], marked[0]) == (True, False)
    assert (connected[-1], marked[-1]) == (False, True)
    wait_until(lambda: not kept(agent))


def test_the_outbox_is_shown_by_the_status(device: AgentProcess, behind: Client) -> None:
    behind.subscribe(f"{STATUS}/device")
    said = status(behind)["details"]["outbox"]
    nothing = {"messages": 0, "bytes": 0}
    assert said == {"answers": nothing, "reports": nothing, "dropped": {}, "set_aside": 0}


def test_a_full_outbox_is_drained_in_order_within_the_rate_of_the_cloud_while_questions_are_answered(
    start_agent, sample_data_dir: Path, cloud: LocalCloud, behind: Client
) -> None:
    database = AgentDatabase(sample_data_dir / "agent.db")
    rest = {"retain": False, "response_topic": None, "correlation": None, "content_type": None, "user_properties": []}
    link = f"cloud localhost:{cloud.port}"
    waiting = [Kept(link, "answer", behind.answers, b"kept %d" % number, rest) for number in range(250)]
    Outbox(database, OutboxConfig()).put(waiting)
    database.close()
    agent = start_agent(sample_data_dir, free_port(), config=cloud.config("device"), **CLOUD_ONLY, **QUICK)
    correlation = ask_without_waiting(behind)
    came = []
    answered_after = None
    while len(came) < len(waiting) or answered_after is None:
        message = behind.next()
        if getattr(message.properties, "CorrelationData", None) == correlation:
            answered_after = len(came)
        else:
            came.append(message.payload)
    assert came == [one.payload for one in waiting]
    assert answered_after < len(waiting) // 2, "live requests do not queue behind what was kept"
    wait_until(lambda: not kept(agent))
    assert "discarded" not in cloud.log


def test_answers_that_a_full_disk_cannot_keep_are_left_to_the_broker_and_nothing_is_lost(
    start_agent, sample_data_dir: Path, cloud: LocalCloud, broker: Mosquitto, client: Client, behind: Client, small_disk
) -> None:
    shutil.copytree(sample_data_dir, small_disk / "data", symlinks=True)
    agent = start_agent(small_disk / "data", broker.port, config=cloud.config("device"), **QUICK)
    wait_until(lambda: f"connected to localhost:{cloud.port}".encode() in agent.log.read_bytes())
    cloud.fault("drop-puback")
    asked = [ask_without_waiting(behind) for _ in range(3)]
    answers_to(behind, *asked)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * shutil.disk_usage(small_disk).free)
    cloud.fault("refuse")
    client.subscribe(f"{STATUS}/device")
    status(client, lambda said: any("agent.db" in one for one in said["details"]["problems"]))
    assert first(client.ask(QUESTION)) == ANSWER
    ballast.unlink()
    cloud.fault("clear")
    again = answers_to(behind, *asked)
    assert all(first(one) == ANSWER for copies in again.values() for one in copies)
    assert not has_outbox(agent)


def test_what_was_kept_is_delivered_once_from_a_disk_that_has_filled_up_since(
    start_agent, sample_data_dir: Path, cloud: LocalCloud, broker: Mosquitto, behind: Client, small_disk: Path
) -> None:
    shutil.move(sample_data_dir, small_disk / "data")
    sample_data_dir.symlink_to(small_disk / "data")  # so that the log is on another disk
    database = AgentDatabase(sample_data_dir / "agent.db")
    rest = {"retain": False, "response_topic": None, "correlation": None, "content_type": None, "user_properties": []}
    waiting = [
        Kept(f"cloud localhost:{cloud.port}", "answer", behind.answers, b"kept %d" % number, rest)
        for number in range(40)
    ]
    Outbox(database, OutboxConfig()).put(waiting)
    database.close()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    agent = start_agent(sample_data_dir, broker.port, config=cloud.config("device"), **QUICK)
    came = [behind.next().payload for _ in waiting]
    assert came == [one.payload for one in waiting]
    assert first(behind.ask(QUESTION, topic=OWN)) == ANSWER
    ballast.unlink()
    wait_until(lambda: not kept(agent))
    assert behind.received.empty()


def test_what_cannot_be_kept_for_one_link_is_named_on_the_other_at_once(
    start_agent, sample_data_dir: Path, cloud: LocalCloud, broker: Mosquitto, client: Client, behind: Client
) -> None:
    database = AgentDatabase(sample_data_dir / "agent.db")
    Outbox(database, OutboxConfig()).put([])
    database.close()
    no_heartbeat = {"ARXPLORER__HEALTH__HEARTBEAT_S": "3600"}
    agent = start_agent(sample_data_dir, broker.port, config=cloud.config("device"), **QUICK, **no_heartbeat)
    wait_until(lambda: f"connected to localhost:{cloud.port}".encode() in agent.log.read_bytes())
    cloud.fault("drop-puback")
    asked = ask_without_waiting(behind)
    answers_to(behind, asked)
    client.subscribe(f"{STATUS}/device")
    with closing(sqlite3.connect(agent.data_dir / "agent.db", isolation_level=None)) as somebody:
        somebody.execute("BEGIN EXCLUSIVE")
        cloud.fault("refuse")  # the local link hears of this first, and seconds later of the answer
        locked = "database is locked"
        status(client, lambda said: any(locked in one for one in said["details"]["problems"]), timeout_s=60)
    cloud.fault("clear")
    assert all(first(one) == ANSWER for one in answers_to(behind, asked)[asked])
