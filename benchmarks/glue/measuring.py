"""Part `glue`: the agent beside such scripts, with the same clients, in one run."""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from agent.aws import AWSIoTMQTTClient
from agent.device.host import memory_mb
from agent.errors import BrokerError
from benchmarks.agent import RunningAgent, agent_command, config_for, running, running_broker
from benchmarks.comparison import index_of, model_folder, ranking
from benchmarks.data import corpus, queries
from benchmarks.load import Load, ask_all, connected, disconnect
from benchmarks.peers.registry import OURS, python_of
from benchmarks.report import percentiles, publish
from benchmarks.throughput import CLIENTS, summary

PEERS = ("qdrant-edge i8", "chroma")
POLL_S = 0.02
START_TIMEOUT_S = 30.0
MEMORY_QUESTIONS = 200
ROUNDS = 3
"""Of several clients at once."""

Command = Callable[[int], list[str]]
"""The command of a server for the broker on a port."""


def measure(size: str, blocks: int, block: int, repetitions: int) -> None:
    commands = {name: _command(name, size) for name in (OURS, *PEERS)}
    data_dir = corpus(size).data_dir
    table: dict[str, dict[str, Any]] = {name: {} for name in commands}
    starts: dict[str, list[float]] = {name: [] for name in commands}
    for repetition in range(repetitions):
        for name, command in commands.items():
            started, memory = asyncio.run(_cold_start(command, data_dir, with_memory=repetition == 0))
            starts[name].append(started)
            table[name] |= {f"{kind}_mib": value for kind, value in memory.items()}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(_running(command, data_dir)) for name, command in commands.items()}
        alone, together = asyncio.run(_interleave(servers, queries(blocks * block), block))
    for name in table:
        times = [taken for load in alone[name] for taken in load.times]
        medians = [statistics.median(load.times) * 1e3 for load in alone[name]]
        table[name] |= percentiles(times) | {
            "median_of_blocks_ms": round(statistics.median(medians), 3),
            "server_cpu_ms": round(sum(load.server_s for load in alone[name]) / len(times) * 1e3, 2),
            "cold_start_s": round(statistics.median(starts[name]), 3),
            "ndcg": ranking(name),
            "disk_mb": index_of(name, size)[1]["disk_mb"],
        }
        table[name] |= {f"{CLIENTS}_clients_{key}": value for key, value in summary(together[name]).items()}
    publish(f"glue-{size}", table, ours_to=_ratios(table), questions=blocks * block, starts_s=starts)


def _ratios(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    kept = ("median_of_blocks_ms", "p99_ms", "server_cpu_ms", "cold_start_s", "anonymous_mib", "uss_mib", "disk_mb")
    ours = table[OURS]
    ratios = {peer: {key: round(ours[key] / table[peer][key], 3) for key in kept} for peer in PEERS}
    for peer in PEERS:
        ratios[peer]["ndcg_above"] = round(ours["ndcg"] - table[peer]["ndcg"], 4)
    return ratios


def _command(name: str, size: str) -> Command:
    """The agent reads the corpus of that size; a script reads the peers' index of the same papers."""
    if name == OURS:
        data_dir = corpus(size).data_dir
        return lambda _: agent_command(data_dir)
    folder, _ = index_of(name, size)
    python, model = python_of(name), model_folder()
    return lambda port: [python, "-m", "benchmarks.glue", name, str(folder), str(model), str(port)]


@contextmanager
def _running(command: Command, data_dir: Any) -> Iterator[RunningAgent]:
    with running_broker() as broker, running(command(broker.port), broker, data_dir) as server:
        yield server


async def _cold_start(command: Command, data_dir: Any, *, with_memory: bool) -> tuple[float, dict[str, float]]:
    """Seconds from the start of the process to its first answer, files in the page cache.

    A client that is connected already asks every POLL_S, since nobody tells it when to. Then the memory after some
    questions, with no other server running.
    """
    with running_broker() as broker:
        probe = AWSIoTMQTTClient(config_for(broker, data_dir))
        await probe.connect()
        with suppress(BrokerError):
            await probe.ask("subscribes to the answers", timeout_s=0.1)
        started = time.perf_counter()
        with running(command(broker.port), broker, data_dir) as server:
            asked: set[asyncio.Task[Any]] = set()
            while not any(task.done() for task in asked):
                asked.add(asyncio.create_task(probe.ask("first", timeout_s=START_TIMEOUT_S)))
                await asyncio.wait(asked, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
            took = time.perf_counter() - started
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            if with_memory:
                await ask_all(server, [probe], queries(MEMORY_QUESTIONS))
            memory = memory_mb(server.process.pid) if with_memory else {}
            await probe.disconnect()
        return took, memory or {}


async def _interleave(
    servers: dict[str, RunningAgent], texts: list[str], block: int
) -> tuple[dict[str, list[Load]], dict[str, list[Load]]]:
    """Blocks of questions by one client, then by several at once, each server in its turn and first in turn."""
    clients = {name: await connected(server, CLIENTS) for name, server in servers.items()}
    alone: dict[str, list[Load]] = {name: [] for name in servers}
    together: dict[str, list[Load]] = {name: [] for name in servers}
    names = list(servers)
    for name in names:
        await ask_all(servers[name], clients[name], texts[: 2 * block])
    for number, start in enumerate(range(0, len(texts), block)):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            alone[name].append(await ask_all(servers[name], clients[name][:1], texts[start : start + block]))
    for number in range(ROUNDS):
        for name in names[number:] + names[:number]:
            together[name].append(await ask_all(servers[name], clients[name], texts[: 10 * CLIENTS]))
    for connections in clients.values():
        await disconnect(connections)
    return alone, together
