"""A device's part of AWS IoT Jobs in the test's own process, and an operation that goes as far as a test lets it."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from local_cloud import Desk, LocalCloud, until

from agent.cloud.jobs import Job, Jobs
from agent.cloud.restarting import restart_agent
from agent.errors import AgentError, JobDocumentError
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker, Tls

COUNT = {"operation": "test.count", "to": 3}


class Counting:
    """An operation that counts, a step each time it may, from where it stood; it ends soon when it is told to."""

    def __init__(self) -> None:
        self.may = threading.Semaphore(0)
        self.begun: list[str] = []
        self.counted: list[tuple[str, int]] = []
        self.told_to_end = 0

    @property
    def numbers(self) -> list[int]:
        return [number for _, number in self.counted]

    def steps(self, number: int) -> None:
        self.may.release(number)

    def __call__(self, job: Job) -> Mapping[str, Any]:
        last = job.document.get("to", 3)
        if not isinstance(last, int):
            raise JobDocumentError("must be a whole number", field="to")
        self.begun.append(job.id)
        for number in range(int(job.details.get("done", 0)), last):
            while not self.may.acquire(timeout=0.01):
                if job.cancelled():
                    self.told_to_end += 1
                    raise AgentError("told to end")
            self.counted.append((job.id, number))
            job.report({"step": "count", "done": number + 1, "of": last})
        return {"counted": last}


class Device:
    """A connection and its jobs, as the service makes them; `restart` makes all of them anew."""

    def __init__(self, cloud: LocalCloud, thing: str) -> None:
        self.cloud, self.thing = cloud, thing
        self.desk = Desk(cloud, thing)
        self.count = Counting()
        self.operations: dict[str, Callable[[Job], Mapping[str, Any]]] = {
            "test.count": self._count,
            "agent.restart": restart_agent,
        }
        self.restarts = 0
        files = cloud.files(thing)
        tls = Tls(files["ca"], files["cert"], files["key"])
        self._broker = Broker("localhost", cloud.port, thing, tls=tls, reconnect_ms=(100, 1_000))

    def _count(self, job: Job) -> Mapping[str, Any]:
        return self.count(job)

    def _restart(self) -> None:
        self.restarts += 1

    async def start(self) -> "Device":
        self.connection = Connection(self._broker)
        self.pool = ThreadPoolExecutor(1)
        self.jobs = Jobs(self.connection, self.thing, self.operations, self.pool, restart=self._restart)
        self.connection.start()
        self._task = asyncio.create_task(self.jobs.run())
        return self

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.connection.stop()
        await asyncio.to_thread(self.pool.shutdown)  # an operation that does not end would be seen here

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def has_begun(self, job_id: str) -> None:
        """Here, too, and not only as the service has it."""
        await until(lambda: job_id in self.count.begun)

    async def until(self, job_id: str, status: str, **details: str) -> dict[str, Any]:
        return await asyncio.to_thread(self.desk.until, job_id, status, **details)
