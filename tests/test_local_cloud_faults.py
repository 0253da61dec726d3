"""Faults on command, the command line, and the life of a local cloud from start to restart."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import mqtt5
import pytest
from conftest import run_command, wait_until
from local_cloud import QOS1, LocalCloud, RawClient, took

from agent.errors import AgentError
from agent.local_cloud.control import command
from agent.mqtt.rate import Rate
from agent.protocol.limits import IOT_CORE


@pytest.fixture(scope="module")
def shared_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    running = LocalCloud(tmp_path_factory.mktemp("local")).start("--thing", "device")
    yield running
    running.kill()


@pytest.fixture
def cloud(shared_cloud: LocalCloud) -> Iterator[LocalCloud]:
    """Without faults before and after."""
    yield shared_cloud
    shared_cloud.fault("clear")
    shared_cloud.close_clients()


@pytest.fixture
def own_cloud(tmp_path: Path) -> Iterator[LocalCloud]:
    """To start and stop."""
    mine = LocalCloud(tmp_path)
    yield mine
    mine.kill()


@pytest.fixture
def client(cloud: LocalCloud) -> RawClient:
    return cloud.connect(cloud.thing("anyone"))


def test_cut_ends_all_connections_without_a_word_and_takes_new_ones(cloud: LocalCloud, client: RawClient) -> None:
    other = cloud.connect(cloud.thing("watcher"))
    cloud.fault("cut")
    assert [client.ended_with(), other.ended_with()] == [None, None]
    assert cloud.connect("anyone").quiet() == []


def test_cut_lets_the_last_will_out(cloud: LocalCloud) -> None:
    cloud.connect(cloud.thing("watcher"), session_expiry_interval=60).subscribe("will")
    cloud.connect(cloud.thing("anyone"), will=mqtt5.Will("will", payload=b"gone", qos=QOS1))
    cloud.fault("cut")
    again = cloud.connect("watcher", session_expiry_interval=60)
    assert again.receive(mqtt5.PublishPacket).payload == b"gone"


def test_freeze_lets_nothing_through_on_old_and_new_connections(cloud: LocalCloud, client: RawClient) -> None:
    cloud.fault("freeze")
    client.send(mqtt5.PingReqPacket())
    fresh = socket.create_connection(("127.0.0.1", cloud.port))
    for frozen in (client.socket, fresh):
        frozen.settimeout(0.3)
        with pytest.raises(TimeoutError):
            frozen.recv(1)
    fresh.close()
    client.socket.settimeout(20)
    cloud.fault("clear")
    assert isinstance(client.next(), mqtt5.PingRespPacket)
    assert client.quiet() == []


def test_freeze_can_be_cut_too(cloud: LocalCloud, client: RawClient) -> None:
    cloud.fault("freeze")
    client.send(mqtt5.PingReqPacket())
    cloud.fault("cut")
    assert client.ended_with() is None


def test_refuse_ends_connections_and_closes_the_port_until_it_is_cleared(cloud: LocalCloud, client: RawClient) -> None:
    cloud.fault("refuse")
    assert client.ended_with() is None
    with pytest.raises(ConnectionRefusedError):
        cloud.connect("anyone")
    cloud.fault("delay", 0)
    with pytest.raises(ConnectionRefusedError):
        cloud.connect("anyone")
    cloud.fault("clear")
    assert cloud.connect("anyone").quiet() == []


def test_delay_holds_up_both_directions(cloud: LocalCloud, client: RawClient) -> None:
    cloud.fault("delay", 150)
    assert took(client.quiet) >= 0.3
    assert took(lambda: cloud.connect("anyone")) >= 0.3
    cloud.fault("clear")
    assert client.ended_with() == 0x8E


def test_throttle_answers_everything_with_quota_exceeded(cloud: LocalCloud, client: RawClient) -> None:
    cloud.fault("throttle")
    client.publish("a", qos=QOS1, packet_id=1)
    assert client.receive(mqtt5.PubAckPacket).reason_code == 0x97
    client.publish("a")
    assert client.subscribe("a", "b") == [0x97, 0x97]
    assert cloud.connect("device").connack.reason_code == 0x97
    cloud.fault("clear")
    assert client.subscribe("a") == [1]


def test_drop_puback_lets_the_message_through(cloud: LocalCloud, client: RawClient) -> None:
    client.subscribe("a")
    cloud.fault("drop-puback")
    client.publish("a", b"arrived", qos=QOS1, packet_id=1)
    assert [type(packet) for packet in client.quiet()] == [mqtt5.PublishPacket]
    cloud.fault("clear")
    client.publish("a", b"arrived", qos=QOS1, packet_id=2)
    assert {type(packet) for packet in client.quiet()} == {mqtt5.PublishPacket, mqtt5.PubAckPacket}


def test_deaf_loses_what_is_published_to_a_client_while_all_else_goes_well(
    cloud: LocalCloud, client: RawClient
) -> None:
    client.subscribe("a")
    cloud.fault("deaf")
    client.publish("a", b"lost", qos=QOS1, packet_id=1)
    client.publish("a", b"lost too")
    assert [(type(packet), packet.reason_code) for packet in client.quiet()] == [(mqtt5.PubAckPacket, 0)]
    assert client.subscribe("a", "b") == [1, 1]
    assert client.quiet() == []
    cloud.fault("clear")
    client.publish("b", b"heard", qos=QOS1, packet_id=2)
    assert [packet.payload for packet in client.quiet() if isinstance(packet, mqtt5.PublishPacket)] == [b"heard"]


def test_what_is_lost_while_deaf_is_not_delivered_to_the_kept_session_either(cloud: LocalCloud) -> None:
    deaf = cloud.connect(cloud.thing("deaf"), session_expiry_interval=60)
    deaf.subscribe("a")
    cloud.fault("deaf")
    for number in (1, 2):
        deaf.publish("a", b"lost", qos=QOS1, packet_id=number)
        deaf.receive(mqtt5.PubAckPacket)
    assert deaf.quiet() == []  # both had come to the gateway before the answer to this ping
    cloud.fault("clear")
    again = cloud.connect("deaf", session_expiry_interval=60)
    assert (again.connack.session_present, again.quiet()) == (True, [])


def test_duplicate_delivers_a_message_twice_and_keeps_the_second_acknowledgement_from_the_broker(
    cloud: LocalCloud, client: RawClient
) -> None:
    client.subscribe("a")
    cloud.fault("duplicate")
    client.publish("a", b"twice", qos=QOS1, packet_id=1)
    client.publish("a", b"once, as it is of QoS 0")
    numbers = [packet.packet_id for packet in client.quiet() if isinstance(packet, mqtt5.PublishPacket)]
    assert [number is None for number in numbers] == [False, False, True]
    assert numbers[0] != numbers[1]
    client.send(*[mqtt5.PubAckPacket(number) for number in reversed(numbers[:2])])
    cloud.fault("clear")
    client.publish("a", b"as ever", qos=QOS1, packet_id=2)
    assert payloads(client) == [b"as ever"]


def test_reorder_delivers_every_other_message_after_the_next_one(cloud: LocalCloud, client: RawClient) -> None:
    client.subscribe("a")
    cloud.fault("reorder")
    for number in range(1, 6):
        client.publish("a", b"%d" % number, qos=QOS1, packet_id=number)
    assert payloads(client) == [b"2", b"1", b"4", b"3"]
    cloud.fault("clear")
    client.publish("a", b"6", qos=QOS1, packet_id=6)
    assert sorted(payloads(client)) == [b"5", b"6"]


def payloads(client: RawClient) -> list[bytes]:
    return [packet.payload for packet in client.quiet() if isinstance(packet, mqtt5.PublishPacket)]


def test_the_rate_allows_a_burst_and_then_so_many_a_second() -> None:
    rate = Rate(IOT_CORE.publishes_per_s)
    assert [rate.take(0.0) for _ in range(101)] == [True] * 100 + [False]
    assert [rate.take(0.02) for _ in range(3)] == [True, True, False]
    assert rate.reserve(0.02) == pytest.approx(0.01)
    assert rate.reserve(0.02) == pytest.approx(0.02)
    assert rate.reserve(0.02, 50) == pytest.approx(0.52)
    assert [rate.take(9.0) for _ in range(101)] == [True] * 100 + [False]


def test_what_is_delivered_over_the_rate_waits_and_is_not_lost(cloud: LocalCloud, client: RawClient) -> None:
    """A hundred messages for a client pass at once, the next ones at the rate."""
    client.subscribe("many")
    senders = [cloud.connect(cloud.thing(f"sender-{number}")) for number in range(2)]
    for sender in senders:
        sender.send(*[mqtt5.PublishPacket("many", b"", qos=QOS1, packet_id=n) for n in range(1, 76)])
    for _ in range(150):
        message = client.receive(mqtt5.PublishPacket)
        client.send(mqtt5.PubAckPacket(message.packet_id))


# -- the command line ---------------------------------------------------------------------------------------------


def test_faults_are_commands(cloud: LocalCloud, client: RawClient) -> None:
    for name in ("freeze", "throttle", "drop-puback", "deaf", "clear", "refuse", "clear", "cut"):
        assert cloud.run("fault", name).returncode == 0
    assert cloud.run("fault", "delay", "1.5").returncode == 0
    assert client.ended_with() is None
    refused = cloud.run("fault", "delay", "-1")
    assert (refused.returncode, b"-1" in refused.stderr) == (2, True)
    assert cloud.run("fault", "earthquake").returncode == 2


def test_shadows_are_read_and_changed_from_the_command_line(cloud: LocalCloud) -> None:
    cloud.thing("shady")
    missing = cloud.run("shadow", "get", "shady", "--name", "config")
    assert (missing.returncode, b"404 No shadow exists with name: 'config'" in missing.stderr) == (1, True)
    wish = {"state": {"desired": {"a": 1}}}
    updated = cloud.run("shadow", "update", "shady", json.dumps(wish), "--name", "config", "--json")
    assert json.loads(updated.stdout)["version"] == 1
    piped = cloud.run("shadow", "update", "shady", "-", stdin=b'{"state": {"reported": {"b": 2}}}')
    assert piped.returncode == 0
    named = json.loads(cloud.run("shadow", "get", "shady", "--name", "config").stdout)
    assert (named["state"], named["version"]) == ({"desired": {"a": 1}, "reported": {}, "delta": {"a": 1}}, 1)
    classic = json.loads(cloud.run("shadow", "get", "shady").stdout)
    assert classic["state"] == {"desired": {}, "reported": {"b": 2}}
    refused = cloud.run("shadow", "update", "shady", '{"state": 1}')
    assert (refused.returncode, b"400 State node must be an object" in refused.stderr) == (1, True)


def test_a_change_from_the_command_line_is_told_to_who_listens(cloud: LocalCloud) -> None:
    listener = cloud.connect(cloud.thing("listening"))
    listener.subscribe("$aws/things/listening/shadow/name/config/update/+")
    done = cloud.run("shadow", "update", "listening", '{"state": {"desired": {"a": 1}}}', "--name", "config")
    assert done.returncode == 0
    heard = [listener.receive(mqtt5.PublishPacket).topic.rpartition("/")[2] for _ in range(3)]
    assert heard == ["accepted", "delta", "documents"]


@pytest.mark.parametrize(
    "given", [{}, {"do": "fault", "fault": "flood"}, {"do": "shadow", "operation": "eat"}, {"do": "x"}]
)
def test_a_command_that_makes_no_sense_is_answered_and_harms_nothing(cloud: LocalCloud, given) -> None:
    with pytest.raises(AgentError):
        command(cloud.folder, **given)
    assert command(cloud.folder, do="fault", fault="clear") == {}


@pytest.mark.parametrize("arguments", [["fault", "cut"], ["shadow", "get", "device"]])
def test_without_a_running_cloud_the_commands_say_so(own_cloud: LocalCloud, arguments: list[str]) -> None:
    own_cloud.folder.mkdir()
    done = own_cloud.run(*arguments)
    assert (done.returncode, b"no local cloud runs in" in done.stderr) == (1, True)


def test_the_folder_may_be_named_before_the_subcommand_and_must_be_named(cloud: LocalCloud) -> None:
    before = run_command("local-cloud", "--dir", str(cloud.folder), "fault", "clear", data_dir=cloud.folder)
    assert before.returncode == 0
    for arguments in ([], ["fault", "cut"]):
        nowhere = run_command("local-cloud", *arguments, data_dir=cloud.folder)
        assert (nowhere.returncode, b"--dir" in nowhere.stderr) == (2, True)


def test_one_folder_and_one_port_serve_one_cloud(cloud: LocalCloud, own_cloud: LocalCloud) -> None:
    twice = cloud.run("--port", "18883")
    assert (twice.returncode, b"already runs" in twice.stderr) == (1, True)
    own_cloud.folder.mkdir()
    taken = own_cloud.run("--port", str(cloud.port))
    assert (taken.returncode, b"cannot be used" in taken.stderr) == (1, True)
    bad = own_cloud.run("--thing", "no/thing")
    assert (bad.returncode, b"is no thing name" in bad.stderr) == (1, True)


# -- from start to restart ----------------------------------------------------------------------------------------


def test_sigterm_tells_clients_and_a_restart_keeps_things_and_shadows(own_cloud: LocalCloud) -> None:
    own_cloud.start("--thing", "device")
    client = own_cloud.connect("device")
    own_cloud.run("shadow", "update", "device", '{"state": {"desired": {"a": 1}}}')
    keys = {file: file.read_bytes() for file in own_cloud.folder.rglob("*.key")}
    ended: list[int | None] = []
    listening = threading.Thread(target=lambda: ended.append(client.ended_with()))
    listening.start()
    assert own_cloud.stop() == (0, "")
    listening.join()
    assert ended == [0x8B]
    assert not (own_cloud.folder / "control.sock").exists()
    own_cloud.start()
    assert {file: file.read_bytes() for file in own_cloud.folder.rglob("*.key")} == keys
    assert own_cloud.connect("device").connack.reason_code == 0
    held = json.loads(own_cloud.run("shadow", "get", "device").stdout)
    assert (held["state"]["desired"], held["version"]) == ({"a": 1}, 1)
    assert "as 'device': connected" in (own_cloud.folder / "local-cloud.log").read_text()


def test_a_client_that_comes_back_at_once_is_refused_where_that_was_asked_for(own_cloud: LocalCloud) -> None:
    own_cloud.start("--thing", "device", "--limit-connects")
    clients = own_cloud.connect_at_once("device", 3)
    assert [client.connack.reason_code for client in clients] == [0, 0x97, 0x97]


def test_a_cloud_that_was_killed_starts_again_and_leaves_no_second_broker(own_cloud: LocalCloud) -> None:
    own_cloud.start("--thing", "device")
    broker = Path("/proc") / (own_cloud.folder / "broker" / "mosquitto.pid").read_text()
    assert b"mosquitto" in (broker / "cmdline").read_bytes()
    own_cloud.process.kill()
    own_cloud.process.communicate()
    own_cloud.start()
    wait_until(lambda: not broker.exists())
    assert own_cloud.connect("device").connack.reason_code == 0
