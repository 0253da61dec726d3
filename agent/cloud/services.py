"""What AWS IoT Core does for a device beside carrying messages, on one link: its Device Shadow and its jobs."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Final

from agent.cloud.jobs import Jobs, Operation
from agent.cloud.restarting import restart_agent
from agent.cloud.shadow import Apply, Facts, ShadowSync, Targets
from agent.mqtt.connection import Connection


class CloudServices:
    """Of one endpoint, that is one region."""

    def __init__(
        self,
        connection: Connection,
        thing_name: str,
        *,
        apply: Apply,
        targets: Targets,
        facts: Facts,
        settling: Executor,
        operations: Mapping[str, Operation],
        job_pool: Executor,
        restart: Callable[[], None],
    ) -> None:
        """The shadow's callbacks run in `settling`; jobs in `job_pool`, which all regions share."""
        self._shadow: Final = ShadowSync(
            connection, thing_name, apply=apply, targets=targets, facts=facts, pool=settling
        )
        known = {**operations, "agent.restart": restart_agent}
        self._jobs: Final = Jobs(connection, thing_name, known, job_pool, restart=restart)

    def changed(self) -> None:
        """There is something new to report, from any thread."""
        self._shadow.changed()

    def start(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Follow both until cancelled."""
        return [
            tasks.create_task(self._shadow.run(), name="device shadow"),
            tasks.create_task(self._jobs.run(), name="jobs"),
        ]
