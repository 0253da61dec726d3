"""An agent process with its broker, for measurements."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
        """User and system time of the agent so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_agent(data_dir: Path) -> Iterator[RunningAgent]:
    with tempfile.TemporaryDirectory(prefix="arxplorer-bench-") as folder:
        Path(folder).chmod(0o755)  # mosquitto gives up root
        with Mosquitto(Path(folder)) as broker:
            environment = {
                **os.environ,
                "ARXPLORER__LOCAL_BROKER__PORT": str(broker.port),
                "ARXPLORER__LOGGING__LEVEL": "warning",
            }
            process = subprocess.Popen([COMMAND, "--data-dir", str(data_dir), "run"], env=environment)
            try:
                yield RunningAgent(process, broker, load_config(environment=environment, data_dir=data_dir))
            finally:
                process.terminate()
                process.wait(10)


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
