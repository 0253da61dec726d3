"""A local cloud to test against, and a client that says exactly what a test wants, over mutual TLS."""

import asyncio
import json
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mqtt5
from conftest import COMMAND, WAIT_S, Client, run_command, wait_until

from agent.config import Config, load_config
from agent.local_cloud.control import command
from agent.local_cloud.folder import CloudFolder
from agent.local_cloud.mosquitto import free_port

EVERYTHING = {
    "Version": "2012-10-17",
    "Statement": {"Effect": "Allow", "Action": "iot:*", "Resource": "*"},
}
QOS1 = mqtt5.QoS.AT_LEAST_ONCE

QUESTION = {"query": "how tightly can equal spheres be packed"}
ANSWER = "1603.04246"
STATUS = "arxplorer/status"
CLOUD_ONLY = {"ARXPLORER__LOCAL_BROKER__ENABLED": "false"}
QUICK = {"ARXPLORER__AWS_IOT__MAX_BACKOFF_S": "1"}


class LocalCloud:
    """`arxplorer-agent local-cloud` in a folder, as a person starts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cloud"
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None
        self._opened: list[socket.socket] = []

    def start(self, *options: str) -> "LocalCloud":
        arguments = [COMMAND, "local-cloud", "--dir", str(self.folder), "--port", str(self.port), *options]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line == "ready\n", self.process.communicate()
        return self

    def stop(self) -> tuple[int, str]:
        """End it in order; its exit code, and what it had printed after `ready`."""
        self.process.send_signal(signal.SIGTERM)
        output = "".join(self.process.communicate(timeout=WAIT_S))
        return self.process.returncode, output

    def kill(self) -> None:
        self.close_clients()
        if self.process and self.process.poll() is None:
            self.stop()

    def run(self, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return run_command("local-cloud", *arguments, "--dir", str(self.folder), data_dir=self.folder, stdin=stdin)

    def fault(self, name: str, milliseconds: float = 0) -> None:
        command(self.folder, do="fault", fault=name, milliseconds=milliseconds)

    def thing(self, name: str, policy: dict[str, Any] | None = EVERYTHING) -> str:
        """A thing that did not exist when the cloud started; None leaves it the agent's own policy."""
        CloudFolder(self.folder).add_thing(name, self.port)
        if policy:
            (self.folder / "policies" / f"{name}.json").write_text(json.dumps(policy))
        return name

    def config(self, thing: str) -> Path:
        return self.folder / "things" / thing / "config.yaml"

    def client(self, thing: str = "app") -> Client:
        """An application of another code base, which asks over the cloud link."""
        return Client(self.port, host="localhost", name=thing, tls=self.files(thing))

    def insider(self) -> Client:
        """An application behind the gateway, at the broker itself: no fault touches it, and no policy binds it."""
        return Client(self.broker_port)

    @property
    def broker_port(self) -> int:
        """Of the broker behind the gateway."""
        config = (self.folder / "broker" / "mosquitto.conf").read_text()
        return int(re.search(r"listener (\d+)", config)[1])

    @property
    def log(self) -> str:
        return (self.folder / "local-cloud.log").read_text("utf-8", "replace")

    def files(self, thing: str) -> dict[str, str]:
        folder = self.folder / "things" / thing
        return {
            "ca": str(self.folder / "ca.pem"),
            "cert": str(folder / "certificate.pem"),
            "key": str(folder / "private.key"),
        }

    def tls(self, thing: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        if thing:
            context.load_cert_chain(self.files(thing)["cert"], self.files(thing)["key"])
        return context

    def secure(self, context: ssl.SSLContext, server_name: str | None = "localhost") -> ssl.SSLSocket:
        context.check_hostname = server_name is not None
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        try:
            secured = context.wrap_socket(plain, server_hostname=server_name)
        finally:
            plain.close()
        self._opened.append(secured)
        return secured

    def close_clients(self) -> None:
        while self._opened:
            self._opened.pop().close()

    def connect(self, thing: str, client_id: str | None = None, **options: Any) -> "RawClient":
        """Connect as a thing; every field of CONNECT may be given."""
        client = RawClient(self.secure(self.tls(thing)))
        client.send(mqtt5.ConnectPacket(thing if client_id is None else client_id, **{"keep_alive": 60} | options))
        client.connack = client.receive(mqtt5.ConnAckPacket)
        return client

    def connect_at_once(self, thing: str, times: int) -> list["RawClient"]:
        """Connect as often with the same client id, one right after the other: TLS is done with before."""
        clients = [RawClient(self.secure(self.tls(thing))) for _ in range(times)]
        for client in clients:
            client.send(mqtt5.ConnectPacket(thing, keep_alive=60))
            client.connack = client.receive(mqtt5.ConnAckPacket)
        return clients


class RawClient:
    """Sends packets one by one, also such as no library would, and reads what comes back."""

    connack: mqtt5.ConnAckPacket

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self.socket = connection
        self._rest = b""
        self._number = 0

    def send(self, *packets: mqtt5.Packet | bytes) -> None:
        self.socket.sendall(b"".join(one if isinstance(one, bytes) else one.write() for one in packets))

    def next(self) -> mqtt5.Packet | None:
        """The next packet, whatever it is; None once the connection has ended."""
        while True:
            try:
                packet, length = mqtt5.read(memoryview(self._rest))
            except IndexError:
                try:
                    chunk = self.socket.recv(2**16)
                except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
                    return None
                if not chunk:
                    return None
                self._rest += chunk
            else:
                self._rest = self._rest[length:]
                return packet

    def receive(self, kind: type[Any]) -> Any:
        packet = self.next()
        assert isinstance(packet, kind), packet
        return packet

    def ended_with(self) -> int | None:
        """The code of the DISCONNECT that ends the connection; None if it ended without one."""
        last = None
        while (packet := self.next()) is not None:
            last = packet
        return last.reason_code if isinstance(last, mqtt5.DisconnectPacket) else None

    def subscribe(self, *filters: str) -> list[int]:
        self._number += 1
        wanted = [mqtt5.TopicFilter(one, max_qos=QOS1) for one in filters]
        self.send(mqtt5.SubscribePacket(self._number, wanted))
        return list(self.receive(mqtt5.SubAckPacket).reason_codes)

    def publish(self, topic: str, payload: bytes = b"x", **options: Any) -> None:
        self.send(mqtt5.PublishPacket(topic, payload, **options))

    def quiet(self) -> list[mqtt5.Packet]:
        """What had come before the answer to a PINGREQ sent now."""
        self.send(mqtt5.PingReqPacket())
        found = []
        while not isinstance(packet := self.next(), mqtt5.PingRespPacket):
            assert packet is not None
            found.append(packet)
        return found

    def close(self) -> None:
        self.socket.close()


def took(action: Callable[[], Any]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


class Shadow:
    """What an operator does with a thing's shadow, beside the agent."""

    def __init__(self, cloud: LocalCloud, thing: str) -> None:
        self.cloud, self.thing = cloud, thing

    def _ask(self, operation: str, document: Any = "") -> dict[str, Any]:
        text = document if isinstance(document, str) else json.dumps(document)
        asked = {"operation": operation, "thing": self.thing, "name": "config", "document": text}
        answer: dict[str, Any] = command(self.cloud.folder, do="shadow", **asked)["answer"]
        return answer

    def get(self) -> dict[str, Any]:
        return self._ask("get")

    def wish(self, **desired: Any) -> int:
        """Returns the version that the document has then."""
        version: int = self._ask("update", {"state": {"desired": desired}})["version"]
        return version

    def update(self, **state: Any) -> dict[str, Any]:
        return self._ask("update", {"state": state})

    def delete(self) -> None:
        assert "code" not in self._ask("delete")

    @property
    def reported(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get().get("state", {}).get("reported", {})
        return found


class Desk:
    """What an operator does with a thing's jobs, beside the agent."""

    def __init__(self, cloud: LocalCloud, thing: str) -> None:
        self.cloud, self.thing = cloud, thing

    def _ask(self, operation: str, job_id: str = "", **given: Any) -> dict[str, Any]:
        asked = {"operation": operation, "thing": self.thing, "id": job_id, **given}
        answer: dict[str, Any] = command(self.cloud.folder, do="job", **asked)["answer"]
        return answer

    def create(self, document: Any, job_id: str, timeout_minutes: float | None = None) -> str:
        self._ask("create", job_id, document=document, timeout_minutes=timeout_minutes)
        return job_id

    def get(self, job_id: str) -> dict[str, Any]:
        return self._ask("get", job_id)

    def cancel(self, job_id: str, *, force: bool = False) -> None:
        self._ask("cancel", job_id, force=force)

    def delete(self, job_id: str, *, force: bool = False) -> None:
        self._ask("delete", job_id, force=force)

    def until(self, job_id: str, status: str, **details: str) -> dict[str, Any]:
        """Wait until the job has this status and these details among others, and return it."""

        def found() -> dict[str, Any] | None:
            job = self.get(job_id)
            told = job.get("statusDetails", {})
            return job if job["status"] == status and details.items() <= told.items() else None

        try:
            return wait_until(found)
        except AssertionError:
            raise AssertionError(f"wanted {status} {details}, got {self.get(job_id)}") from None


def in_process(cloud: LocalCloud, *more: str) -> Config:
    """The device's configuration, for parts of the agent in the test's own process; `more` are further endpoints."""
    environment = QUICK | {"ARXPLORER__AWS_IOT__ENDPOINTS": json.dumps(more)}
    return load_config(cloud.config("device"), environment=environment)


async def until(condition: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(wait_until, condition)


def first(answer: dict[str, Any]) -> str:
    return answer["results"][0]["arxiv_id"]


def status(app: Client, wanted: Callable[[dict[str, Any]], Any] = bool, *, timeout_s: float = WAIT_S) -> dict[str, Any]:
    """The next status message that says what is wanted; so long after the one before at most."""
    while True:
        message = app.next(timeout_s)
        if message.topic.startswith(STATUS):
            document = json.loads(message.payload)
            if wanted(document):
                return document
