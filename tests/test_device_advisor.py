"""What AWS's own conformance suite, Device Advisor, checks of a device: each of its cases is a test here, by name.

Its case of job completion is in test_jobs_agent.py. The device is our connection, or the agent's process.
"""

import asyncio
import json
import re
import socket
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import mqtt5
import pytest
import trustme
from conftest import WAIT_S, AgentProcess, Client, wait_until
from hostile import HostileBroker
from local_cloud import (
    ANSWER,
    CLOUD_ONLY,
    QUESTION,
    QUICK,
    STATUS,
    LocalCloud,
    Shadow,
    first,
    in_process,
    status,
    until,
)
from msgspec.structs import replace

from agent.cloud.link import cloud_brokers, explainer
from agent.cloud.policy import THING_VARIABLE, agent_policy
from agent.config import AwsIot
from agent.local_cloud.folder import CloudFolder
from agent.local_cloud.mosquitto import free_port
from agent.mqtt import connection as connection_module
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Message, Outgoing, Tls
from agent.protocol.limits import IOT_CORE
from agent.protocol.topics import AgentTopics

REQUESTS = "arxplorer/search/requests"
OWN = f"{REQUESTS}/device"
UPDATES = "arxplorer/corpus/updates"
SLOW_TLS_S = 60.0
"""The library says only after 14 to 26 s that it does not trust a server."""


@pytest.fixture
async def hostile() -> AsyncIterator[HostileBroker]:
    broker = await HostileBroker().start()
    yield broker
    await broker.stop()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Connection]]:
    """Start connections that end with the test."""
    started: list[Connection] = []

    def start(*arguments: Any, **options: Any) -> Connection:
        started.append(Connection(*arguments, **options))
        started[-1].start()
        return started[-1]

    yield start
    await asyncio.gather(*(connection.stop() for connection in started))


@pytest.fixture
def insider(cloud: LocalCloud) -> Iterator[Client]:
    client = cloud.insider()
    client.subscribe(STATUS)
    yield client
    client.close()


