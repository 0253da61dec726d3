"""The image and compose.yaml: what can be said of them without building. scripts/test-container builds and runs."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, wait_until
from test_systemd import broker_settings, listens

from agent import __version__
from agent.config import load_config
from agent.local_cloud.mosquitto import free_port
from agent.paths import SYSTEM_CONFIG, SYSTEM_DATA_DIR

DOCKERFILE = (ROOT / "Dockerfile.arm64").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
AGENT = COMPOSE["services"]["agent"]
FINAL = DOCKERFILE.rpartition("\nFROM ")[2]


def image_environment() -> dict[str, str]:
    statement = re.search(r"^ENV ((?:.*\\\n)*.*)$", FINAL, re.MULTILINE)
    assert statement
    return dict(pair.split("=", 1) for pair in statement[1].replace("\\\n", " ").split())


def test_the_last_stage_runs_nothing_so_that_no_emulation_is_needed_to_build() -> None:
    assert not re.search(r"^RUN ", FINAL, re.MULTILINE)
    assert "FROM --platform=$BUILDPLATFORM" in DOCKERFILE


def test_the_label_gives_the_agents_version() -> None:
    assert re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE, re.MULTILINE) == [__version__]


def test_image_and_compose_set_what_the_agent_knows() -> None:
    environment = {**image_environment(), **AGENT["environment"]}
    config = load_config(environment=environment | {"ARXPLORER__AWS_IOT__THING_NAME": "edge"})
    assert (config.data_dir, config.local_broker.host) == (SYSTEM_DATA_DIR, "mosquitto")
    assert config.local_broker.host in COMPOSE["services"]
    assert f"VOLUME {SYSTEM_DATA_DIR}" in FINAL
    assert str(SYSTEM_CONFIG) in DOCKERFILE


@pytest.mark.parametrize("name", ["agent", "mosquitto"])
def test_services_are_hardened_and_bounded(name: str) -> None:
    service = COMPOSE["services"][name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit", "logging", "restart"} <= set(service)


def test_the_broker_is_reached_from_this_host_only() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_brokers_of_device_and_container_have_the_same_limits() -> None:
    own = {"listener", "persistence", "persistence_location", "log_dest"}
    device, container = (
        [line for line in broker_settings(name) if line[0] not in own]
        for name in ("arxplorer.conf", "arxplorer-container.conf")
    )
    assert container == device


def test_the_brokers_file_is_a_whole_configuration(tmp_path: Path) -> None:
    port = free_port()
    text = (ROOT / "systemd" / "mosquitto" / "arxplorer-container.conf").read_text("utf-8")
    replaced = text.replace("listener 1883\n", f"listener {port} 127.0.0.1\n").replace(
        "/mosquitto/data/", f"{tmp_path}/"
    )
    assert replaced.count(str(tmp_path)) == replaced.count(str(port)) == 1
    (tmp_path / "mosquitto.conf").write_text(f"user root\n{replaced}", "utf-8")
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    with subprocess.Popen([program, "-c", str(tmp_path / "mosquitto.conf")], stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: process.poll() is not None or listens(port))
            assert process.poll() is None
        finally:
            process.terminate()
        assert b"Error" not in process.stderr.read()
    assert (tmp_path / "mosquitto.db").exists()


def test_neither_keys_nor_environments_of_this_machine_come_into_a_build() -> None:
    # `*` first, and then what is let in by name: what is not named stays out.
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert not let_in & {"certs", ".git", ".venv", "dist", "data"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert all(
        any(Path(name).match(pattern) or name.startswith(f"{pattern}/") for name in tracked) for pattern in let_in
    )
