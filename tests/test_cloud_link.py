"""The agent on AWS IoT Core: the real process, over mutual TLS, by the policy that it prints, to the local cloud."""

import asyncio
import datetime as dt
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from conftest import AgentProcess, Client, run_command, wait_until
from local_cloud import ANSWER, CLOUD_ONLY, QUESTION, STATUS, LocalCloud, first, in_process, status, until

from agent.cloud.identity import check_identity
from agent.cloud.link import CloudLink, Patience, cloud_brokers, explainer
from agent.config import Certificates, load_config
from agent.errors import BrokerError, ConfigError
from agent.local_cloud.mosquitto import Mosquitto, free_port
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker, Outgoing
from agent.mqtt.reasons import ADVICE, advice
from agent.protocol.limits import IOT_CORE

# -- what it does there -------------------------------------------------------------------------------------------


def test_a_request_over_the_cloud_is_answered(device: AgentProcess, app: Client) -> None:
    answer = app.ask(QUESTION)
    assert (first(answer), answer["metadata"]["processed_by"]) == (ANSWER, "device")
    assert first(app.ask(QUESTION, "arxplorer/search/requests/device")) == ANSWER


def test_texts_are_embedded_and_papers_added_over_the_cloud(device: AgentProcess, app: Client) -> None:
    assert app.ask({"text": "galaxies"}, "arxplorer/embeddings")["dimensions"] == 384
    paper = {"arxiv_id": "2401.00001", "title": "Zebrafish migration", "abstract": "Fish that travel."}
    assert app.ask({"add": [paper]}, "arxplorer/corpus/updates")["added"] == 1
    wait_until(lambda: (found := app.ask({"query": "zebrafish"})["results"]) and found[0]["arxiv_id"] == "2401.00001")


def test_of_a_fleet_one_agent_answers_each_request(
    start_agent, sample_data_dir: Path, cloud: LocalCloud, app: Client, device: AgentProcess
) -> None:
    cloud.thing("second", policy=None)
    start_agent(sample_data_dir, free_port(), config=cloud.config("second"), **CLOUD_ONLY)
    answers = [app.ask(QUESTION) for _ in range(12)]
    assert {answer["metadata"]["processed_by"] for answer in answers} == {"device", "second"}
    assert app.received.empty() or app.next().topic.startswith(STATUS)


def test_the_status_names_both_links(start_agent, sample_data_dir, cloud: LocalCloud, app: Client, broker) -> None:
    start_agent(sample_data_dir, broker.port, config=cloud.config("device"))
    said = status(app, lambda one: one["status"] == "online")
    assert [(link["name"], link["broker"]) for link in said["details"]["links"]] == [
        ("local", f"127.0.0.1:{broker.port}"),
        ("cloud", f"localhost:{cloud.port}"),
    ]
    local = Client(broker.port)
    local.subscribe(f"{STATUS}/device")
    assert (
        status(local, lambda one: all(link["connected"] for link in one["details"]["links"]))["client_id"] == "device"
    )
    local.close()


def test_the_last_will_says_offline_over_the_cloud_when_the_agent_dies(device: AgentProcess, app: Client) -> None:
    app.subscribe(f"{STATUS}/device")
    device.stop(signal.SIGKILL)
    assert status(app, lambda one: one["status"] == "offline")["client_id"] == "device"


def test_the_agent_uses_port_443_with_alpn(tmp_path: Path) -> None:
    config = load_config(environment={"ARXPLORER__AWS_IOT__ENDPOINT": "h", "ARXPLORER__AWS_IOT__PORT": "443"})
    assert [broker.tls.alpn for broker in cloud_brokers(config.aws_iot, "t")] == ["x-amzn-mqtt-ca"]
    other = load_config(environment={"ARXPLORER__AWS_IOT__ENDPOINT": "h"})
    assert [broker.tls.alpn for broker in cloud_brokers(other.aws_iot, "t")] == [None]


# -- endpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture
def regions(cloud: LocalCloud, tmp_path: Path) -> Iterator[tuple[LocalCloud, LocalCloud]]:
    """Two local clouds that know the same things and certificates."""
    second = LocalCloud(tmp_path / "second")
    second.folder.mkdir(parents=True)
    (tmp_path / "second").chmod(0o755)
    for name in ("ca.pem", "ca.key", "server.pem", "server.key"):
        (second.folder / name).write_bytes((cloud.folder / name).read_bytes())
        (second.folder / name).chmod(0o600)
    for path in cloud.folder.glob("things/*/*"):
        copy = second.folder / path.relative_to(cloud.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o600)
    second.start("--thing", "device", "--client", "app")
    yield cloud, second
    second.kill()


