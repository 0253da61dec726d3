"""Request to answer over MQTT on loopback, beside the direct path, in interleaved blocks of one run."""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from agent.paths import find_model
from agent.store.generations import current_generation
from benchmarks.agent import ready_client, running_agent
from benchmarks.data import corpus, queries
from benchmarks.report import percentiles, publish


def measure(size: str, blocks: int, block: int) -> None:
    config = corpus(size)
    model, generation = find_model(config.data_dir, config.model.name), current_generation(config.data_dir)
    direct = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.direct", str(model), str(generation)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with running_agent(config.data_dir) as agent:
            asyncio.run(_interleave(size, direct, agent, queries(blocks * block), block))
    finally:
        direct.terminate()
        direct.wait()


def _ask_direct(direct: Any, text: str) -> dict[str, float]:
    direct.stdin.write(json.dumps(text) + "\n")
    direct.stdin.flush()
    done: dict[str, float] = json.loads(direct.stdout.readline())
    return done


async def _interleave(size: str, direct: Any, agent: Any, texts: list[str], block: int) -> None:
    client = await ready_client(agent)
    bare: list[list[float]] = []
    over_mqtt: list[list[float]] = []
    stages: dict[str, list[float]] = {}
    used = {"direct": 0.0, "agent": 0.0}
    for start in range(-block, len(texts), block):
        part = texts[max(start, 0) : max(start, 0) + block]
        alone = [_ask_direct(direct, text) for text in part]
        cpu_before = agent.cpu_seconds()
        times = []
        for text in part:
            started = time.perf_counter()
            answer = await client.ask(text)
            times.append(time.perf_counter() - started)
            for stage, taken in answer["metadata"]["timings_ms"].items():
                stages.setdefault(stage, []).append(taken)
        if start >= 0:  # the first block only warms up
            bare.append([done["seconds"] for done in alone])
            over_mqtt.append(times)
            used["direct"] += sum(done["cpu"] for done in alone)
            used["agent"] += agent.cpu_seconds() - cpu_before
    await client.disconnect()
    direct_times = [taken for block_times in bare for taken in block_times]
    mqtt_times = [taken for block_times in over_mqtt for taken in block_times]
    rows = {
        "direct": percentiles(direct_times) | {"cpu_ms": round(used["direct"] / len(texts) * 1e3, 2)},
        "over MQTT": percentiles(mqtt_times) | {"cpu_ms": round(used["agent"] / len(texts) * 1e3, 2)},
    }
    medians = [[statistics.median(block_times) for block_times in side] for side in (over_mqtt, bare)]
    publish(
        f"path-{size}",
        rows,
        ratio_of_medians=round(statistics.median(medians[0]) / statistics.median(medians[1]), 3),
        ratio_of_p99=round(rows["over MQTT"]["p99_ms"] / rows["direct"]["p99_ms"], 3),
        p99_over_p50=round(rows["over MQTT"]["p99_ms"] / rows["over MQTT"]["p50_ms"], 2),
        cpu_ratio=round(used["agent"] / used["direct"], 3),
        stages_p50_ms={stage: round(statistics.median(taken), 3) for stage, taken in stages.items()},
        queries=len(texts),
    )
