"""The local cloud's gateway, held to what AWS IoT Core does, by packets over mutual TLS to a real broker behind it."""

import asyncio
import json
import shutil
import socket
import ssl
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import mqtt5
import pytest
import trustme
from local_cloud import EVERYTHING, QOS1, LocalCloud, RawClient

from agent.config import load_config
from agent.local_cloud.certificates import Authority
from agent.local_cloud.faults import Faults
from agent.local_cloud.folder import CloudFolder
from agent.local_cloud.gateway import Gateway
from agent.local_cloud.mosquitto import Mosquitto, free_port
from agent.protocol.limits import ALPN, IOT_CORE


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    running = LocalCloud(tmp_path_factory.mktemp("local")).start("--thing", "device", "--client", "app")
    yield running
    running.kill()


@pytest.fixture
def thing(cloud: LocalCloud, request: pytest.FixtureRequest) -> str:
    """A thing of the test's own that may do everything."""
    return cloud.thing(f"thing-{abs(hash(request.node.nodeid))}")


@pytest.fixture(autouse=True)
def close_clients(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "cloud" in request.fixturenames:
        request.getfixturevalue("cloud").close_clients()


# -- what is made on first use ------------------------------------------------------------------------------------


def test_a_thing_gets_certificate_key_policy_and_a_ready_configuration(cloud: LocalCloud) -> None:
    config = load_config(cloud.folder / "things" / "device" / "config.yaml", environment={})
    assert config.aws_iot.enabled
    assert (config.aws_iot.endpoint, config.aws_iot.port, config.thing_name) == ("localhost", cloud.port, "device")
    for name in ("ca_cert", "cert_file", "private_key"):
        path = Path(getattr(config.aws_iot.certificates, name))
        assert (path.is_absolute(), path.is_file()) == (True, True)
    assert (cloud.folder / "policies" / "device.json").is_file()


def test_keys_are_readable_by_their_owner_alone(cloud: LocalCloud) -> None:
    keys = list(cloud.folder.rglob("*.key"))
    assert len(keys) >= 4
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_what_is_there_is_kept_and_only_the_link_in_the_configuration_is_set_right(tmp_path: Path) -> None:
    folder = CloudFolder(tmp_path)
    folder.add_thing("t", 1000)
    config = tmp_path / "things" / "t" / "config.yaml"
    config.write_text(config.read_text() + "logging: {level: debug}\n")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != config}
    CloudFolder(tmp_path).add_thing("t", 2000)
    assert {path: path.read_bytes() for path in kept} == kept
    loaded = load_config(config, environment={})
    assert (loaded.aws_iot.port, loaded.logging.level) == (2000, "debug")


# -- TLS ----------------------------------------------------------------------------------------------------------


def test_only_a_certificate_of_the_clouds_own_authority_gets_in(cloud: LocalCloud, tmp_path: Path) -> None:
    foreign = trustme.CA().issue_cert(common_name="device")
    foreign.private_key_pem.write_to_path(tmp_path / "key")
    foreign.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    with_foreign = cloud.tls(None)
    with_foreign.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    for context in (cloud.tls(None), with_foreign):
        with pytest.raises((ssl.SSLError, ConnectionResetError)):  # noqa: PT012  TLS 1.3 says it when reading
            connection = cloud.secure(context)
            connection.sendall(mqtt5.ConnectPacket("device").write())
            assert connection.recv(1) == b""
            raise ConnectionResetError


@pytest.mark.parametrize("server_name", [None, "elsewhere.example.com"])
def test_a_client_that_does_not_name_the_server_is_refused(cloud: LocalCloud, server_name: str | None) -> None:
    context = cloud.tls("device")
    context.check_hostname = False
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        cloud.secure(context, server_name)


@pytest.mark.parametrize("protocols", [[ALPN], []])
def test_alpn_is_taken_and_not_needed(cloud: LocalCloud, protocols: list[str]) -> None:
    context = cloud.tls("device")
    if protocols:
        context.set_alpn_protocols(protocols)
    with cloud.secure(context) as connection:
        assert connection.selected_alpn_protocol() == (protocols or [None])[0]
        assert connection.version() in ("TLSv1.2", "TLSv1.3")


def test_tls_is_1_2_at_least(tmp_path: Path) -> None:
    assert Authority(tmp_path).server_context().minimum_version == ssl.TLSVersion.TLSv1_2


# -- CONNECT ------------------------------------------------------------------------------------------------------