async def test_endpoints_are_tried_in_order_and_the_first_one_is_returned_to(regions) -> None:
    first_region, second_region = regions
    config = in_process(first_region, f"localhost:{second_region.port}")
    connections = [Connection(broker) for broker in cloud_brokers(config.aws_iot, "device")]
    link = CloudLink(config.aws_iot, connections, patience=Patience(attempts=2, return_s=0.05))
    first_region.fault("refuse")
    running = asyncio.create_task(link.run())
    try:
        await asyncio.wait_for(connections[1].connected.wait(), 30)
        first_region.fault("clear")
        await asyncio.wait_for(connections[0].connected.wait(), 30)
        await until(lambda: not connections[1].connected.is_set())
        assert link.problems == []
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.stop()


# -- identity -----------------------------------------------------------------------------------------------------

NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


@pytest.fixture
def identity(tmp_path: Path) -> Certificates:
    ca = trustme.CA()
    issued = ca.issue_cert(common_name="device", not_before=NOW.replace(day=1), not_after=NOW.replace(day=30))
    files = {name: tmp_path / f"{name}.pem" for name in ("ca_cert", "cert_file", "private_key")}
    files["ca_cert"].write_bytes(ca.cert_pem.bytes())
    files["cert_file"].write_bytes(issued.cert_chain_pems[0].bytes())
    files["private_key"].write_bytes(issued.private_key_pem.bytes())
    files["private_key"].chmod(0o600)
    return Certificates(**{name: str(file) for name, file in files.items()})


def test_a_certificate_its_key_and_a_root_ca_are_accepted(identity: Certificates) -> None:
    check_identity(identity, NOW)


def damaged(name: str) -> Callable[[Certificates], None]:
    return lambda identity: Path(getattr(identity, name)).write_text("nonsense")


def missing(name: str) -> Callable[[Certificates], None]:
    return lambda identity: Path(getattr(identity, name)).unlink()


def another_key(identity: Certificates) -> None:
    Path(identity.private_key).write_bytes(trustme.CA().issue_cert(common_name="x").private_key_pem.bytes())


def mode(number: int) -> Callable[[Certificates], None]:
    return lambda identity: Path(identity.private_key).chmod(number)


@pytest.mark.parametrize(
    ("harm", "now", "key", "said"),
    [
        pytest.param(mode(0o640), NOW, "private_key", "mode 640", id="a key that the group may read"),
        pytest.param(mode(0o644), NOW, "private_key", "mode 644", id="a key that everybody may read"),
        pytest.param(mode(0o620), NOW, "private_key", "mode 620", id="a key that the group may write"),
        pytest.param(missing("private_key"), NOW, "private_key", "No such file", id="no key"),
        pytest.param(missing("cert_file"), NOW, "cert_file", "No such file", id="no certificate"),
        pytest.param(missing("ca_cert"), NOW, "ca_cert", "No such file", id="no root CA"),
        pytest.param(damaged("private_key"), NOW, "private_key", "no private key", id="a damaged key"),
        pytest.param(damaged("cert_file"), NOW, "cert_file", "no certificate", id="a damaged certificate"),
        pytest.param(damaged("ca_cert"), NOW, "ca_cert", "no certificate", id="a damaged root CA"),
        pytest.param(another_key, NOW, "private_key", "not the key of the certificate", id="another certificate's key"),
        pytest.param(lambda _: None, NOW.replace(month=12), "cert_file", "expired on 2026-11-30", id="expired"),
        pytest.param(lambda _: None, NOW.replace(month=10), "cert_file", "valid from 2026-11-01", id="not valid yet"),
        pytest.param(lambda _: None, dt.datetime(1970, 1, 1, tzinfo=dt.UTC), None, "1970-01-01", id="clock of 1970"),
    ],
)
def test_what_is_wrong_with_an_identity_is_named(identity: Certificates, harm, now, key: str | None, said: str) -> None:
    harm(identity)
    with pytest.raises(ConfigError) as caught:
        check_identity(identity, now)
    assert caught.value.path == (f"aws_iot.certificates.{key}" if key else None)
    assert said in caught.value.message
    assert caught.value.hint or "no " in said or "not the key" in said


