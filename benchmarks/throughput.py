"""Eight clients at once against the agent, beside one client, in interleaved rounds of one run."""

import asyncio
import os
import statistics

from benchmarks.agent import RunningAgent, running_agent
from benchmarks.data import corpus, queries
from benchmarks.load import Load, ask_all, connected, disconnect
from benchmarks.report import percentiles, publish

CLIENTS = 8
ROUNDS = 5


def measure(size: str, questions: int) -> None:
    with running_agent(corpus(size).data_dir) as agent:
        one, many = asyncio.run(_rounds(agent, queries(questions)))
    cores = os.cpu_count() or 1
    rows = {name: summary(loads) for name, loads in (("1 client", one), (f"{CLIENTS} clients", many))}
    alone = statistics.median(load.cpu_s_per_answer for load in one)
    together = statistics.median(load.cpu_s_per_answer for load in many)
    left = statistics.median(load.cores_left for load in many)
    rate = statistics.median(load.per_second for load in many)
    publish(
        f"throughput-{size}",
        rows,
        # What the cores allow if an answer costs all three sides together what it costs under this load / alone.
        share_of_what_cores_allow=round(rate * together / cores, 3),
        share_of_what_others_left=round(rate * together / left, 3),
        share_at_the_cost_of_one_client=round(rate * alone / cores, 3),
        rounds=ROUNDS,
        questions_a_round=questions,
    )


def summary(loads: list[Load]) -> dict[str, float]:
    """Medians over rounds, and percentiles of all answers."""
    each = [load.row() for load in loads]
    medians = {name: round(statistics.median(row[name] for row in each), 2) for name in each[0]}
    return medians | percentiles([taken for load in loads for taken in load.times])


async def _rounds(agent: RunningAgent, texts: list[str]) -> tuple[list[Load], list[Load]]:
    clients = await connected(agent, CLIENTS)
    await ask_all(agent, clients, texts)
    one: list[Load] = []
    many: list[Load] = []
    for _ in range(ROUNDS):
        one.append(await ask_all(agent, clients[:1], texts))
        many.append(await ask_all(agent, clients, texts))
    await disconnect(clients)
    return one, many
