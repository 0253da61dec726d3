"""What AWS's own conformance suite, Device Advisor, checks of a device: each of its cases is a test here, by name."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hostile import HostileBroker
from local_cloud import until

from agent.mqtt.connection import Connection


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


async def test_connect_with_jittered_backoff_over_twelve_refused_connects(hostile: HostileBroker, connect) -> None:
    hostile.hang_up = True
    connect(hostile.as_broker(reconnect_ms=(20, 1280)))
    await until(lambda: len(hostile.accepted) >= 14)
    gaps = [after - before for before, after in zip(hostile.accepted, hostile.accepted[1:], strict=False)]
    assert len(set(gaps)) == len(gaps)
    assert sum(gaps[-4:]) / 4 > sum(gaps[:3]) / 3
    assert max(gaps[-6:]) - min(gaps[-6:]) > 0.05  # those of the full wait: jitter, and not merely a doubling