async def test_a_clock_of_1970_is_named_and_the_link_made_once_it_is_set(cloud: LocalCloud) -> None:
    config = in_process(cloud)
    clock = [dt.datetime(1970, 1, 1, tzinfo=dt.UTC)]
    connection = Connection(cloud_brokers(config.aws_iot, "device")[0])
    link = CloudLink(config.aws_iot, [connection], patience=Patience(recheck_s=0.05), now=lambda: clock[0])
    running = asyncio.create_task(link.run())
    try:
        await until(lambda: link.problems)
        assert "1970-01-01" in link.problems[0]
        assert not connection.connected.is_set()
        clock[0] = NOW
        await asyncio.wait_for(connection.connected.wait(), 20)
        assert link.problems == []
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.stop()


def test_a_key_that_others_may_read_keeps_the_cloud_away_and_local_answers_coming(
    start_agent, sample_data_dir: Path, cloud: LocalCloud, broker: Mosquitto, client: Client
) -> None:
    Path(cloud.files("device")["key"]).chmod(0o644)
    agent = start_agent(sample_data_dir, broker.port, config=cloud.config("device"))
    assert first(client.ask(QUESTION)) == ANSWER
    wait_until(lambda: b"mode 644" in agent.log.read_bytes())
    client.subscribe(f"{STATUS}/device")
    said = status(client, lambda one: one["status"] == "degraded")
    assert "private_key" in said["details"]["problems"][0]


def test_a_configuration_is_valid_only_with_certificates_that_can_be_used(cloud: LocalCloud, tmp_path: Path) -> None:
    def validated() -> subprocess.CompletedProcess[bytes]:
        return run_command("--config", str(cloud.config("device")), "config", "validate", data_dir=tmp_path / "data")

    assert validated().returncode == 0
    Path(cloud.files("device")["key"]).chmod(0o644)
    refused = validated()
    assert (refused.returncode, b"aws_iot.certificates.private_key" in refused.stderr) == (1, True)


def test_an_application_asks_over_the_cloud_from_the_command_line(device, cloud: LocalCloud, tmp_path: Path) -> None:
    asked = run_command(
        "--config", str(cloud.config("app")), "ask", QUESTION["query"], "--json", data_dir=tmp_path / "data"
    )
    assert first(json.loads(asked.stdout)) == ANSWER


async def test_a_renewed_certificate_is_used_without_a_restart(cloud: LocalCloud) -> None:
    files = {name: Path(file) for name, file in cloud.files("device").items()}
    good = {name: files[name].read_bytes() for name in ("cert", "key")}
    strange = trustme.CA().issue_cert(common_name="device")
    files["cert"].write_bytes(strange.cert_chain_pems[0].bytes())
    files["key"].write_bytes(strange.private_key_pem.bytes())
    config = in_process(cloud)
    connection = Connection(cloud_brokers(config.aws_iot, "device")[0])
    link = CloudLink(config.aws_iot, [connection])
    running = asyncio.create_task(link.run())
    try:
        await until(lambda: connection.failed_attempts)
        for name, content in good.items():
            files[name].write_bytes(content)
        await asyncio.wait_for(connection.connected.wait(), 30)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.stop()


# -- limits and reasons -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (Outgoing("a/b/c/d/e/f/g/h/i", b""), "7 slashes"),
        (Outgoing("a" * 257, b""), "256 bytes"),
        (Outgoing("a", b"x" * (IOT_CORE.payload_bytes + 1)), "131072"),
    ],
)
async def test_what_would_end_the_connection_is_refused_before_it_is_sent(
    cloud: LocalCloud, message, said: str
) -> None:
    connection = Connection(cloud_brokers(in_process(cloud).aws_iot, "device")[0])
    connection.start()
    await connection.wait_connected(20)
    with pytest.raises(BrokerError, match=said) as caught:
        await connection.send(message)
    assert caught.value.final
    await connection.send(Outgoing(STATUS, b"{}"))  # the link stands as it did
    await connection.stop()


