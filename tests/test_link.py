"""A link when things happen in an order that is seldom: the events of the library, a stop, a change of its settings."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from local_cloud import LocalCloud

from agent.cloud.link import CloudLink, Patience, cloud_brokers
from agent.config import load_config
from agent.errors import BrokerError
from agent.local_cloud.mosquitto import Mosquitto
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker, Message, Outgoing


def to(broker: Mosquitto) -> Connection:
    return Connection(Broker("127.0.0.1", broker.port, "device"))


async def test_a_link_that_came_and_went_while_the_loop_was_busy_counts_as_down(broker: Mosquitto) -> None:
    connection = to(broker)
    connection.start()
    await connection.wait_connected(10)
    broker.stop()
    async with asyncio.timeout(10):
        while connection.connected.is_set():  # noqa: ASYNC110  it has no event for that
            await asyncio.sleep(0.01)
    broker.start()
    time.sleep(3)  # noqa: ASYNC251  the loop is busy
    broker.stop()
    time.sleep(0.5)  # noqa: ASYNC251
    await asyncio.sleep(0.5)
    try:
        assert not connection.connected.is_set()
    finally:
        await connection.stop()


async def test_a_stop_holds_though_the_link_is_being_made_anew(broker: Mosquitto) -> None:
    connection = to(broker)
    connection.start()
    await connection.wait_connected(10)
    changing = asyncio.create_task(connection.set_receive_maximum(7))
    await asyncio.sleep(0)
    await connection.stop()
    await changing
    await asyncio.sleep(1)
    up = connection.connected.is_set()
    await connection.stop()
    assert not up


async def test_what_is_listened_to_while_the_link_resumes_is_subscribed_to(broker: Mosquitto, monkeypatch) -> None:
    connection = to(broker)
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    def put(message: Message) -> None:
        heard.put_nowait(message.payload)
        message.acknowledge()

    await connection.listen(["first"], put)
    subscribe = connection._subscribe  # noqa: SLF001  there is no other way into the middle of it

    async def slow(packets: Sequence[Any]) -> None:
        await subscribe(packets)
        if not connection.connected.is_set():
            await connection.listen(["second"], put)

    monkeypatch.setattr(connection, "_subscribe", slow)
    connection.start()
    await connection.wait_connected(10)
    await connection.send(Outgoing("second", b"hello"))
    try:
        assert await asyncio.wait_for(heard.get(), 2) == b"hello"
    finally:
        await connection.stop()


# -- the probe of a cloud link ------------------------------------------------------------------------------------


@asynccontextmanager
async def probed(cloud: LocalCloud, **patience: float) -> AsyncIterator[Connection]:
    """A connection, listening to its own requests, that a cloud link keeps up."""
    environment = {"ARXPLORER__AWS_IOT__MAX_BACKOFF_S": "1"}
    aws_iot = load_config(cloud.config("device"), environment=environment).aws_iot
    connection = Connection(cloud_brokers(aws_iot, "device")[0])
    await connection.listen([connection.broker.topics.own_requests], Message.acknowledge)
    link = CloudLink(aws_iot, [connection], patience=Patience(**patience))
    running = asyncio.create_task(link.run())
    try:
        yield connection
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.stop()


async def test_a_denied_message_long_ago_does_not_end_the_probes(cloud: LocalCloud, caplog) -> None:
    async with probed(cloud, echo_s=0.5) as connection:
        await connection.wait_connected(20)
        await asyncio.sleep(0.4)  # the first probe is over
        cloud.fault("deaf")
        with pytest.raises(BrokerError):
            await connection.send(Outgoing("not/ours", b""))
        assert connection.ended_with == 0x87
        async with asyncio.timeout(20):
            while caplog.text.count("hears nothing") < 2:  # noqa: ASYNC110  as above
                await asyncio.sleep(0.01)
    assert "no more probes" not in caplog.text


async def test_a_link_that_stays_deaf_is_made_anew_less_and_less_often(cloud: LocalCloud, caplog) -> None:
    cloud.fault("deaf")
    async with probed(cloud, echo_s=0.1) as connection:
        await connection.wait_connected(20)
        await asyncio.sleep(4)
    assert 2 <= caplog.text.count("hears nothing") <= 6
