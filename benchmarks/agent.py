"""A server process with its broker, for measurements: the agent, or whatever else answers its requests."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from agent.aws import AWSIoTMQTTClient
from agent.config import Config, load_config
from agent.errors import BrokerError
from agent.local_cloud.mosquitto import Mosquitto

COMMAND = str(Path(sys.executable).with_name("arxplorer-agent"))


class RunningAgent(NamedTuple):
    process: subprocess.Popen[bytes]
    broker: Mosquitto
    config: Config

    def client(self) -> AWSIoTMQTTClient:
        return AWSIoTMQTTClient(self.config)

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        return cpu_seconds(self.process.pid)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_broker() -> Iterator[Mosquitto]:
    with tempfile.TemporaryDirectory(prefix="arxplorer-bench-") as folder:
        Path(folder).chmod(0o755)  # mosquitto gives up root
        with Mosquitto(Path(folder)) as broker:
            yield broker


def config_for(broker: Mosquitto, data_dir: Path) -> Config:
    return load_config(environment=_environment(broker), data_dir=data_dir)


def _environment(broker: Mosquitto) -> dict[str, str]:
    return {"ARXPLORER__LOCAL_BROKER__PORT": str(broker.port), "ARXPLORER__LOGGING__LEVEL": "warning"}


@contextmanager
def running(command: Sequence[str], broker: Mosquitto, data_dir: Path) -> Iterator[RunningAgent]:
    """A process that answers requests on `broker`; it may still be starting."""
    process = subprocess.Popen(command, env={**os.environ, **_environment(broker)})
    try:
        yield RunningAgent(process, broker, config_for(broker, data_dir))
    finally:
        process.terminate()
        process.wait(10)


def agent_command(data_dir: Path) -> list[str]:
    return [COMMAND, "--data-dir", str(data_dir), "run"]


@contextmanager
def running_agent(data_dir: Path) -> Iterator[RunningAgent]:
    with running_broker() as broker, running(agent_command(data_dir), broker, data_dir) as agent:
        yield agent


async def answered(agent: RunningAgent) -> None:
    """Wait until the agent answers."""
    await (await ready_client(agent)).disconnect()


async def ready_client(agent: RunningAgent) -> AWSIoTMQTTClient:
    """A connected client of an agent that has answered."""
    client = agent.client()
    await client.connect()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            await client.ask("ready", timeout_s=1)
        except BrokerError:
            continue
        return client
    raise BrokerError("the agent did not answer within 30 s")