async def test_more_messages_than_the_service_takes_in_a_second_are_all_delivered(cloud: LocalCloud) -> None:
    connection = Connection(cloud_brokers(in_process(cloud).aws_iot, "device")[0])
    connection.start()
    await connection.wait_connected(20)
    async with asyncio.timeout(20):  # those that it discards would be noticed after 30 s
        await asyncio.gather(*(connection.send(Outgoing(STATUS, b"{}")) for _ in range(IOT_CORE.publishes_per_s * 2)))
    await connection.stop()


def test_a_topic_that_does_not_fit_the_service_is_a_configuration_error() -> None:
    config = load_config(
        environment={"ARXPLORER__AWS_IOT__ENDPOINT": "h", "ARXPLORER__AWS_IOT__TOPICS__STATUS": "a/" * 8}
    )
    with pytest.raises(ConfigError, match="7 slashes"):
        cloud_brokers(config.aws_iot, "t")


def test_each_documented_reason_code_has_advice() -> None:
    documented = {0x81, 0x82, 0x85, 0x86, 0x87, 0x8B, 0x8D, 0x8E, 0x90, 0x93, 0x94, 0x97, 0x98, 0x9B, 0xA1}
    assert documented <= ADVICE.keys()
    loud = {code for code, what in ADVICE.items() if what.alarm}
    assert {0x85, 0x86, 0x87, 0x8E} <= loud
    assert not loud & {0x8B, 0x8D, 0x97, 0x98}
    assert advice(0x87).pause_s > advice(0x97).pause_s > advice(0x8B).pause_s == 0
    assert advice(0xFE).meaning


def test_a_second_client_of_the_same_name_raises_the_alarm(
    device: AgentProcess, cloud: LocalCloud, app: Client
) -> None:
    cloud.connect("device")
    wait_until(lambda: b"another client connected with the same client id" in device.log.read_bytes())
    said = status(app, lambda one: one["status"] == "degraded")
    assert any("same client id" in problem for problem in said["details"]["problems"])
    assert first(app.ask(QUESTION)) == ANSWER


# -- hearing ------------------------------------------------------------------------------------------------------


async def test_a_connection_that_hears_nothing_any_more_is_noticed_and_made_anew(cloud: LocalCloud) -> None:
    config = in_process(cloud)
    connection = Connection(cloud_brokers(config.aws_iot, "device")[0])
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    topic = connection.broker.topics.own_requests
    await connection.listen([topic], lambda message: (heard.put_nowait(message.payload), message.acknowledge()))
    cloud.fault("deaf")
    link = CloudLink(config.aws_iot, [connection], patience=Patience(echo_s=0.5))
    running = asyncio.create_task(link.run())
    try:
        await until(lambda: any("hears nothing" in problem for problem in link.problems))
        cloud.fault("clear")
        await asyncio.wait_for(connection.connected.wait(), 20)
        await connection.send(Outgoing(topic, b"hello"))
        assert await asyncio.wait_for(heard.get(), 20) == b"hello"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.stop()


# -- words and waits ----------------------------------------------------------------------------------------------


def test_explanations_name_our_own_fault_first(identity: Certificates) -> None:
    aws_iot = load_config(environment={}).aws_iot
    good = explainer(type(aws_iot)(certificates=identity))
    assert good("AWS_IO_DNS_INVALID_NAME: unknown host") == "AWS_IO_DNS_INVALID_NAME: unknown host"
    assert "ca_cert" in good("AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE: no")
    assert "does not take our certificate" in good("AWS_IO_SOCKET_CLOSED: socket is closed.")
    Path(identity.private_key).chmod(0o644)
    assert "mode 644" in good("AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE: no")
    assert "mode 644" in good("AWS_IO_SOCKET_CLOSED: socket is closed.")


async def test_the_wait_between_attempts_begins_as_short_as_it_is_told_to() -> None:
    """Awscrt 0.36.1 has an option that overwrites it (agent/mqtt/options.py): these attempts would take a minute."""
    attempts: list[float] = []

    async def hang_up_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(time.monotonic())
        writer.close()

    server = await asyncio.start_server(hang_up_at_once, "127.0.0.1", 0)
    connection = Connection(Broker("127.0.0.1", server.sockets[0].getsockname()[1], "t", reconnect_ms=(10, 60_000)))
    connection.start()
    async with asyncio.timeout(20):
        await until(lambda: len(attempts) >= 7)
    await connection.stop()
    server.close()
