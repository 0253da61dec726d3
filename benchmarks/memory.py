"""The agent's memory at each corpus size, after the same questions: it must not grow with the corpus."""

import asyncio

from agent.device.host import memory_mb
from benchmarks.agent import RunningAgent, running_agent
from benchmarks.data import SIZES, corpus, queries
from benchmarks.load import ask_all, connected, disconnect
from benchmarks.report import publish


def measure(questions: int) -> None:
    rows = {}
    for size in SIZES:
        config = corpus(size)
        with running_agent(config.data_dir) as agent:
            asyncio.run(_ask(agent, queries(questions)))
            memory = memory_mb(agent.process.pid) or {}
        rows[size] = {f"{kind}_mib": memory.get(kind, 0.0) for kind in ("anonymous", "uss", "rss")}
    smallest, largest = rows[SIZES[0]], rows[SIZES[-1]]
    growth = {kind: round(largest[kind] - smallest[kind], 1) for kind in smallest}
    publish("memory", rows, growth_from_10k_to_750k=growth, questions=questions)


async def _ask(agent: RunningAgent, texts: list[str]) -> None:
    clients = await connected(agent, 1)
    await ask_all(agent, clients, texts)
    await disconnect(clients)
