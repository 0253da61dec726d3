"""A connection that is only tried, against a real broker."""

import asyncio

import pytest

from agent.errors import BrokerError
from agent.local_cloud.mosquitto import Mosquitto, free_port
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker, Message, Outgoing, Tls
from agent.mqtt.probe import try_connection


async def test_what_waits_for_the_agent_still_comes_to_it_after_a_try(broker: Mosquitto) -> None:
    arrived: asyncio.Queue[Message] = asyncio.Queue()
    agent = Connection(Broker("127.0.0.1", broker.port, "agent"))
    agent.start()
    await agent.wait_connected(10)
    await agent.listen(["requests"], arrived.put_nowait)
    await agent.stop()
    sender = Connection(Broker("127.0.0.1", broker.port, "sender"))
    sender.start()
    await sender.wait_connected(10)
    for number in range(3):
        await sender.send(Outgoing("requests", b"%d" % number))
    await sender.stop()

    await try_connection(Broker("127.0.0.1", broker.port, "agent"), 10)

    agent.start()
    async with asyncio.timeout(10):
        messages = [await arrived.get() for _ in range(3)]
    assert [message.payload for message in messages] == [b"0", b"1", b"2"]
    for message in messages:
        message.acknowledge()
    await agent.stop()


async def test_a_try_that_fails_says_why() -> None:
    with pytest.raises(BrokerError, match="refused"):
        await try_connection(Broker("127.0.0.1", free_port(), "agent"), 1)
    with pytest.raises(BrokerError, match="certificate files cannot be used"):
        await try_connection(Broker("127.0.0.1", 1, "agent", tls=Tls("/absent", "/absent", "/absent")), 1)
