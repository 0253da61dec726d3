"""The example runs, against a real broker and agent."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, AgentProcess
from local_cloud import LocalCloud

from agent.local_cloud.mosquitto import Mosquitto

STEPS = [f"{number}." for number in range(1, 8)]


def start(port: int, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "mqtt_usage.py"), *arguments],
        env={**os.environ, "ARXPLORER__LOCAL_BROKER__PORT": str(port), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        text=True,
    )


def steps(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines() if not line.startswith(" ")]


def test_the_example_shows_every_step(agent: AgentProcess, tmp_path: Path) -> None:
    output, errors = start(agent.port, tmp_path).communicate(timeout=60)
    assert errors == ""
    assert steps(output) == [*STEPS, "done"], output
    assert "not yet: publishing on" in output
    assert "adap-org/9502004" in output
    assert "filters.max_results" in output


def test_the_example_shows_every_step_over_the_cloud(device: AgentProcess, cloud: LocalCloud, tmp_path: Path) -> None:
    output, errors = start(device.port, tmp_path, "--config", str(cloud.config("app"))).communicate(timeout=120)
    assert errors == ""
    assert steps(output) == [*STEPS, "done"], output
    assert f"connect to localhost:{cloud.port}" in output


def test_the_example_gets_its_answer_after_a_restart_of_the_broker(
    agent: AgentProcess, broker: Mosquitto, tmp_path: Path
) -> None:
    with start(agent.port, tmp_path, "--restart") as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "restart the broker now" in line:
                broker.stop()
                broker.start()
    output = "".join(lines)
    assert process.returncode == 0, output
    assert steps(output) == [*STEPS, "done"], output
    assert "1603.04246" in lines[-2]


def test_the_example_fails_where_a_step_does(start_agent, tmp_path: Path, broker: Mosquitto) -> None:
    (tmp_path / "data").mkdir()
    start_agent(tmp_path / "data", broker.port)
    failing = start(broker.port, tmp_path)
    output, errors = failing.communicate(timeout=60)
    assert failing.returncode == 1
    assert (steps(output), errors) == (["1.", "2."], "failed: not_ready: the corpus holds no papers yet\n")
