"""Messages to a broker that gives trouble: over one of them, the others get there; with a backlog, it is no deaf link."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mqtt5
import pytest
from conftest import WAIT_S
from hostile import HostileBroker
from local_cloud import until

from agent.config import OutboxConfig
from agent.mqtt import delivery as delivery_module
from agent.mqtt.connection import Connection
from agent.mqtt.delivery import Delivery
from agent.mqtt.packets import Outgoing
from agent.store.agent_db import AgentDatabase
from agent.store.outbox import Outbox

TROUBLE = "trouble"


class Troubled(HostileBroker):
    """Ends the link without a word over one topic, or refuses what is sent there for now."""

    def __init__(self, *, refuses: bool) -> None:
        super().__init__()
        self.refuses = refuses
        self.taken: list[bytes] = []

    def _answer(self, packet: mqtt5.Packet) -> mqtt5.Packet | None:
        if not isinstance(packet, mqtt5.PublishPacket):
            return super()._answer(packet)
        if packet.topic != TROUBLE:
            self.taken.append(packet.payload)
            return mqtt5.PubAckPacket(packet.packet_id)
        if self.refuses:
            return mqtt5.PubAckPacket(packet.packet_id, mqtt5.PubAckReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
        self.end_all(None)
        return None


class Busy(HostileBroker):
    """Never lets a probe come back, but has other messages to deliver, or not."""

    def __init__(self, *, backlog: bool) -> None:
        super().__init__()
        self.backlog = backlog

    def _answer(self, packet: mqtt5.Packet) -> mqtt5.Packet | None:
        if isinstance(packet, mqtt5.PublishPacket) and self.backlog:
            for writer in self._writers:
                writer.write(
                    mqtt5.PublishPacket("asked", payload=b"x", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=7).write()
                )
        return super()._answer(packet)


@pytest.mark.parametrize("backlog", [True, False])
async def test_a_probe_behind_a_backlog_is_no_sign_of_a_deaf_link(backlog: bool) -> None:
    broker = Busy(backlog=backlog)
    await broker.start()
    connection = Connection(broker.as_broker())
    connection.start()
    await connection.wait_connected(WAIT_S)
    assert await connection.echoes("asked", timeout_s=1.0) == backlog
    await connection.stop()
    await broker.stop()


@pytest.fixture(params=[False, True], ids=["ends the link", "refuses it for now"])
async def troubled(request: pytest.FixtureRequest) -> AsyncIterator[Troubled]:
    broker = Troubled(refuses=request.param)
    await broker.start()
    yield broker
    await broker.stop()


async def test_what_waits_behind_a_message_that_gives_trouble_gets_there_and_that_one_stays(
    troubled: Troubled, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(delivery_module, "RETRY_S", 0.05)
    database = AgentDatabase(tmp_path / "agent.db")
    outbox = Outbox(database, OutboxConfig())
    with ThreadPoolExecutor(1) as pool:
        connection = Connection(troubled.as_broker())
        delivery = Delivery(connection, "local", outbox, pool)
        stored: list[bool] = []
        for number in range(30):
            topic = TROUBLE if number == 3 else "fine"
            delivery.keep(Outgoing(topic, b"%d" % number), "answer", stored.append)
        await delivery.close()
        assert stored == [True] * 30
        running = asyncio.ensure_future(delivery.run())
        connection.start()
        await until(lambda: outbox.waiting("local", "answer") == 1)
        running.cancel()
        await connection.stop()
    assert set(troubled.taken) == {b"%d" % number for number in range(30)} - {b"3"}
    assert [one.payload for one in outbox.next("local", "answer", 9)] == [b"3"]
    database.close()