def test_connack_states_the_limits(cloud: LocalCloud, thing: str) -> None:
    connack = cloud.connect(thing, keep_alive=5, session_expiry_interval=10**9).connack
    assert connack.reason_code == 0
    assert (connack.max_qos, connack.receive_max, connack.topic_alias_max) == (1, 100, 8)
    assert (connack.server_keep_alive, connack.session_expiry_interval) == (30, 7 * 24 * 3600)
    assert (connack.subscription_id_available, connack.shared_subscription_available) == (False, True)
    assert cloud.connect(thing, keep_alive=0).connack.server_keep_alive == 1200
    assert cloud.connect(thing, keep_alive=45).connack.server_keep_alive is None


# fmt: off
@pytest.mark.parametrize(("client_id", "options", "code"), [
    pytest.param("device", {"will": mqtt5.Will("arxplorer/status/device", retain=True), "session_expiry_interval": 60}, 0x00, id="an agent as it should be"),
    pytest.param("app", {}, 0x87, id="another thing's client id"),
    pytest.param("device-2", {}, 0x87, id="a client id that is no thing's"),
    pytest.param("", {}, 0x85, id="no client id"),
    pytest.param("x" * 129, {}, 0x85, id="a client id that is too long"),
    pytest.param("device", {"will": mqtt5.Will("a", qos=mqtt5.QoS.EXACTLY_ONCE)}, 0x9B, id="a will of QoS 2"),
    pytest.param("device", {"will": mqtt5.Will("a/b/c/d/e/f/g/h/i")}, 0x90, id="a will on a topic that is too deep"),
    pytest.param("device", {"authentication_method": "x"}, 0x8C, id="an authentication method"),
])
# fmt: on
def test_connect_is_answered_with_the_right_code(cloud: LocalCloud, client_id, options, code) -> None:
    client = cloud.connect("device", client_id, **options)
    assert client.connack.reason_code == code
    assert code == 0 or client.next() is None


def test_connect_attributes_need_the_policys_word(cloud: LocalCloud) -> None:
    assert cloud.connect("app", session_expiry_interval=60).connack.reason_code == 0
    assert cloud.connect("app", will=mqtt5.Will("a")).connack.reason_code == 0x87


def test_a_thing_that_was_removed_is_not_authorized(cloud: LocalCloud, thing: str) -> None:
    context = cloud.tls(thing)
    shutil.rmtree(cloud.folder / "things" / thing)
    client = RawClient(cloud.secure(context))
    client.send(mqtt5.ConnectPacket(thing))
    assert client.receive(mqtt5.ConnAckPacket).reason_code == 0x87


def test_a_policy_that_cannot_be_read_allows_nothing(cloud: LocalCloud, thing: str) -> None:
    (cloud.folder / "policies" / f"{thing}.json").write_text("{")
    assert cloud.connect(thing).connack.reason_code == 0x87


