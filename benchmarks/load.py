"""Questions over MQTT: one client after the other, or many at once, and what it costs every process that has a part."""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agent.aws import AWSIoTMQTTClient
from benchmarks.agent import RunningAgent, cpu_seconds, ready_client


class Load(NamedTuple):
    """What a run of questions took: seconds of each, of the whole, and processor seconds of the three sides.

    `machine_s`: of everything that ran on the machine.
    """

    times: list[float]
    wall_s: float
    server_s: float
    broker_s: float
    clients_s: float
    machine_s: float

    @property
    def own_s(self) -> float:
        return self.server_s + self.broker_s + self.clients_s

    @property
    def cpu_s_per_answer(self) -> float:
        return self.own_s / len(self.times)

    @property
    def cores_left(self) -> float:
        """What others on the machine left of its cores."""
        return (os.cpu_count() or 1) - max(self.machine_s - self.own_s, 0.0) / self.wall_s

    @property
    def per_second(self) -> float:
        return len(self.times) / self.wall_s

    def row(self) -> dict[str, float]:
        each = {"server": self.server_s, "broker": self.broker_s, "clients": self.clients_s}
        costs = {f"{side}_cpu_ms": round(used / len(self.times) * 1e3, 2) for side, used in each.items()}
        return {"questions_a_second": round(self.per_second, 1), **costs, "cores_left": round(self.cores_left, 2)}


async def connected(server: RunningAgent, count: int) -> list[AWSIoTMQTTClient]:
    """Clients that have had an answer each."""
    return [await ready_client(server) for _ in range(count)]


async def disconnect(clients: Sequence[AWSIoTMQTTClient]) -> None:
    for client in clients:
        await client.disconnect()


async def ask_all(server: RunningAgent, clients: Sequence[AWSIoTMQTTClient], texts: Sequence[str]) -> Load:
    """Each client asks its share of the texts, one after the other, all clients at once."""
    times: list[float] = []

    async def ask(client: AWSIoTMQTTClient, share: Sequence[str]) -> None:
        for text in share:
            started = time.perf_counter()
            answer: dict[str, Any] = await client.ask(text)
            times.append(time.perf_counter() - started)
            if not answer["results"]:
                raise RuntimeError(f"no answer to {text!r}: {answer.get('error')}")

    before = _used(server)
    started = time.perf_counter()
    await asyncio.gather(*(ask(client, texts[number :: len(clients)]) for number, client in enumerate(clients)))
    wall = time.perf_counter() - started
    return Load(times, wall, *(after - used for after, used in zip(_used(server), before, strict=True)))


def _used(server: RunningAgent) -> tuple[float, float, float, float]:
    own = os.times()
    return server.cpu_seconds(), cpu_seconds(server.broker.pid), own.user + own.system, _machine_s()


def _machine_s() -> float:
    """Processor seconds of the whole machine so far, waiting and stolen time left out."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text("ascii").split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