class Ear:
    """What arrives for a connection."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def __call__(self, message: Message) -> None:
        self.heard.append(message.payload)
        message.acknowledge()


def logged(agent: AgentProcess, words: str) -> int:
    return agent.log.read_text("utf-8", "replace").count(words)


def connects(agent: AgentProcess, cloud: LocalCloud) -> int:
    return logged(agent, f"connected to localhost:{cloud.port} ")


# -- connecting ---------------------------------------------------------------------------------------------------


async def test_connect_with_jittered_backoff_over_twelve_refused_connects(hostile: HostileBroker, connect) -> None:
    hostile.hang_up = True
    connect(hostile.as_broker(reconnect_ms=(20, 640)))
    await until(lambda: len(hostile.accepted) >= 18)
    gaps = [after - before for before, after in zip(hostile.accepted, hostile.accepted[1:], strict=False)]
    assert len(set(gaps)) == len(gaps)
    assert sum(gaps[-4:]) / 4 > sum(gaps[:3]) / 3
    assert max(gaps[-8:]) - min(gaps[-8:]) > 0.03  # those of the longest wait, which loses its jitter most easily


@pytest.mark.parametrize("how", ["cut", "service shuts down", "taken over"])
async def test_reconnect_after_a_server_disconnect(cloud: LocalCloud, connect, how: str) -> None:
    connection = connect(cloud_brokers(in_process(cloud).aws_iot, "device")[0])
    ear = Ear()
    await connection.listen([OWN], ear)
    await connection.wait_connected(WAIT_S)
    lost = asyncio.Event()
    connection.on_change(lambda: connection.connected.is_set() or lost.set())
    if how == "cut":
        cloud.fault("cut")
    elif how == "taken over":
        await asyncio.to_thread(cloud.connect, "device")
    else:
        await asyncio.to_thread(cloud.stop)
    await asyncio.wait_for(lost.wait(), WAIT_S)
    assert connection.ended_with == {"cut": None, "service shuts down": 0x8B, "taken over": 0x8E}[how]
    if how == "service shuts down":
        await asyncio.to_thread(cloud.start)
    await connection.wait_connected(WAIT_S)
    await connection.send(Outgoing(OWN, b"hello"))
    await until(lambda: ear.heard == [b"hello"])


@pytest.mark.parametrize("code", [0x81, 0x82, 0x87, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x97, 0x98, 0x9B, 0xA1])
async def test_reconnect_after_a_server_disconnect_with_each_reason(hostile: HostileBroker, connect, code) -> None:
    """Every one that IoT Core sends: none may end in a device that stays away."""
    connection = connect(hostile.as_broker())
    await connection.wait_connected(WAIT_S)
    again, reasons = asyncio.Event(), []
    connection.on_connected(again.set)
    connection.on_change(lambda: reasons.append(connection.ended_with))
    hostile.end_all(mqtt5.DisconnectReasonCode(code))
    await asyncio.wait_for(again.wait(), WAIT_S)
    assert code in reasons


def test_reconnect_on_an_unstable_link_answers_every_request(
    device: AgentProcess, cloud: LocalCloud, insider: Client
) -> None:
    names = {f"unstable-{number}" for number in range(60)}
    answered: set[str] = set()
    for number, name in enumerate(sorted(names)):
        request = {**QUESTION, "request_id": name}
        insider.publish((REQUESTS, OWN)[number % 2], json.dumps(request).encode(), response_topic=insider.answers)
        if number % 15 == 7:
            before = connects(device, cloud)
            cloud.fault("cut")
            wait_until(lambda: connects(device, cloud) > before)  # noqa: B023  called before the next turn
    while answered != names:
        message = insider.next()
        if message.topic == insider.answers:
            answered.add(json.loads(message.payload)["request_id"])
    assert connects(device, cloud) == 5


async def test_no_pingresp_is_noticed_and_the_connection_made_anew(hostile: HostileBroker, connect) -> None:
    hostile.answer_pings = False
    connection = connect(hostile.as_broker(keep_alive_s=2))
    await connection.wait_connected(WAIT_S)
    again = asyncio.Event()
    connection.on_connected(again.set)
    await until(lambda: hostile.count(mqtt5.PingReqPacket))
    assert len(hostile.accepted) == 1
    await asyncio.wait_for(again.wait(), WAIT_S)
    assert connection.ended_with is None
    hostile.answer_pings = True
    pings, connections = hostile.count(mqtt5.PingReqPacket), len(hostile.accepted)
    await until(lambda: hostile.count(mqtt5.PingReqPacket) >= pings + 3)
    assert len(hostile.accepted) <= connections + 1  # one more if a ping was unanswered at the change
    assert connection.connected.is_set()


# -- messages -----------------------------------------------------------------------------------------------------


def counted(insider: Client, **counters: int) -> None:
    """Wait until the agent has counted at least so much, and has nothing under way."""
    status(
        insider,
        lambda said: (
            said["status"] != "offline"
            and said["details"]["queue"]["pending"] == 0
            and all(said["details"]["counters"].get(name, 0) >= value for name, value in counters.items())
        ),
    )


@pytest.fixture
def talkative(start_agent, sample_data_dir: Path, cloud: LocalCloud) -> AgentProcess:
    """A device that reports every second."""
    heartbeat = {"ARXPLORER__HEALTH__HEARTBEAT_S": "1"}
    return start_agent(sample_data_dir, free_port(), config=cloud.config("device"), **CLOUD_ONLY, **QUICK, **heartbeat)


def test_qos_1_publish_retry_after_a_puback_was_dropped(
    talkative: AgentProcess, cloud: LocalCloud, insider: Client
) -> None:
    """The answer is sent again, from the outbox, and the request delivered again; then it is over."""
    answers = []

    def copies(wanted: int) -> None:
        until = time.monotonic() + WAIT_S
        while len(answers) < wanted:
            assert time.monotonic() < until
            message = insider.next()
            if message.topic == insider.answers:
                answers.append(json.loads(message.payload))

    cloud.fault("drop-puback")
    insider.publish(OWN, json.dumps({**QUESTION, "request_id": "retry"}).encode(), response_topic=insider.answers)
    copies(1)
    wait_until(lambda: "dropped" in cloud.log)
    cloud.fault("clear")
    cloud.fault("cut")
    copies(2)  # and a third, if the request comes again after the outbox has delivered its answer
    assert {answer["request_id"] for answer in answers} == {"retry"}
    assert {first(answer) for answer in answers} == {ANSWER}
    counted(insider, requests=2)
    before = connects(talkative, cloud)
    cloud.fault("cut")
    wait_until(lambda: connects(talkative, cloud) > before)
    assert first(insider.ask(QUESTION, OWN)) == ANSWER
    said = status(insider, lambda one: one["details"].get("counters", {}).get("requests", 0) >= 3)
    assert said["details"]["counters"]["requests"] == 3  # the acknowledged request was not delivered a third time


async def test_suback_retry_until_granted_on_the_same_connection(hostile: HostileBroker, connect, monkeypatch) -> None:
    monkeypatch.setattr(connection_module, "REFUSED_S", 0.05)
    codes = mqtt5.SubAckReasonCode
    left = {"late": [codes.NOT_AUTHORIZED, codes.QUOTA_EXCEEDED, codes.UNSPECIFIED_ERROR]}
    asked: list[str] = []

    def suback(topic: str) -> mqtt5.SubAckReasonCode:
        asked.append(topic)
        return left[topic].pop(0) if left.get(topic) else codes.GRANTED_QOS_AT_LEAST_ONCE

    hostile.suback = suback
    connection = Connection(hostile.as_broker())
    await connection.listen(["stands", "late"], Ear())
    connection.start()
    await connection.wait_connected(WAIT_S)
    assert any("late" in problem for problem in connection.problems)
    assert not any("stands" in problem for problem in connection.problems)
    await until(lambda: not connection.problems)
    assert asked == ["stands", "late", "late", "late", "late"]
    assert len(hostile.accepted) == 1
    await connection.stop()


async def test_suback_retry_of_what_the_policy_refuses_while_the_rest_stands(
    cloud: LocalCloud, insider: Client, connect, monkeypatch
) -> None:
    monkeypatch.setattr(connection_module, "REFUSED_S", 0.05)
    file = cloud.folder / "policies" / "device.json"
    whole = file.read_text()
    document = json.loads(whole)
    subscribe = next(one for one in document["Statement"] if "iot:Subscribe" in one["Action"])
    subscribe["Resource"] = [name for name in subscribe["Resource"] if "$share" not in name]
    file.write_text(json.dumps(document))
    shared, own = Ear(), Ear()
    connection = Connection(cloud_brokers(in_process(cloud).aws_iot, "device")[0])
    await connection.listen([f"$share/arxplorer/{REQUESTS}"], shared)
    await connection.listen([OWN], own)
    connection.start()
    try:
        await connection.wait_connected(WAIT_S)
        await until(lambda: cloud.log.count(f"'$share/arxplorer/{REQUESTS}' NOT_AUTHORIZED") >= 3)
        assert any("$share" in problem and "NOT_AUTHORIZED" in problem for problem in connection.problems)
        await asyncio.to_thread(insider.publish, OWN, b"heard")
        await until(lambda: own.heard == [b"heard"])
        file.write_text(whole)
        cloud.fault("cut")  # a policy counts from the next connect
        await until(lambda: not connection.problems)
        await asyncio.to_thread(insider.publish, REQUESTS, b"heard too")
        await until(lambda: shared.heard == [b"heard too"])
    finally:
        await connection.stop()


async def test_persistent_session_delivers_what_was_sent_meanwhile(cloud: LocalCloud, insider, connect) -> None:
    connection = connect(cloud_brokers(in_process(cloud).aws_iot, "device")[0])
    ear = Ear()
    await connection.listen([OWN], ear)
    await connection.wait_connected(WAIT_S)
    await connection.stop()
    payloads = [str(number).encode() for number in range(20)]
    for payload in payloads:
        await asyncio.to_thread(insider.publish, OWN, payload)
    connection.start()
    await until(lambda: len(ear.heard) >= len(payloads))
    assert ear.heard == payloads


async def test_persistent_session_that_expired_is_subscribed_to_again(cloud: LocalCloud, insider, connect) -> None:
    connection = connect(cloud_brokers(in_process(cloud).aws_iot, "device")[0]._replace(session_expiry_s=1))
    ear = Ear()
    await connection.listen([OWN], ear)
    await connection.wait_connected(WAIT_S)
    await connection.stop()
    broker_log = cloud.folder / "broker" / "mosquitto.log"
    await until(lambda: "Expiring client device" in broker_log.read_text("utf-8", "replace"))
    await asyncio.to_thread(insider.publish, OWN, b"for nobody")
    connection.start()
    await connection.wait_connected(WAIT_S)
    await asyncio.to_thread(insider.publish, OWN, b"heard")
    await until(lambda: ear.heard)
    assert ear.heard == [b"heard"]


def padded(size: int) -> bytes:
    """A corpus update of exactly so many bytes, with a paper whose title is found by this size."""
    paper = {"arxiv_id": "2401.00001", "title": f"Zebrafish {size}", "abstract": "Fish that travel."}
    document = json.dumps({"add": [paper], "padding": ""}).encode()
    return document[:-2] + b"x" * (size - len(document)) + document[-2:]


@pytest.mark.parametrize("size", [1024, 64 * 1024, IOT_CORE.payload_bytes - 1, IOT_CORE.payload_bytes])
def test_puback_for_payloads_up_to_128_kb(
    talkative: AgentProcess, cloud: LocalCloud, insider: Client, app: Client, size: int
) -> None:
    payload = padded(size)
    assert len(payload) == size
    assert app.ask(payload, UPDATES)["added"] == 1
    before = connects(talkative, cloud)
    cloud.fault("cut")
    wait_until(lambda: connects(talkative, cloud) > before)
    wait_until(
        lambda: (found := insider.ask({"query": "zebrafish"})["results"]) and found[0]["title"] == f"Zebrafish {size}"
    )
    said = status(insider, lambda one: one["details"].get("counters", {}).get("answers", 0) >= 1)
    counters = said["details"]["counters"]
    assert counters["updates"] == 1  # acknowledged: after the cut it was not delivered again
    assert counters["requests"] - counters["answers"] == 1


def test_puback_for_a_payload_over_128_kb_comes_with_a_refusal(device: AgentProcess, insider: Client) -> None:
    """IoT Core lets none through; whatever does is answered, and so acknowledged."""
    refused = insider.ask(padded(IOT_CORE.payload_bytes + 1), UPDATES)
    assert refused["error"]["code"] == "payload_too_large"
    assert first(insider.ask(QUESTION)) == ANSWER


async def test_puback_for_our_own_payload_of_128_kb(cloud: LocalCloud, connect) -> None:
    connection = connect(cloud_brokers(in_process(cloud).aws_iot, "device")[0])
    await connection.wait_connected(WAIT_S)
    await connection.send(Outgoing(STATUS, b"x" * IOT_CORE.payload_bytes))
    assert connection.connected.is_set()


# -- TLS ----------------------------------------------------------------------------------------------------------


def cloud_with_server_certificate(folder: Path, *names: str) -> LocalCloud:
    """A local cloud that shows a certificate of its own CA for these names."""
    folder.chmod(0o755)  # mosquitto gives up root
    cloud = LocalCloud(folder)
    CloudFolder(cloud.folder)
    ca = trustme.CA.from_pem((cloud.folder / "ca.pem").read_bytes(), (cloud.folder / "ca.key").read_bytes())
    issued = ca.issue_cert(*names)
    (cloud.folder / "server.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    (cloud.folder / "server.key").write_bytes(issued.private_key_pem.bytes())
    return cloud.start("--thing", "device")


async def refused_server(connect, aws_iot: AwsIot) -> Connection:
    connection = connect(cloud_brokers(aws_iot, "device")[0], explain=explainer(aws_iot))
    await asyncio.to_thread(wait_until, lambda: connection.failed_attempts, SLOW_TLS_S)
    assert not connection.connected.is_set()
    return connection


async def test_tls_server_certificate_of_a_wrong_ca_is_refused_and_named(
    cloud: LocalCloud, connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(trustme.CA().cert_pem.bytes())
    aws_iot = in_process(cloud).aws_iot
    await refused_server(connect, replace(aws_iot, certificates=replace(aws_iot.certificates, ca_cert=str(other))))
    assert "aws_iot.certificates.ca_cert" in caplog.text


async def test_tls_server_certificate_with_a_wrong_subject_alternative_name_is_refused_and_named(
    connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = await asyncio.to_thread(cloud_with_server_certificate, tmp_path, "other.example.com")
    try:
        await refused_server(connect, in_process(cloud).aws_iot)
        assert "under this name" in caplog.text
        assert "aws_iot.certificates.ca_cert" in caplog.text
    finally:
        await asyncio.to_thread(cloud.kill)


async def test_tls_large_server_certificate_is_accepted(connect, tmp_path: Path) -> None:
    names = [f"endpoint-{number}.iot.example.com" for number in range(600)]
    cloud = await asyncio.to_thread(cloud_with_server_certificate, tmp_path, *names, "localhost")
    try:
        assert len(ssl.PEM_cert_to_DER_cert((cloud.folder / "server.pem").read_text())) > 8 * 1024
        connection = connect(cloud_brokers(in_process(cloud).aws_iot, "device")[0])
        await connection.wait_connected(WAIT_S)
    finally:
        await asyncio.to_thread(cloud.kill)


def server_of(ca: trustme.CA, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A server that speaks this version of TLS, and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 1.1 is asked for on purpose
        context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.minimum_version = version
        context.maximum_version = version
    context.set_ciphers("DEFAULT@SECLEVEL=0")  # OpenSSL has no 1.1 otherwise
    return context


@pytest.fixture
def authority(tmp_path: Path) -> tuple[trustme.CA, Tls]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    return ca, Tls(str(tmp_path / "authority.pem"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_version_1_2_and_1_3_are_spoken(authority, connect, version: ssl.TLSVersion) -> None:
    ca, tls = authority
    broker = await HostileBroker().start(server_of(ca, version))
    connection = connect(broker.as_broker(tls=tls))
    await connection.wait_connected(WAIT_S)
    assert broker.tls_versions == [version.name.replace("_", ".")]
    await connection.stop()
    await broker.stop()


def speaks(port: int, ca: trustme.CA, version: ssl.TLSVersion) -> str | None:
    """The version that a client agrees upon with a server, when it offers this one alone; None if they do not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = version
        context.maximum_version = version
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as secured:
                return secured.version()
        except (ssl.SSLError, OSError):
            return None


