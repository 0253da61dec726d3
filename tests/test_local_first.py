"""Local first: whatever the cloud does, requests on the local broker are answered as if there were none."""

import asyncio
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import WAIT_S, Client, import_sample, wait_until
from local_cloud import ANSWER, QUESTION, QUICK, STATUS, LocalCloud, first, status

from agent.aws import MQTTSearchBridge
from agent.config import Config
from agent.local_cloud.mosquitto import Mosquitto, free_port
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker
from agent.search import SearchAPI

BACKLOG = 250


class Listener:
    """A server on loopback that behaves as badly as it is told to."""

    def __init__(self, behave: Callable[[socket.socket], None] | None) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=0 if behave is None else 16)
        self.port = self._socket.getsockname()[1]
        self._held: list[socket.socket] = []
        self._behave = behave
        if behave:
            threading.Thread(target=self._serve, daemon=True).start()
        else:  # a queue that is full answers no SYN any more, as a black hole would not
            for _ in range(4):
                waiting = socket.socket()
                waiting.settimeout(0)
                waiting.connect_ex(("127.0.0.1", self.port))
                self._held.append(waiting)

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
                self._held.append(accepted)
                self._behave(accepted)
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()
        for held in self._held:
            held.close()


def garbage(accepted: socket.socket) -> None:
    accepted.sendall(os.urandom(4096))


def silence(_: socket.socket) -> None:
    """TLS that never gets anywhere."""


def hang_up(accepted: socket.socket) -> None:
    accepted.close()


@pytest.mark.parametrize(
    ("behave", "endpoint"),
    [
        pytest.param(None, "nowhere.invalid", id="no DNS"),
        pytest.param(None, "closed", id="refused"),
        pytest.param(None, "localhost", id="black hole"),
        pytest.param(garbage, "localhost", id="garbage"),
        pytest.param(silence, "localhost", id="slow TLS"),
        pytest.param(hang_up, "localhost", id="hangs up"),
    ],
)
def test_local_requests_are_answered_whatever_the_cloud_does(
    start_agent, sample_data_dir: Path, tmp_path: Path, broker, client: Client, behave, endpoint: str
) -> None:
    cloud = LocalCloud(tmp_path)
    cloud.thing("device")  # its files alone: no cloud runs
    listener = Listener(behave)
    port = free_port() if endpoint == "closed" else listener.port
    address = f"{endpoint.replace('closed', 'localhost')}:{port}"
    agent = start_agent(
        sample_data_dir, broker.port, config=cloud.config("device"), ARXPLORER__AWS_IOT__ENDPOINT=address
    )
    try:
        for _ in range(5):
            assert first(client.ask(QUESTION)) == ANSWER
        client.subscribe(f"{STATUS}/device")
        said = status(client)
        assert (said["status"], [link["connected"] for link in said["details"]["links"]]) == ("online", [True, False])
    finally:
        assert agent.stop() == 0
        listener.close()


@pytest.mark.parametrize("fault", ["throttle", "freeze", "refuse", "cut", "deaf"])
def test_local_requests_are_answered_under_every_fault_of_the_cloud(
    start_agent, sample_data_dir: Path, cloud: LocalCloud, broker: Mosquitto, client: Client, fault: str
) -> None:
    agent = start_agent(sample_data_dir, broker.port, config=cloud.config("device"), **QUICK)
    wait_until(lambda: f"connected to localhost:{cloud.port}".encode() in agent.log.read_bytes())
    cloud.fault(fault)
    for _ in range(5):
        assert first(client.ask(QUESTION)) == ANSWER
    assert agent.stop() == 0


def test_without_a_local_broker_the_agent_waits_for_it_and_answers_over_the_cloud_meanwhile(
    start_agent, sample_data_dir: Path, cloud: LocalCloud, app: Client, tmp_path: Path
) -> None:
    port = free_port()
    agent = start_agent(sample_data_dir, port, config=cloud.config("device"))
    assert first(app.ask(QUESTION)) == ANSWER
    assert (
        len(re.findall(f"cannot connect to 127.0.0.1:{port}", agent.log.read_text())) == 1
    )  # once, not at each attempt
    with Mosquitto(tmp_path / "late", port=port):
        local = Client(port)
        wait_until(lambda: f"connected to 127.0.0.1:{port}".encode() in agent.log.read_bytes())
        assert first(local.ask(QUESTION)) == ANSWER
        local.close()


def test_a_stop_is_quick_though_the_cloud_is_frozen(
    start_agent, sample_data_dir, cloud, broker, client: Client
) -> None:
    agent = start_agent(sample_data_dir, broker.port, config=cloud.config("device"))
    wait_until(lambda: f"connected to localhost:{cloud.port}".encode() in agent.log.read_bytes())
    cloud.fault("freeze")
    assert first(client.ask(QUESTION)) == ANSWER
    started = time.monotonic()
    assert agent.stop(timeout_s=10) == 0
    assert time.monotonic() - started < 10


async def test_a_long_backlog_on_one_link_keeps_no_request_on_another_waiting(
    config: Config, broker: Mosquitto, tmp_path: Path
) -> None:
    with Mosquitto(tmp_path / "busy") as busy, SearchAPI(config) as api:
        api.open(owner=True, model=False)
        import_sample(api)
        ports = (busy.port, broker.port)
        connections = [Connection(Broker("127.0.0.1", port, "device", receive_maximum=BACKLOG)) for port in ports]
        backlogged, quiet = (MQTTSearchBridge(connection, api) for connection in connections)
        for connection, bridge in zip(connections, (backlogged, quiet), strict=True):
            await bridge.setup()
            connection.start()
            await connection.wait_connected(WAIT_S)
        hurried, patient = Client(busy.port), Client(broker.port)
        go = threading.Event()
        for _ in range(api.workers):
            api.pool.submit(go.wait)
        for number in range(BACKLOG):
            hurried.publish("arxplorer/search/requests", b'{"query": "%d"}' % number, response_topic=hurried.answers)
        await asyncio.to_thread(wait_until, lambda: backlogged.pending == BACKLOG)
        patient.publish("arxplorer/search/requests", b'{"query": "spheres"}', response_topic=patient.answers)
        await asyncio.to_thread(wait_until, lambda: quiet.pending)
        waiting: list[int] = []
        while quiet.pending:
            go.set()
            waiting.append(backlogged.pending)
            await asyncio.sleep(0)
        assert waiting[-1] > BACKLOG // 2
        await asyncio.to_thread(wait_until, lambda: not backlogged.pending)
        assert backlogged.counters["answers"] == BACKLOG
        for connection in connections:
            await connection.stop()
        hurried.close()
        patient.close()
