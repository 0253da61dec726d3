"""Everything that the lab runs: brokers, a tap, the agent with its disk and clock; and the faults that are put on them."""

import contextlib
import itertools
import math
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from conftest import AgentProcess, import_sample, wait_until
from local_cloud import QUICK, LocalCloud

from agent.config import load_config
from agent.local_cloud.control import command
from agent.local_cloud.mosquitto import Mosquitto, free_port
from agent.search import SearchAPI
from faults.asker import Asker
from faults.clock import Clock
from faults.disk import Disk
from faults.questions import Question, questions
from faults.schedule import Fault
from faults.tap import Tap

THING: Final = "device"
APP: Final = "app"
REQUESTS: Final = ("arxplorer/search/requests", f"arxplorer/search/requests/{THING}")
SETTLE_S: Final = 2.0
"""Between an agent that is ready and its next kill."""
READY_S: Final = 60.0
RESTART_S: Final = 0.5
"""An agent that ended by itself is started again after so long, as systemd does."""
LAST_WORDS: Final = 600
RAM: Final = Path("/dev/shm")
LINKS: Final = ("local", "cloud")


class World:
    """Made in `folder`. Use as a context manager: nothing of it is left running or mounted."""

    def __init__(self, folder: Path, *, spare_disk: bool = True) -> None:
        """With `spare_disk` the data folder is on a disk that can be full; else it is an ordinary folder."""
        folder.chmod(0o755)  # mosquitto gives up root
        self.folder: Final = folder
        self.restarts = 0
        """Of the agent, for whatever reason."""
        self.crashes: Final[list[str]] = []
        """Ends of the agent that nobody had asked for: exit code and last words."""
        self.done: Final[list[str]] = []
        """Kinds of the faults that were put on it."""
        self._with_disk: Final = spare_disk
        self._closing: Final = contextlib.ExitStack()
        self._spawning: Final = threading.Lock()
        self._ending: Final = threading.Event()
        self._names: Final = itertools.count(1)
        self.questions: list[Question]
        self.agent: AgentProcess
        self.broker: Mosquitto
        self.cloud: LocalCloud
        self.tap: Tap
        self.disk: Disk | None = None
        self.clock: Final = Clock(folder / "clock")

    # -- start and end ------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._closing.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _start(self) -> None:
        source = self.folder / "corpus"
        with SearchAPI(load_config(environment={}, data_dir=source)) as api:
            api.open(owner=True)
            import_sample(api)
            self.questions = questions(api)
        if self._with_disk:
            self.disk = Disk(self.folder / "disk", source)
            self._closing.callback(self.disk.close)
        self.data_dir = self.disk.data_dir if self.disk else source
        self.broker = Mosquitto(self.folder / "broker", extra="max_queued_messages 10000\nsys_interval 0")
        self.broker.start()
        self._closing.callback(self.broker.stop)
        self.tap = Tap(free_port(), self.broker.port, THING, self.data_dir).start()
        self._closing.callback(self.tap.stop)
        self.cloud = LocalCloud(self.folder)
        self.cloud.start("--thing", THING, "--client", APP, "--audit", str(self.data_dir))
        self._closing.callback(self.cloud.kill)
        self._start_agent()

    def _start_agent(self) -> None:
        runtime = Path(tempfile.mkdtemp(dir=RAM if RAM.is_dir() else self.folder))  # as systemd's: in memory
        self._closing.callback(shutil.rmtree, runtime, ignore_errors=True)
        environment = {**QUICK, **self.clock.environment(), "RUNTIME_DIRECTORY": str(runtime)}
        config = self.cloud.config(THING)
        self.agent = AgentProcess(self.data_dir, self.tap.port, config=config, **environment)
        self.agent.log = self.folder / "agent.log"  # not on the disk that is filled
        self.agent.spawn()
        self.await_ready(0)
        watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        watcher.start()
        self._closing.callback(self._stop_agent, watcher)

    def _stop_agent(self, watcher: threading.Thread) -> None:
        self._ending.set()
        watcher.join()
        if self.agent.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.agent.stop()
        if self.agent.process.poll() is None:
            self.agent.stop(signal.SIGKILL)

    def _watch(self) -> None:
        while not self._ending.wait(RESTART_S):
            with self._spawning:
                code = self.agent.process.poll()
                if code is not None:
                    self.crashes.append(f"exit {code}: {self.agent.log.read_text('utf-8', 'replace')[-LAST_WORDS:]}")
                    self.restarts += 1
                    self.agent.spawn()

    # -- parts ----------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self.agent.process.pid

    def await_ready(self, offset: int) -> None:
        """Wait until the agent, whose log began at `offset`, is connected to both brokers."""
        lines = [
            f"connected to {host}".encode() for host in (f"127.0.0.1:{self.tap.port}", f"localhost:{self.cloud.port}")
        ]

        def is_ready() -> bool:
            log = self.agent.log.read_bytes()[offset:] if self.agent.log.exists() else b""
            return all(line in log for line in lines)

        wait_until(is_ready, READY_S)

    def local_asker(self) -> Asker:
        """At the local broker itself, which only its restarts touch."""
        return Asker(f"local-{next(self._names)}", self.broker.port, REQUESTS).start()

    def cloud_asker(self) -> Asker:
        """Through the gateway: what befalls the agent's link befalls this one as well."""
        tls = self.cloud.files(APP)
        return Asker(APP, self.cloud.port, REQUESTS, host="localhost", tls=tls).start()

    def inside_asker(self) -> Asker:
        """At the cloud's broker, behind the gateway, where clients are while the device is offline; it asks once."""
        name = f"inside-{next(self._names)}"
        return Asker(name, self.cloud.broker_port, REQUESTS, resend_s=math.inf, window=sys.maxsize).start()

    def audit(self) -> dict[str, dict[str, Any]]:
        return {"local": self.tap.findings(), "cloud": command(self.cloud.folder, do="audit")}

    def connects(self) -> dict[str, int]:
        """How often the agent has connected to each broker."""
        log = self.agent.log.read_text("utf-8", "replace")
        return {
            "local": log.count(f"connected to 127.0.0.1:{self.tap.port}"),
            "cloud": log.count(f"connected to localhost:{self.cloud.port}"),
        }

    def spared(self) -> frozenset[str]:
        """Places of faults that cannot be had here."""
        return frozenset() if self.clock.available else frozenset({"clock"})

    # -- faults ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def fault(self, fault: Fault) -> Iterator[None]:
        """The fault is in force within; after it everything is as before, and the agent ready."""
        self.done.append(fault.kind)
        match fault.where:
            case "agent":
                offset = self._kill_agent()
                yield
                self.await_ready(offset)
                time.sleep(SETTLE_S)
            case "broker":
                self._end_broker(fault.name)
                yield
                self.broker.start()
            case "disk":
                assert self.disk is not None
                pid = self.pid
                self.disk.fill(pid)
                self._on_links(LINKS, "cut")  # so that answers have to be stored
                try:
                    yield
                finally:
                    self.disk.free(pid)
            case "clock":
                self.clock.jump(fault.amount)
                yield
                self.clock.jump(0.0)
            case _:
                places = LINKS if fault.where == "both" else (fault.where,)
                self._on_links(places, fault.name, fault.amount)
                yield
                self._on_links(places, "clear")
                if fault.name == "drop-puback":
                    self._on_links(places, "cut")  # TCP loses nothing: PUBACKs are lost with their link only

    def _on_links(self, places: tuple[str, ...], name: str, amount: float = 0.0) -> None:
        for place in places:
            (self.tap if place == "local" else self.cloud).fault(name, amount)

    def _kill_agent(self) -> int:
        """Kill it and start it again; where its log begins."""
        with self._spawning:
            self.agent.stop(signal.SIGKILL)
            offset = self.agent.log.stat().st_size
            self.restarts += 1
            self.agent.spawn()
        return offset

    def _end_broker(self, name: str) -> None:
        if name == "kill":
            self.broker.kill()
        else:
            self.broker.stop()
