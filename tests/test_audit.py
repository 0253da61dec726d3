"""The audit of acknowledgements: it catches an agent that acknowledges early, and no other one."""

import gzip
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mqtt5
import pytest
from conftest import Client, wait_until
from local_cloud import CLOUD_ONLY, QOS1, QUESTION, QUICK, LocalCloud, RawClient

from agent.config import OutboxConfig
from agent.local_cloud.audit import Audit, Findings, Key
from agent.local_cloud.control import command
from agent.local_cloud.mosquitto import free_port
from agent.local_cloud.outbox_rows import holds
from agent.store.agent_db import AgentDatabase
from agent.store.outbox import Kept, Outbox

REQUESTS, ANSWERS = "requests", "answers"
MARK = b"mark"


class Told:
    """An audit, and the packets of its connection in short."""

    def __init__(self, *stored: Key) -> None:
        self.findings = Findings()
        self.storage = set(stored)
        self.audit = Audit(self.findings, REQUESTS.__eq__, self.storage.__contains__)

    def store(self) -> "Told":
        self.storage.add(Key(MARK, None))
        return self

    def remove(self) -> "Told":
        self.storage.clear()
        return self

    def request(self, number: int = 1, payload: bytes = b"{}", correlation: bytes | None = MARK, **more: Any) -> "Told":
        self.audit.to_agent(_publish(REQUESTS, number, payload, correlation, **more))
        return self

    def answer(self, number: int = 1, payload: bytes = b"{}", correlation: bytes | None = MARK) -> "Told":
        self.audit.from_agent(_publish(ANSWERS, number, payload, correlation))
        return self

    def at_broker(self, number: int = 1, code: int = 0) -> "Told":
        self.audit.to_agent(mqtt5.PubAckPacket(number, reason_code=mqtt5.PubAckReasonCode(code)))
        return self

    def acknowledged(self, number: int = 1) -> "Told":
        self.audit.from_agent(mqtt5.PubAckPacket(number))
        return self

    @property
    def early(self) -> list[Key]:
        return self.findings.early


def _publish(topic: str, number: int, payload: bytes, correlation: bytes | None, **more: Any) -> mqtt5.PublishPacket:
    return mqtt5.PublishPacket(topic, payload, qos=QOS1, packet_id=number, correlation_data=correlation, **more)


def test_an_acknowledgement_after_the_answer_is_at_the_broker_is_in_order() -> None:
    told = Told().request().answer().at_broker().acknowledged()
    assert (told.findings.acknowledged, told.early) == (1, [])


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(Told().request(), id="no answer"),
        pytest.param(Told().request().answer(), id="an answer that is on its way"),
        pytest.param(Told().request().answer().at_broker(code=0x97), id="an answer that was refused"),
        pytest.param(Told().request().answer(correlation=b"other").at_broker(), id="another answer"),
        pytest.param(Told().request().answer().at_broker(2), id="another acknowledgement of the broker"),
    ],
)
def test_an_acknowledgement_before_that_is_early(told: Told) -> None:
    assert told.acknowledged().early == [Key(MARK, None)]


def test_every_delivery_of_a_request_needs_an_answer() -> None:
    told = Told().request(1).request(2).answer().at_broker().acknowledged(1).acknowledged(2)
    assert told.early == [Key(MARK, None)]


def test_an_answer_that_got_to_the_broker_by_an_earlier_connection_counts() -> None:
    told = Told().request().answer().at_broker()
    told.audit = Audit(told.findings, REQUESTS.__eq__, lambda _: False)
    assert told.request(5).acknowledged(5).early == []
    assert told.request(6).acknowledged(6).early == [Key(MARK, None)]


