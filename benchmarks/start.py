"""Processor seconds from the start of the agent to its first answer, beside what nobody can do without.

That is the interpreter, the imports of the native libraries, and loading the model: one process that does nothing else.
"""

import asyncio
import os
import statistics
import subprocess
import sys
from pathlib import Path

from agent.aws import AWSIoTMQTTClient
from agent.local_cloud.mosquitto import Mosquitto
from agent.paths import find_model
from benchmarks.agent import agent_command, answered, config_for, running, running_broker
from benchmarks.data import corpus
from benchmarks.report import publish

FLOOR = """
import sys, os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import awscrt.mqtt5, numpy, onnxruntime, sqlite3, tantivy, tokenizers, usearch.index
tokenizers.Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_session_config_entry("session.x64quantprecision", "1")  # as the agent does
onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", options, providers=["CPUExecutionProvider"])
used = os.times()
print(used.user + used.system)
"""


def measure(size: str, starts: int) -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed on a device is compiled once
    config = corpus(size)
    model = str(find_model(config.data_dir, config.model.name))
    floor: list[float] = []
    whole: list[float] = []
    with running_broker() as broker:
        _floor(model)
        asyncio.run(_make_session(broker, config.data_dir))
        for _ in range(starts):
            floor.append(_floor(model))
            whole.append(asyncio.run(_to_first_answer(broker, config.data_dir)))
    rows = {
        name: {"median_s": round(statistics.median(taken), 3), "least_s": min(taken), "most_s": max(taken)}
        for name, taken in (("interpreter, libraries, model", floor), ("agent to its first answer", whole))
    }
    ratio = statistics.median(mine / least for mine, least in zip(whole, floor, strict=True))
    publish(f"start-{size}", rows, ratio=round(ratio, 3), starts=starts)


def _floor(model: str) -> float:
    done = subprocess.run([sys.executable, "-c", FLOOR, model], check=True, capture_output=True, text=True)
    return round(float(done.stdout), 2)


async def _make_session(broker: Mosquitto, data_dir: Path) -> None:
    """From now on the broker keeps requests for the agent while it is away."""
    with running(agent_command(data_dir), broker, data_dir) as agent:
        await answered(agent)


async def _to_first_answer(broker: Mosquitto, data_dir: Path) -> float:
    """To a request that waits at the broker when the agent starts."""
    client = AWSIoTMQTTClient(config_for(broker, data_dir))
    await client.connect()
    asked = asyncio.ensure_future(client.ask("How heavy can a neutrino be?"))
    with running(agent_command(data_dir), broker, data_dir) as agent:
        await asked
        used = agent.cpu_seconds()
    await client.disconnect()
    return used
