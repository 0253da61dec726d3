"""The agent proves that it is alive: to systemd, and to a health check."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest
from conftest import AgentProcess, run_command, wait_until

from agent.device import systemd
from agent.device.heartbeat import HeartbeatFile, seconds_since_beat
from agent.device.liveness import Liveness
from agent.errors import NotReadyError
from agent.local_cloud.mosquitto import Mosquitto

QUESTION = {"query": "how tightly can equal spheres be packed"}


class Manager:
    """What systemd is to a service: a datagram socket, and what came in."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.environment = {"NOTIFY_SOCKET": address}
        self.lines: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while datagram := self._socket.recv(4096):
            self.lines += datagram.decode().split("\n")

    def fed(self) -> int:
        return self.lines.count("WATCHDOG=1")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    listening = Manager(str(tmp_path / "notify"))
    yield listening
    listening.close()


def test_without_systemd_nothing_is_said() -> None:
    assert not systemd.notify("READY=1", environment={})
    assert not systemd.notify("READY=1", environment={"NOTIFY_SOCKET": "/nowhere/at/all"})
    assert systemd.watchdog_s({}) is None


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_line_by_line(tmp_path: Path, abstract: bool) -> None:
    manager = Manager(f"@{tmp_path}" if abstract else str(tmp_path / "notify"))
    assert systemd.notify("READY=1", "STATUS=two\nlines", environment=manager.environment)
    wait_until(lambda: manager.lines == ["READY=1", "STATUS=two lines"])
    manager.close()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_pace_is_systemds_where_it_watches_this_process(environment: dict, expected: float | None) -> None:
    assert systemd.watchdog_s(environment) == expected


# -- what counts as proof ---------------------------------------------------------------------------------------------


class Trial:
    """Liveness at a fast pace, with answers and workers of the test's own."""

    def __init__(self, folder: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.environment["NOTIFY_SOCKET"])
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        self.answers = 0
        self.asked = 0
        self.prove: Callable[[], str] = lambda: "answering"
        self._pool = ThreadPoolExecutor(1)
        self.file = HeartbeatFile(folder, environment={})
        self.liveness = Liveness(lambda: self.answers, self._ask, lambda: self._pool, self.file)
        self.proven: str | None = None

    def _ask(self) -> str:
        self.asked += 1
        return self.prove()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.liveness.run(self.proven))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._pool.shutdown()


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition)


