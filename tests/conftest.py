"""What tests share: real brokers on free ports, real corpora, a real agent process, an independent client."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
import pytest
from hypothesis import HealthCheck, settings
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.config import Config, load_config
from agent.corpus.importer import import_papers, read_vectors
from agent.corpus.sample import SAMPLE_PAPERS, SAMPLE_VECTORS
from agent.local_cloud.mosquitto import Mosquitto, free_port
from agent.search import SearchAPI
from agent.search.api import load_embedder
from agent.search.embedder import Embedder

if TYPE_CHECKING:
    from local_cloud import LocalCloud

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
COMMAND = str(Path(sys.executable).with_name("arxplorer-agent"))
WAIT_S = 20.0

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # some tests use onnxruntime themselves

# Timing on busy machines says nothing about correctness.
settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def wait_until(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Poll until the condition gives something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {condition}")


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the shared data folder beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return load_embedder(load_config(environment={}))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(environment={}, data_dir=tmp_path / "data")


def import_sample(api: SearchAPI) -> None:
    vectors = read_vectors(SAMPLE_VECTORS, api.dimensions)
    import_papers(str(SAMPLE_PAPERS), api.engine.index, api.config.model.name, vectors=vectors)


@pytest.fixture(scope="session")
def sample_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SearchAPI]:
    """The sample corpus, opened; not to be changed."""
    config = load_config(environment={}, data_dir=tmp_path_factory.mktemp("sample"))
    with SearchAPI(config) as api:
        api.open(owner=True)
        import_sample(api)
        yield api


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    tmp_path.chmod(0o755)  # mosquitto gives up root
    with Mosquitto(tmp_path / "broker", verbose=True) as running:
        yield running


def run_command(
    *arguments: str, data_dir: Path, stdin: bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [COMMAND, "--data-dir", str(data_dir), *arguments],
        input=stdin,
        capture_output=True,
        timeout=300,
        check=False,
        cwd=data_dir.parent,
        env={**os.environ, **environment},
    )


class Client:
    """An MQTT 5 client of another code base (paho), which collects what it receives."""

    def __init__(
        self,
        port: int,
        *,
        version: int = paho.MQTTv5,
        host: str = "127.0.0.1",
        name: str | None = None,
        tls: dict[str, str] | None = None,
    ) -> None:
        """`tls` are the files of a mutual TLS connection: ca, cert and key."""
        self.name = name or f"test-{uuid.uuid4().hex[:8]}"
        self.received: Queue[paho.MQTTMessage] = Queue()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=self.name, protocol=version)
        self._client.on_message = lambda *arguments: self.received.put(arguments[2])
        self._subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        if tls:
            self._client.tls_set(tls["ca"], tls["cert"], tls["key"])
        self._client.connect(host, port)
        self._client.loop_start()
        self.answers = f"arxplorer/responses/{self.name}"
        self.subscribe(self.answers)

    def subscribe(self, topic: str) -> None:
        self._subscribed.clear()
        self._client.subscribe(topic, qos=1)
        assert self._subscribed.wait(WAIT_S)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        retain: bool = False,
        expiry_s: int | None = None,
    ) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        if response_topic:
            properties.ResponseTopic = response_topic
        if correlation:
            properties.CorrelationData = correlation
        given = properties if response_topic or correlation or expiry_s is not None else None
        self._client.publish(topic, payload, qos=1, retain=retain, properties=given).wait_for_publish(WAIT_S)

    def next(self, timeout_s: float = WAIT_S) -> paho.MQTTMessage:
        try:
            return self.received.get(timeout=timeout_s)
        except Empty:
            raise AssertionError(f"nothing received within {timeout_s} s") from None

    def ask(self, request: dict[str, Any] | bytes, topic: str = "arxplorer/search/requests") -> dict[str, Any]:
        """Publish a request and return the decoded answer, matched by correlation data."""
        payload = request if isinstance(request, bytes) else json.dumps(request).encode()
        correlation = uuid.uuid4().bytes
        self.publish(topic, payload, response_topic=self.answers, correlation=correlation)
        while True:
            message = self.next()
            if getattr(message.properties, "CorrelationData", None) == correlation:
                answer: dict[str, Any] = json.loads(message.payload)
                return answer

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def client(broker: Mosquitto) -> Iterator[Client]:
    connected = Client(broker.port)
    yield connected
    connected.close()


class AgentProcess:
    """`arxplorer-agent run` with a corpus and a broker, as systemd would start it."""

    program = (COMMAND,)

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        config: Path | None = None,
        arguments: list[str] | None = None,
        **environment: str,
    ) -> None:
        self.data_dir, self.port = data_dir, port
        self.arguments = arguments or []
        self.options = ["--config", str(config)] if config else []
        self.environment = {
            **os.environ,
            "ARXPLORER__LOCAL_BROKER__PORT": str(port),
            "XDG_RUNTIME_DIR": str(data_dir.parent),  # an agent that is killed leaves marks, which go with the test
            **({} if config else {"ARXPLORER__AWS_IOT__THING_NAME": "test-agent"}),
            **environment,
        }
        self.log = data_dir.parent / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> "AgentProcess":
        with self.log.open("ab") as log:
            command = [*self.program, *self.options, "--data-dir", str(self.data_dir), "run", *self.arguments]
            self.process = subprocess.Popen(command, env=self.environment, stderr=log, cwd=self.data_dir.parent)
        return self

    def start(self) -> "AgentProcess":
        """Spawn, and wait for the link to the broker."""
        offset = self.log.stat().st_size if self.log.exists() else 0
        self.spawn()
        wait_until(lambda: b"connected to" in self.log.read_bytes()[offset:] or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = WAIT_S) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


@pytest.fixture
def sample_data_dir(tmp_path: Path) -> Path:
    """A data folder with the sample corpus, of the test's own."""
    data_dir = tmp_path / "data"
    with SearchAPI(load_config(environment={}, data_dir=data_dir)) as api:
        api.open(owner=True, model=False)
        import_sample(api)
    return data_dir


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that can be filled, where root may mount one."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


