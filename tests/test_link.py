"""A link when things happen in an order that is seldom: the events of the library, a stop, a change of its settings."""

import asyncio
import time

from agent.local_cloud.mosquitto import Mosquitto
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker


def to(broker: Mosquitto) -> Connection:
    return Connection(Broker("127.0.0.1", broker.port, "device"))


async def test_a_link_that_came_and_went_while_the_loop_was_busy_counts_as_down(broker: Mosquitto) -> None:
    connection = to(broker)
    connection.start()
    await connection.wait_connected(10)
    broker.stop()
    async with asyncio.timeout(10):
        while connection.connected.is_set():
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
