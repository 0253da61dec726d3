"""The agent ends within 5 s, whatever it is at."""

import json
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from conftest import AgentProcess, wait_until
from local_cloud import LocalCloud

from agent.local_cloud.control import command
from agent.local_cloud.mosquitto import free_port

AT_MOST_S = 5.0


def shadow(cloud: LocalCloud, operation: str, document: str = "") -> dict:
    asked = {"operation": operation, "thing": "device", "name": "config", "document": document}
    return command(cloud.folder, do="shadow", **asked)["answer"]


def test_a_stop_does_not_wait_for_settings_that_the_disk_does_not_take(
    start_agent: Callable[..., AgentProcess], sample_data_dir: Path, cloud: LocalCloud
) -> None:
    agent = start_agent(
        sample_data_dir, free_port(), config=cloud.config("device"), ARXPLORER__LOCAL_BROKER__ENABLED="false"
    )
    wait_until(lambda: shadow(cloud, "get").get("state", {}).get("reported"))
    with closing(sqlite3.connect(sample_data_dir / "agent.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        shadow(cloud, "update", json.dumps({"state": {"desired": {"settings": {"limits": {"max_pending": 7}}}}}))
        wait_until(lambda: agent.log.read_bytes().count(b"connected to") == 2)  # 7 is in effect, but not kept yet
        started = time.monotonic()
        assert agent.stop(signal.SIGTERM, timeout_s=60) == 0
        assert time.monotonic() - started < AT_MOST_S