def test_a_stored_answer_excuses_only_its_own_request() -> None:
    told = Told(Key(MARK, None)).request(1).request(2, correlation=b"other").acknowledged(1).acknowledged(2)
    assert (told.findings.stored, told.early) == (1, [Key(b"other", None)])


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(Told().request(1).request(2).store().answer().at_broker().remove(), id="copies that were there"),
        pytest.param(Told().store().request(1).answer().at_broker().request(2).remove(), id="a copy that came before"),
        pytest.param(Told().store().request(1).request(2).remove(), id="copies that came while it was stored"),
    ],
)
def test_a_stored_answer_is_good_for_every_copy_that_came_before_it_left(told: Told) -> None:
    told.acknowledged(1).acknowledged(2)
    assert (told.findings.acknowledged, told.findings.stored, told.early) == (2, 2, [])


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(Told().store().request(1).answer().at_broker().remove().request(2), id="after it had left"),
        pytest.param(Told().request(2).store().answer().at_broker(code=0x97).remove(), id="an answer that was refused"),
        pytest.param(Told().request(2).store().answer().remove(), id="an answer that is on its way"),
        pytest.param(Told().request(2).store().answer(correlation=b"other").at_broker().remove(), id="another answer"),
    ],
)
def test_a_stored_answer_is_good_for_no_other_copy(told: Told) -> None:
    assert told.acknowledged(2).early == [Key(MARK, None)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_without_correlation_data_the_request_id_tells(pack) -> None:
    payload = json.dumps({"request_id": "r-1"}).encode()
    told = Told().request(payload=payload, correlation=None)
    told.answer(payload=pack(payload), correlation=None).at_broker().acknowledged()
    told.request(payload=payload, correlation=None).acknowledged()
    assert (told.findings.acknowledged, told.early) == (2, [Key(None, "r-1")])


@pytest.mark.parametrize("payload", [b"{}", b"no JSON", b"[]", b"\x1f\x8bno gzip", b'{"request_id": 1}'])
def test_what_cannot_be_told_apart_is_counted_and_not_judged(payload: bytes) -> None:
    told = Told().request(payload=payload, correlation=None).acknowledged()
    assert (told.findings.unmarked, told.findings.acknowledged, told.early) == (1, 0, [])


def test_other_topics_and_retained_messages_are_no_requests() -> None:
    told = Told()
    told.audit.to_agent(_publish("updates", 1, b"{}", MARK))
    told.request(2, retain=True)
    told.acknowledged(1).acknowledged(2)
    assert told.findings == Findings()


def test_what_the_agent_asks_itself_is_no_request_on_a_later_connection_either() -> None:
    told = Told()
    told.audit.from_agent(_publish(REQUESTS, 9, b"", b"echo"))
    told.audit = Audit(told.findings, REQUESTS.__eq__, lambda _: False)
    told.request(3, correlation=b"echo").acknowledged(3)
    assert (told.findings.acknowledged, told.early) == (0, [])


def test_an_answer_is_stored_if_a_row_of_the_outbox_holds_it(tmp_path: Path) -> None:
    assert not holds(tmp_path, Key(MARK, None))
    outbox = Outbox(AgentDatabase(tmp_path / "agent.db"), OutboxConfig())
    outbox.put([Kept("local", "answer", ANSWERS, b'{"request_id": "r-1"}', {"correlation": MARK.hex()}, b"key")])
    assert holds(tmp_path, Key(MARK, None))
    assert holds(tmp_path, Key(None, "r-1"))
    assert not holds(tmp_path, Key(b"other", None))
    assert not holds(tmp_path, Key(None, "r-2"))
    outbox.refuse(Kept("local", "request", REQUESTS, b'{"request_id": "r-2"}', {}, b"other"), "deadly")
    assert not holds(tmp_path, Key(None, "r-2")), "a request that was set aside is no answer to it"


# -- at the gateway -----------------------------------------------------------------------------------------------


@pytest.fixture
def audited(tmp_path: Path) -> Iterator[LocalCloud]:
    tmp_path.chmod(0o755)  # mosquitto gives up root
    running = LocalCloud(tmp_path).start("--thing", "device", "--client", "app", "--audit", str(tmp_path / "data"))
    yield running
    running.kill()


def found(cloud: LocalCloud) -> dict[str, Any]:
    return command(cloud.folder, do="audit")


def answer_one(device: RawClient, *, early: bool) -> None:
    request = device.receive(mqtt5.PublishPacket)
    done = mqtt5.PubAckPacket(request.packet_id)
    if early:
        device.send(done)
    mark = request.correlation_data
    device.publish(request.response_topic, b"{}", qos=QOS1, packet_id=7, correlation_data=mark)
    device.receive(mqtt5.PubAckPacket)
    if not early:
        device.send(done)


def test_the_gateway_tells_an_agent_that_acknowledges_early_from_one_that_does_not(audited: LocalCloud) -> None:
    device, client = audited.connect("device"), audited.client()
    try:
        device.subscribe("arxplorer/search/requests/device")
        for early in (False, True):
            topic, mark = "arxplorer/search/requests/device", uuid.uuid4().bytes
            client.publish(topic, b"{}", response_topic=client.answers, correlation=mark)
            answer_one(device, early=early)
            client.next()
            device.quiet()
            assert found(audited)["early"] == ([mark.hex()] if early else [])
        assert found(audited)["acknowledged"] == 2
        assert f"acknowledged before its answer: Key(correlation={mark!r}" in audited.log
        shown = json.loads(audited.run("audit").stdout)
        assert shown == {"acknowledged": 2, "stored": 0, "early": [mark.hex()], "unmarked": 0}
    finally:
        client.close()


def test_the_agent_acknowledges_nothing_early_while_messages_come_twice_and_out_of_order(
    audited: LocalCloud, start_agent, sample_data_dir: Path
) -> None:
    start_agent(sample_data_dir, free_port(), config=audited.config("device"), **CLOUD_ONLY, **QUICK)
    client: Client = audited.client()
    try:
        audited.fault("duplicate")
        audited.fault("reorder")
        for number in range(20):
            request = json.dumps({**QUESTION, "request_id": f"r-{number}"}).encode()
            client.publish(
                "arxplorer/search/requests", request, response_topic=client.answers, correlation=b"%d" % number
            )
        wait_until(lambda: found(audited)["acknowledged"] >= 38)  # a message and its copy may be held back
        assert found(audited)["early"] == []
    finally:
        client.close()
