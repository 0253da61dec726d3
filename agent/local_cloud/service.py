"""The running local cloud: broker, shadows, jobs, gateway and control socket, started and stopped in order."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from agent.errors import AgentError
from agent.local_cloud.audit import summary
from agent.local_cloud.control import NAME as CONTROL_SOCKET
from agent.local_cloud.control import is_running, serve_control
from agent.local_cloud.door import HOST
from agent.local_cloud.faults import Faults
from agent.local_cloud.folder import CloudFolder
from agent.local_cloud.gateway import Gateway
from agent.local_cloud.jobs import JobsError
from agent.local_cloud.jobs_service import OPERATIONS as JOB_OPERATIONS
from agent.local_cloud.jobs_service import JobsService, JobsStore
from agent.local_cloud.mosquitto import Mosquitto
from agent.local_cloud.outbox_rows import holds
from agent.local_cloud.shadow_service import OPERATIONS, Address, ShadowService, ShadowStore
from agent.logs import FORMAT
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker
from agent.protocol.limits import IOT_CORE, Limits

log = logging.getLogger(__name__)

PID_FILE: Final = "mosquitto.pid"
LOG_FILE: Final = "local-cloud.log"
CLIENT_ID: Final = "$local-cloud/shadows"
START_TIMEOUT_S: Final = 10.0
BROKER_SETTINGS: Final = f"""\
max_inflight_messages {IOT_CORE.receive_maximum}
max_queued_messages 10000
sys_interval 0
"""


async def run(
    path: Path,
    port: int,
    things: Sequence[str],
    clients: Sequence[str],
    ready: Callable[[], None] = lambda: None,
    limits: Limits = IOT_CORE,
    audited: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called once everything stands. Raises AgentError.

    With `audited`, the data folder of an agent on this machine, its acknowledgements are audited.
    """
    folder = CloudFolder(path)
    if is_running(folder.path):
        raise AgentError(f"a local cloud already runs in {folder.path}", hint="stop it, or use another --dir")
    for name in clients:
        folder.add_thing(name, port, client=True)
    for name in {*things, *folder.things()} - set(clients):
        folder.add_thing(name, port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    broker = Mosquitto(folder.broker, extra=BROKER_SETTINGS)
    _end_leftover(folder.broker)
    await asyncio.to_thread(broker.start)
    (folder.broker / PID_FILE).write_text(str(broker.pid), "ascii")
    try:
        gateway = Gateway(folder, port, broker.port, Faults(), limits, partial(holds, audited) if audited else None)
        await _serve(folder, gateway, broker.port, stop, ready)
    finally:
        await asyncio.to_thread(broker.stop)


def _end_leftover(folder: Path) -> None:
    """End the broker that a killed local cloud has left running in this folder."""
    with suppress(OSError, ValueError):  # no such file, no such process
        pid = int((folder / PID_FILE).read_text("ascii"))
        if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)


async def _serve(
    folder: CloudFolder, gateway: Gateway, broker_port: int, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    connection = Connection(Broker(HOST, broker_port, CLIENT_ID, session_expiry_s=0))
    shadows, jobs = ShadowService(ShadowStore(folder.shadows)), JobsService(JobsStore(folder.jobs))
    keeping_time = asyncio.create_task(jobs.keep_time(connection), name="timeouts of jobs")
    try:
        await shadows.attach(connection)
        await jobs.attach(connection)
        connection.start()
        await connection.wait_connected(START_TIMEOUT_S)
        gateway.open()
        async with await serve_control(folder.path, Commands(folder, gateway, shadows, jobs, connection).carry_out):
            log.info("ready: port %d, things %s", gateway.port, ", ".join(folder.things()) or "none")
            ready()
            await stop.wait()
    finally:
        (folder.path / CONTROL_SOCKET).unlink(missing_ok=True)
        keeping_time.cancel()
        await gateway.close()
        await connection.stop()
        log.info("stopped")


class Commands:
    """What the control socket takes: `{"do": "fault" | "shadow" | "job" | "audit", ..}`."""

    def __init__(
        self, folder: CloudFolder, gateway: Gateway, shadows: ShadowService, jobs: JobsService, connection: Connection
    ) -> None:
        self._folder: Final = folder
        self._gateway: Final = gateway
        self._shadows: Final = shadows
        self._jobs: Final = jobs
        self._connection: Final = connection

    async def carry_out(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["do"] == "fault":
            await self._gateway.put(given["fault"], float(given.get("milliseconds", 0)))
            return {}
        if given["do"] == "audit":
            return summary(self._gateway.findings.values())
        if given["do"] == "shadow" and given["operation"] in OPERATIONS:
            address = Address(given["thing"], given.get("name", ""))
            payload = str(given.get("document", "")).encode()
            answer, outgoing = self._shadows.carry_out(address, given["operation"], payload)
            for message in outgoing:
                await self._connection.send(message)
            return {"answer": answer}
        if given["do"] == "job" and given["operation"] in JOB_OPERATIONS:
            return {"answer": await self._job(given["operation"], given["thing"], given)}
        raise AgentError(f"unknown command {given}")

    async def _job(self, operation: str, thing: str, given: dict[str, Any]) -> dict[str, Any]:
        if thing not in self._folder.things():
            raise AgentError(f"there is no thing {thing} here")
        try:
            answer, outgoing = self._jobs.operate(operation, thing, given)
        except JobsError as error:
            raise AgentError(f"rejected: {error.code} {error.message}") from error
        for message in outgoing:
            await self._connection.send(message)
        return answer


def log_to(folder: Path) -> None:
    """Everything goes to the folder's log file from here on, and nothing to the screen."""
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=folder / LOG_FILE, level=logging.INFO, format=FORMAT)