async def test_tls_version_1_1_is_refused(authority, connect) -> None:
    ca, tls = authority
    old = ssl.TLSVersion.TLSv1_1
    broker = await HostileBroker().start(server_of(ca, old))
    try:
        if await asyncio.to_thread(speaks, broker.port, ca, old) != "TLSv1.1":
            pytest.skip("this OpenSSL has no TLS 1.1 to offer")
        offered = len(broker.tls_versions)
        connection = connect(broker.as_broker(tls=tls))
        await asyncio.to_thread(wait_until, lambda: connection.failed_attempts, SLOW_TLS_S)
        assert not connection.connected.is_set()
        assert len(broker.tls_versions) == offered  # no handshake was completed
        await connection.stop()
    finally:
        await broker.stop()


# -- shadow and policy --------------------------------------------------------------------------------------------


def test_shadow_desired_state_is_carried_out_and_reported(
    device: AgentProcess, cloud: LocalCloud, insider: Client
) -> None:
    shadow = Shadow(cloud, "device")
    wanted = shadow.wish(settings={"search": {"max_results": 3}})

    def decided(version: int) -> dict[str, Any] | None:
        said = shadow.reported
        return said if said.get("config", {}).get("document_version") == version else None

    said = wait_until(lambda: decided(wanted))
    assert (said["config"]["status"], said["settings"]["search"]["max_results"]) == ("applied", 3)
    assert insider.ask(QUESTION)["count"] == 3
    bad = shadow.wish(settings={"search": {"max_results": 0}})
    said = wait_until(lambda: decided(bad))
    assert said["config"]["status"] == "rejected"
    assert said["config"]["errors"] == [
        {"path": "settings.search.max_results", "value": 0, "reason": "must be a whole number from 1 to 100"}
    ]
    assert said["settings"]["search"]["max_results"] == 3
    assert insider.ask(QUESTION)["count"] == 3
    version = shadow.get()["version"]
    cloud.fault("cut")
    wait_until(lambda: connects(device, cloud) == 2)
    shadow.wish(targets={"model": {"name": "m"}})  # a report that comes after the read at the reconnect
    wait_until(lambda: shadow.reported.get("targets"))
    assert shadow.get()["version"] == version + 2  # that wish and that report: the refusal was not told again


def test_security_policy_has_no_wildcard_in_what_it_may_do() -> None:
    aws_iot = AwsIot()
    document = agent_policy(AgentTopics.of(aws_iot.topics, THING_VARIABLE), aws_iot.share_group)
    known = {"iot:Connect", "iot:Publish", "iot:RetainPublish", "iot:Subscribe", "iot:Receive"}
    for statement in document["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert set(actions) <= known
        for resource in statement["Resource"]:
            kind, _, name = resource.split(":", 5)[5].partition("/")
            assert kind in ("client", "topic", "topicfilter")
            # At most the last level below a name of ours: answers, shared subscriptions, the thing's shadows and jobs.
            assert re.fullmatch(r"[^*?]+(?<=/)\*|[^*?]+", name)
