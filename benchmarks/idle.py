"""The agent at rest: memory after it has answered, and the processor time it takes while nobody asks."""

import asyncio
import time

from agent.device.host import memory_mb
from benchmarks.agent import ready_client, running_agent
from benchmarks.data import corpus, queries
from benchmarks.report import publish


def measure(size: str, seconds: float) -> None:
    config = corpus(size)
    with running_agent(config.data_dir) as agent:

        async def ask() -> None:
            client = await ready_client(agent)
            for text in queries(200):
                await client.ask(text)
            await client.disconnect()

        asyncio.run(ask())
        before, started = agent.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        share = (agent.cpu_seconds() - before) / (time.monotonic() - started)
        memory = memory_mb(agent.process.pid) or {}
    publish(
        f"idle-{size}",
        {
            f"agent, {size} papers": {
                **{f"{name}_mib": value for name, value in memory.items()},
                "core_percent": round(share * 100, 3),
            }
        },
        seconds=seconds,
    )