def test_other_versions_of_mqtt_are_told_so(cloud: LocalCloud) -> None:
    client = RawClient(cloud.secure(cloud.tls("device")))
    client.send(b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06device")
    assert client.receive(mqtt5.ConnAckPacket).reason_code == 0x84


# -- PUBLISH ------------------------------------------------------------------------------------------------------


# fmt: off
@pytest.mark.parametrize(("packet", "code"), [
    pytest.param(mqtt5.PublishPacket("arxplorer/search/requests", b""), 0x87, id="a topic that the policy does not name"),
    pytest.param(mqtt5.PublishPacket("arxplorer/status", b"", retain=True), 0x87, id="retained where only publishing is allowed"),
    pytest.param(mqtt5.PublishPacket("arxplorer/status", b"x" * (128 * 1024 + 1)), 0x95, id="a payload over 128 KiB"),
    pytest.param(mqtt5.PublishPacket("arxplorer/status", b"x" * 2**20), 0x95, id="a packet far over the limit"),
    pytest.param(mqtt5.PublishPacket("arxplorer/responses/b/c/d/e/f/g/h", b""), 0x90, id="a topic of eight slashes"),
    pytest.param(mqtt5.PublishPacket("arxplorer/responses/" + "é" * 119, b""), 0x90, id="a topic of 258 bytes"),
    pytest.param(mqtt5.PublishPacket("arxplorer/status", b"", qos=mqtt5.QoS.EXACTLY_ONCE, packet_id=1), 0x9B, id="QoS 2"),
    pytest.param(mqtt5.PublishPacket("arxplorer/status", b"", topic_alias=9), 0x94, id="a topic alias over 8"),
    pytest.param(mqtt5.PublishPacket("", b"", topic_alias=1), 0x94, id="an alias that was never given"),
    pytest.param(mqtt5.SubscribePacket(1, [mqtt5.TopicFilter("arxplorer/embeddings")], subscription_id=1), 0xA1, id="a subscription identifier"),
    pytest.param(mqtt5.SubscribePacket(1, [mqtt5.TopicFilter(f"a/{n}") for n in range(9)]), 0x97, id="nine filters in one SUBSCRIBE"),
    pytest.param(mqtt5.ConnectPacket("device"), 0x82, id="a second CONNECT"),
    pytest.param(mqtt5.AuthPacket(), 0x82, id="AUTH"),
    pytest.param(b"\x30\x03\x00\x01#", 0x81, id="a wildcard in a topic"),
    pytest.param(b"\xff\xff\xff\xff\xff\xff", 0x81, id="no MQTT at all"),
])
# fmt: on
def test_what_is_not_allowed_ends_the_connection_with_its_code(cloud: LocalCloud, packet, code) -> None:
    device = cloud.thing(f"device-{code}-{abs(hash(str(packet)))}", policy=None)
    client = cloud.connect(device)
    client.send(packet)
    assert client.ended_with() == code


def test_the_largest_payload_and_the_longest_topic_go_through(cloud: LocalCloud, thing: str) -> None:
    topic = "/".join(["a" * 31] * 7 + ["b" * 32])
    assert (len(topic), topic.count("/")) == (256, 7)
    client = cloud.connect(thing)
    assert client.subscribe(topic) == [1]
    client.publish(topic, b"x" * IOT_CORE.payload_bytes, qos=QOS1, packet_id=1)
    packets = {type(packet): packet for packet in (client.next(), client.next())}
    assert len(packets[mqtt5.PublishPacket].payload) == IOT_CORE.payload_bytes
    assert packets[mqtt5.PubAckPacket].reason_code == 0


def test_a_topic_alias_stands_for_its_topic(cloud: LocalCloud, thing: str) -> None:
    client = cloud.connect(thing)
    client.subscribe(f"{thing}/a")
    client.publish(f"{thing}/a", b"1", topic_alias=8)
    client.publish("", b"2", topic_alias=8)
    received = [client.receive(mqtt5.PublishPacket) for _ in range(2)]
    assert [(one.topic, one.payload) for one in received] == [(f"{thing}/a", b"1"), (f"{thing}/a", b"2")]


def test_publishes_over_the_rate_are_discarded_without_a_puback(cloud: LocalCloud, thing: str) -> None:
    client = cloud.connect(thing)
    client.send(*[mqtt5.PublishPacket("a", b"", qos=QOS1, packet_id=number) for number in range(1, 301)])
    acknowledged = [packet.packet_id for packet in client.quiet()]
    assert acknowledged[:100] == list(range(1, 101))
    assert 100 <= len(acknowledged) < 300


# -- SUBSCRIBE ----------------------------------------------------------------------------------------------------


def test_each_filter_of_a_subscribe_gets_its_own_code(cloud: LocalCloud) -> None:
    device = cloud.thing("picky", policy=None)
    client = cloud.connect(device)
    deep = "arxplorer/embeddings/c/d/e/f/g/h/i"
    allowed = f"arxplorer/search/requests/{device}"
    assert client.subscribe("#", allowed, deep, "arxplorer/corpus/updates") == [0x87, 1, 0x8F, 1]
    assert client.subscribe("$share/arxplorer/arxplorer/search/requests", "$share/other/a") == [1, 0x87]
    assert client.subscribe("arxplorer/status") == [0x87]


@pytest.mark.parametrize("bad", ["", "a/#/b", "a+", "a" * 257, "a/b/c/d/e/f/g/h/i"])
def test_a_filter_that_is_none_is_named_as_such(cloud: LocalCloud, thing: str, bad: str) -> None:
    client = cloud.connect(thing)
    body = b"\x00\x07\x00" + len(bad).to_bytes(2) + bad.encode() + b"\x01"
    length = bytes([len(body)]) if len(body) < 128 else bytes([len(body) % 128 + 128, len(body) // 128])
    client.send(b"\x82" + length + body)
    assert client.receive(mqtt5.SubAckPacket).reason_codes == [0x8F]


def test_a_connection_holds_fifty_subscriptions(cloud: LocalCloud, thing: str) -> None:
    client = cloud.connect(thing)
    for start in range(0, 48, 8):
        assert client.subscribe(*[f"a/{number}" for number in range(start, start + 8)]) == [1] * 8
    assert client.subscribe("a/48", "a/49", "a/50", "a/0") == [1, 1, 0x97, 1]
    client.send(mqtt5.UnsubscribePacket(99, ["a/1"]))
    assert client.receive(mqtt5.UnsubAckPacket).reason_codes == [0]
    assert client.subscribe("a/50") == [1]


def test_only_a_filter_without_wildcards_gets_retained_messages(cloud: LocalCloud, thing: str) -> None:
    client = cloud.connect(thing)
    client.publish(f"{thing}/kept", b"kept", retain=True, qos=QOS1, packet_id=1)
    client.receive(mqtt5.PubAckPacket)
    assert client.subscribe(f"{thing}/+", f"{thing}/#") == [1, 1]
    assert client.quiet() == []
    assert client.subscribe(f"{thing}/kept") == [1]
    assert client.receive(mqtt5.PublishPacket).payload == b"kept"


def test_a_filter_that_ends_in_a_hash_does_not_match_its_parent(cloud: LocalCloud, thing: str) -> None:
    client = cloud.connect(thing)
    client.subscribe(f"{thing}/#")
    client.publish(thing, b"parent", qos=QOS1, packet_id=1)
    client.publish(f"{thing}/child", b"child", qos=QOS1, packet_id=2)
    received = [packet for packet in client.quiet() if isinstance(packet, mqtt5.PublishPacket)]
    assert [packet.payload for packet in received] == [b"child"]


def test_a_message_that_may_not_be_received_is_dropped_and_the_connection_stays(cloud: LocalCloud, thing: str) -> None:
    deny = {"Effect": "Deny", "Action": "iot:Receive", "Resource": "arn:aws:iot:us-east-1:123456789012:topic/*/secret"}
    listener = cloud.thing(f"{thing}-l", {**EVERYTHING, "Statement": [EVERYTHING["Statement"], deny]})
    client, other = cloud.connect(listener), cloud.connect(thing)
    assert client.subscribe(f"{thing}/+") == [1]
    for number, name in enumerate(("secret", "open"), 1):
        other.publish(f"{thing}/{name}", name.encode(), qos=QOS1, packet_id=number)
        other.receive(mqtt5.PubAckPacket)
    assert [packet.payload for packet in client.quiet()] == [b"open"]


# -- sessions -----------------------------------------------------------------------------------------------------


def test_a_second_connection_with_the_same_client_id_takes_over(cloud: LocalCloud, thing: str) -> None:
    first = cloud.connect(thing)
    second = cloud.connect(thing)
    assert first.ended_with() == 0x8E
    assert second.quiet() == []


def test_a_session_is_kept_with_its_subscriptions_and_messages(cloud: LocalCloud, thing: str) -> None:
    first = cloud.connect(thing, session_expiry_interval=60)
    assert not first.connack.session_present
    first.subscribe(f"{thing}/a")
    first.send(mqtt5.DisconnectPacket())
    assert first.next() is None
    with_other = cloud.connect(cloud.thing(f"{thing}-other"))
    with_other.publish(f"{thing}/a", b"stored", qos=QOS1, packet_id=1)
    with_other.receive(mqtt5.PubAckPacket)
    again = cloud.connect(thing, session_expiry_interval=60)
    assert again.connack.session_present
    assert again.receive(mqtt5.PublishPacket).payload == b"stored"
    assert not cloud.connect(thing, clean_start=True).connack.session_present


def test_a_client_may_subscribe_before_it_has_its_connack(cloud: LocalCloud, thing: str) -> None:
    for _ in range(5):  # whichever of the two answers comes first
        eager = RawClient(cloud.secure(cloud.tls(thing)))
        wanted = mqtt5.SubscribePacket(1, [mqtt5.TopicFilter(f"{thing}/a", max_qos=QOS1)])
        eager.send(mqtt5.ConnectPacket(thing, keep_alive=60, clean_start=True), wanted)
        eager.receive(mqtt5.ConnAckPacket)
        assert list(eager.receive(mqtt5.SubAckPacket).reason_codes) == [1]
        eager.publish(f"{thing}/a", b"hello")
        assert eager.receive(mqtt5.PublishPacket).payload == b"hello"
        eager.close()


@pytest.mark.parametrize("how", ["cut off", "against the policy", "in order"])
def test_the_last_will_is_sent_unless_the_client_says_goodbye(cloud: LocalCloud, thing: str, how: str) -> None:
    only = {"Effect": "Deny", "Action": "iot:Publish", "Resource": "arn:aws:iot:us-east-1:123456789012:topic/forbidden"}
    mortal = cloud.thing(f"{thing}-m", {**EVERYTHING, "Statement": [EVERYTHING["Statement"], only]})
    watcher = cloud.connect(thing)
    watcher.subscribe(f"{thing}/will")
    client = cloud.connect(mortal, will=mqtt5.Will(f"{thing}/will", payload=b"gone", qos=QOS1))
    if how == "cut off":
        client.close()
    elif how == "against the policy":
        client.publish("forbidden")
        assert client.ended_with() == 0x87
    else:
        client.send(mqtt5.DisconnectPacket())
        assert client.next() is None
        assert watcher.quiet() == []
        return
    assert watcher.receive(mqtt5.PublishPacket).payload == b"gone"


def test_a_last_will_that_may_not_be_published_is_not_sent(cloud: LocalCloud, thing: str) -> None:
    device = cloud.thing(f"{thing}-d", policy=None)
    watcher = cloud.connect(thing)
    watcher.subscribe("arxplorer/#")
    cloud.connect(device, will=mqtt5.Will("arxplorer/search/requests", payload=b"no")).close()
    cloud.connect(device, will=mqtt5.Will(f"arxplorer/status/{device}", payload=b"yes")).close()
    while (will := watcher.receive(mqtt5.PublishPacket)).payload != b"yes":
        assert will.payload != b"no"


@asynccontextmanager
async def tightened(tmp_path: Path, **limits: int) -> AsyncIterator[tuple[LocalCloud, Gateway]]:
    """A cloud of this process, with a thing `t` that may do everything, and limits other than IoT Core's."""
    cloud = LocalCloud(tmp_path)
    cloud.thing("t")
    with Mosquitto(tmp_path / "broker") as broker:
        gateway = Gateway(CloudFolder(cloud.folder), cloud.port, broker.port, Faults(), IOT_CORE._replace(**limits))
        gateway.open()
        try:
            yield cloud, gateway
        finally:
            cloud.close_clients()
            await gateway.close()


async def test_a_silent_client_is_dropped_after_one_and_a_half_keep_alives(tmp_path: Path) -> None:
    async with tightened(tmp_path, min_keep_alive_s=1) as (cloud, gateway):
        client = await asyncio.to_thread(cloud.connect, "t", keep_alive=1)
        accepted = next(iter(gateway._links)).writer.get_extra_info("socket")  # noqa: SLF001
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # else answers wait for 40 ms
        assert await asyncio.to_thread(client.ended_with) == 0x8D


async def test_a_client_id_may_connect_once_a_second_and_what_is_refused_takes_nothing_over(tmp_path: Path) -> None:
    async with tightened(tmp_path) as (cloud, gateway):
        cloud.thing("other")
        first, second = await asyncio.to_thread(cloud.connect_at_once, "t", 2)
        assert [client.connack.reason_code for client in (first, second)] == [0, 0x97]
        assert await asyncio.to_thread(second.next) is None
        assert await asyncio.to_thread(first.quiet) == []
        other = await asyncio.to_thread(cloud.connect, "other")
        assert other.connack.reason_code == 0
        gateway._connects.clear()  # noqa: SLF001  as if a second had passed
        assert (await asyncio.to_thread(cloud.connect, "t")).connack.reason_code == 0
        assert await asyncio.to_thread(first.ended_with) == 0x8E


async def test_bytes_over_the_rate_wait_in_either_direction_and_are_not_lost(tmp_path: Path) -> None:
    """Of 30 KB in and 30 KB out, 20 KB are the burst; the rest takes its two seconds at 20 KB/s."""

    def converse() -> float:
        client = cloud.connect("t")
        client.subscribe("a")
        started = time.monotonic()
        for number in range(1, 4):
            client.publish("a", bytes([number]) * 10_000, qos=QOS1, packet_id=number)
        came = [client.next() for _ in range(6)]
        assert [packet.payload[0] for packet in came if isinstance(packet, mqtt5.PublishPacket)] == [1, 2, 3]
        assert [packet.packet_id for packet in came if isinstance(packet, mqtt5.PubAckPacket)] == [1, 2, 3]
        return time.monotonic() - started

    async with tightened(tmp_path, bytes_per_s=20_000) as (cloud, _):
        assert await asyncio.to_thread(converse) >= 1.9


async def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    port = free_port()
    first = Gateway(CloudFolder(tmp_path / "a"), port, 1, Faults())
    first.open()
    with pytest.raises(Exception, match=f"port {port} cannot be used"):
        Gateway(CloudFolder(tmp_path / "b"), port, 1, Faults()).open()
    await first.close()


def test_the_policy_of_the_next_connection_is_the_file_as_it_is_then(cloud: LocalCloud, thing: str) -> None:
    client = cloud.connect(thing)
    assert client.subscribe("a") == [1]
    (cloud.folder / "policies" / f"{thing}.json").write_text(json.dumps({"Version": "2012-10-17", "Statement": []}))
    assert client.subscribe("b") == [1]
    assert cloud.connect(thing).connack.reason_code == 0x87