@pytest.fixture
def start_agent() -> Iterator[Callable[..., AgentProcess]]:
    """Start agents that end with the test, however it ends."""
    started: list[AgentProcess] = []

    def start(data_dir: Path, port: int, *, wait: bool = True, **environment: Any) -> AgentProcess:
        started.append(AgentProcess(data_dir, port, **environment))
        return started[-1].start() if wait else started[-1].spawn()

    yield start
    for agent in started:
        if agent.process and agent.process.poll() is None:
            agent.process.kill()
            agent.process.wait()


@pytest.fixture
def agent(start_agent: Callable[..., AgentProcess], sample_data_dir: Path, broker: Mosquitto) -> AgentProcess:
    return start_agent(sample_data_dir, broker.port)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator["LocalCloud"]:
    """A local cloud with a device, which has the agent's own policy, and an application."""
    from local_cloud import LocalCloud  # which builds on this module

    tmp_path.chmod(0o755)  # mosquitto gives up root
    running = LocalCloud(tmp_path).start("--thing", "device", "--client", "app")
    yield running
    running.kill()


@pytest.fixture
def app(cloud: "LocalCloud") -> Iterator[Client]:
    client = cloud.client()
    client.subscribe("arxplorer/status")
    yield client
    client.close()


@pytest.fixture
def device(start_agent: Callable[..., AgentProcess], sample_data_dir: Path, cloud: "LocalCloud") -> AgentProcess:
    """The agent with the configuration that the local cloud made for it, and nothing else."""
    from local_cloud import CLOUD_ONLY, QUICK

    return start_agent(sample_data_dir, free_port(), config=cloud.config("device"), **CLOUD_ONLY, **QUICK)
