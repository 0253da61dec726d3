"""A link when things happen in an order that is seldom: the events of the library, a stop, a change of its settings."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

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