@pytest.fixture
def trial(tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Trial:
    return Trial(tmp_path, manager, monkeypatch)


async def test_an_idle_agent_asks_itself(trial: Trial, manager: Manager, tmp_path: Path) -> None:
    async with trial:
        await until(lambda: manager.fed() > 3)
        assert (manager.lines[0], manager.lines[2]) == ("READY=1", "STATUS=answering")
        assert trial.asked > 3
        assert seconds_since_beat(tmp_path, environment={}) < 5
    await until(lambda: "STOPPING=1" in manager.lines)
    with pytest.raises(NotReadyError, match="no agent runs"):
        seconds_since_beat(tmp_path, environment={})


async def test_what_was_proved_while_starting_is_not_proved_again_at_once(trial: Trial, manager: Manager) -> None:
    said_before: list[str] = []

    def prove() -> str:
        wait_until(lambda: manager.fed() > 0)  # never, if this comes first: `until` below would give up
        said_before.extend(manager.lines)
        return "answering again"

    trial.proven, trial.prove = "degraded: as at the start", prove
    async with trial:
        await until(lambda: "STATUS=answering again" in manager.lines)
    assert (said_before[0], "STATUS=degraded: as at the start" in said_before) == ("READY=1", True)


async def test_a_busy_agent_is_not_asked(trial: Trial, manager: Manager) -> None:
    class Busy(int):
        def __ne__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    trial.answers = Busy(1)
    async with trial:
        await until(lambda: manager.fed() > 3)
    assert trial.asked == 0


async def test_a_worker_that_hangs_is_no_proof_and_is_asked_once(
    trial: Trial, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    def hang() -> str:
        release.wait()
        return "answering"

    trial.prove = hang
    async with trial:
        await until(lambda: caplog.text.count("no question could be answered") > 3)
        assert (manager.fed(), trial.asked) == (0, 1)
        release.set()
        await until(lambda: manager.fed() > 1)


async def test_a_question_that_fails_for_no_reason_the_agent_knows_is_no_proof(
    trial: Trial, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    class PanicError(BaseException):
        """As of a native library."""

    def fail() -> str:
        raise PanicError("at the disco")

    trial.prove = fail
    async with trial:
        await until(lambda: caplog.text.count("at the disco") > 2)
        assert manager.fed() == 0
        trial.prove = lambda: "answering"
        await until(lambda: manager.fed() > 0)


async def test_a_health_file_that_cannot_be_written_does_not_starve_the_watchdog(
    tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Trial(tmp_path / "absent", manager, monkeypatch):
        await until(lambda: manager.fed() > 3)
    assert caplog.text.count("health checks will fail") == 1


# -- the file of the health check -------------------------------------------------------------------------------------


def test_health_goes_by_the_age_of_the_last_proof_whatever_the_clock_says(tmp_path: Path) -> None:
    file = HeartbeatFile(tmp_path, environment={})
    file.beat(good_for_s=60)
    os.utime(file.path, (0, 0))
    assert seconds_since_beat(tmp_path, environment={}) < 5
    file.beat(good_for_s=0)
    with pytest.raises(NotReadyError, match="last seen alive 0 s ago"):
        seconds_since_beat(tmp_path, environment={})


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"at": "x"}'])
def test_a_health_file_that_is_no_such_file_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "alive").write_text(content)
    with pytest.raises(NotReadyError, match="no agent runs"):
        seconds_since_beat(tmp_path, environment={})


def test_a_proof_from_before_the_last_boot_is_none(tmp_path: Path) -> None:
    file = HeartbeatFile(tmp_path, environment={})
    file.beat(good_for_s=60)
    file.path.write_text(json.dumps({**json.loads(file.path.read_text()), "at": time.monotonic() + 100}))
    with pytest.raises(NotReadyError, match="since the last boot"):
        seconds_since_beat(tmp_path, environment={})


def test_the_agent_of_another_data_folder_is_another_agent(tmp_path: Path) -> None:
    environment = {"RUNTIME_DIRECTORY": str(tmp_path)}
    HeartbeatFile(tmp_path / "mine", environment=environment).beat(good_for_s=60)
    assert seconds_since_beat(tmp_path / "mine", environment=environment) < 5
    with pytest.raises(NotReadyError, match="no agent runs"):
        seconds_since_beat(tmp_path / "yours", environment=environment)


# -- the agent itself -------------------------------------------------------------------------------------------------

HANGS = """
import time
from pathlib import Path
from typing import Self
from agent.search.engine import SearchEngine
search = SearchEngine.search
def hanging(self, request):
    while Path("{marker}").exists():
        time.sleep(0.02)
    return search(self, request)
SearchEngine.search = hanging
"""


def test_the_agent_says_ready_feeds_the_watchdog_and_is_healthy_until_it_stops(
    start_agent, sample_data_dir: Path, broker: Mosquitto, manager: Manager
) -> None:
    agent: AgentProcess = start_agent(sample_data_dir, broker.port, WATCHDOG_USEC="400000", **manager.environment)
    wait_until(lambda: manager.fed() > 2)
    assert manager.lines[0] == "READY=1"
    assert "STATUS=answering" in manager.lines
    healthy = run_command("health", "--json", data_dir=sample_data_dir)
    assert (healthy.returncode, json.loads(healthy.stdout)["alive"]) == (0, True)
    assert agent.stop() == 0
    wait_until(lambda: "STOPPING=1" in manager.lines)
    ended = run_command("health", data_dir=sample_data_dir)
    assert (ended.returncode, b"no agent runs" in ended.stderr) == (1, True)


def test_an_agent_without_corpus_and_broker_is_ready_and_fed(start_agent, tmp_path: Path, manager: Manager) -> None:
    start_agent(tmp_path / "empty", 1, wait=False, WATCHDOG_USEC="400000", **manager.environment)
    wait_until(lambda: manager.fed() > 2)
    assert manager.lines[0] == "READY=1"
    assert "STATUS=degraded: the corpus holds no papers" in manager.lines


def test_an_agent_whose_workers_hang_starves_and_says_where_they_hang(
    start_agent, sample_data_dir: Path, broker: Mosquitto, manager: Manager, tmp_path: Path
) -> None:
    marker = tmp_path / "hang"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HANGS.format(marker=marker))
    agent: AgentProcess = start_agent(
        sample_data_dir, broker.port, WATCHDOG_USEC="400000", PYTHONPATH=str(tmp_path / "site"), **manager.environment
    )
    wait_until(lambda: manager.fed() > 2)
    marker.touch()
    wait_until(lambda: "no question could be answered" in agent.log.read_text())
    fed = manager.fed()
    time.sleep(1.0)
    assert manager.fed() == fed
    # A dead connection or a dead process looks alike from outside; the traceback tells where the worker hangs.
    assert agent.stop(signal.SIGABRT) == -signal.SIGABRT
    assert "in hanging" in agent.log.read_text()


def test_a_health_check_is_cheap() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['arxplorer-agent', '--data-dir', '/nowhere', 'health']\n"
        "try: runpy.run_module('agent', run_name='__main__')\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"numpy", "onnxruntime", "awscrt", "usearch", "tantivy", "tokenizers", "sqlite3", "rich"} == set()
