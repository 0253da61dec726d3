"""Jobs of AWS IoT carried out, one after the other: an operation in a thread, its progress and its end reported.

After each connect, and whenever another job is next, the service is asked for it. One that is in progress comes first,
with the details that were reported last: there it goes on, so an operation is to be safe to begin again. While the link
is down the operation works on. A job that was cancelled, deleted or timed out meanwhile is let go: the operation is
told, and nothing more is said of it.
"""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Final, NamedTuple

from agent.cloud.jobs_client import (
    FAILED,
    GONE,
    IN_PROGRESS,
    INVALID_REQUEST,
    REJECTED,
    SUCCEEDED,
    VERSION_MISMATCH,
    Execution,
    JobRefusedError,
    JobsClient,
)
from agent.errors import AgentError, JobDocumentError
from agent.mqtt.connection import Connection
from agent.protocol.job_document import Details, fitting, operation_of

log = logging.getLogger(__name__)

REPORT_EVERY_S: Final = 5.0
"""Between two reports of progress: a message each, and each is charged for."""
STEP_TIMEOUT_MINUTES: Final = 24 * 60
"""How long a job may be without a report. A device that is offline for a night does not lose it."""
ATTEMPTS: Final = 3
"""At one report, where only its version or its details are in the way."""
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 60.0


class Job(NamedTuple):
    """What an operation is given; it may use all of it from any thread."""

    id: str
    document: dict[str, Any]
    details: Details
    """As they were reported last, before a restart; empty for a job that begins."""
    report: Callable[[Mapping[str, Any]], None]
    """Tell where it stands: replaces the details. As often as it likes; not every report is sent."""
    cancelled: Callable[[], bool]
    """Whether to end soon, in a state from which the same may begin again: what it returns no longer counts."""


Operation = Callable[[Job], Mapping[str, Any]]
"""Carries a job out, in a worker thread; returns the details of its success.

JobDocumentError rejects the job, any other error fails it. RestartRequested leaves it in progress.
"""


class RestartRequested(Exception):  # noqa: N818  it is no error
    """The operation goes on in the next run of the agent, which begins with these details."""

    def __init__(self, details: Mapping[str, Any]) -> None:
        super().__init__("restart")
        self.details: Final = details


class _Outcome(NamedTuple):
    status: str
    details: Mapping[str, Any]


class _Running:
    """A job that this process carries out."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.progress = self.reported = execution.details
        self.due = 0.0  # time.monotonic(): not before this is the next progress reported
        self.cancelled: Final = threading.Event()
        self.gone = False  # it is no longer ours to report of
        self.doubtful = False  # whether it still is, has to be asked
        self.work: asyncio.Future[_Outcome]

    def let_go(self, why: str) -> None:
        log.warning("job %s is let go: %s", self.execution.id, why)
        self.gone = True
        self.cancelled.set()


class Jobs:
    """Carries out the jobs of one thing for as long as `run` runs."""

    def __init__(
        self,
        connection: Connection,
        thing_name: str,
        operations: Mapping[str, Operation],
        pool: Executor,
        *,
        restart: Callable[[], None] = lambda: None,
    ) -> None:
        """Operations by name, run in `pool`. `restart` begins an orderly end of the process, and returns at once."""
        self._connection: Final = connection
        self._operations: Final = operations
        self._pool: Final = pool
        self._restart: Final = restart
        self._client: Final = JobsClient(thing_name, self._look_again)
        self._wake: Final = asyncio.Event()
        self._relinked: Final = asyncio.Event()
        self._look = False  # whether there may be a job that we do not have
        self._running: _Running | None = None
        self._failures = 0
        self._last_failure = ""
        self._loop: asyncio.AbstractEventLoop
        connection.on_connected(self._connected)

    async def run(self) -> None:
        """Take jobs until cancelled, whatever happens."""
        self._loop = asyncio.get_running_loop()
        if self._connection.connected.is_set():
            self._connected()
        try:
            while True:
                await self._woken()
                try:
                    await self._step()
                except JobRefusedError as error:
                    await self._failed(error.message)
                except Exception as error:
                    log.exception("taking jobs failed; the agent goes on without")
                    await self._failed(f"{type(error).__name__}: {error}")
                else:
                    self._failures, self._last_failure = 0, ""
        finally:
            self._client.close()
            if self._running:
                self._running.cancelled.set()

    # -- on the loop, called by others ----------------------------------------------------------------------------

    def _connected(self) -> None:
        self._relinked.set()
        self._client.relinked()
        self._look_again()

    def _look_again(self) -> None:
        self._look = True
        if self._running:
            self._running.doubtful = True
        self._wake.set()

    # -- one thing after the other --------------------------------------------------------------------------------

    async def _woken(self) -> None:
        """Wait for something to do, or until progress may be reported."""
        running, wait_s = self._running, None
        if running and self._usable() and not running.gone and running.progress != running.reported:
            wait_s = max(0.0, running.due - time.monotonic())
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        self._wake.clear()

    def _usable(self) -> bool:
        return self._connection.connected.is_set() and self._connection.client is not None and not self._client.refused

    async def _step(self) -> None:
        if not self._connection.connected.is_set() or self._connection.client is None:
            return  # the next connect wakes us
        if self._relinked.is_set():
            self._relinked.clear()
            await self._client.attach(self._connection.client)
            if self._client.refused:
                log.warning("no jobs are taken: the thing's policy is older than they; `cloud setup` mends it")
        if self._client.refused:
            return  # to publish what is not allowed would end the link
        if self._running is None and self._look:
            self._look = False  # first: what is heard while we ask counts
            async with self._connection.others():
                execution = await self._client.start_next(STEP_TIMEOUT_MINUTES)
            if execution:
                self._begin(execution)
        if self._running:
            await self._attend(self._running)

    def _begin(self, execution: Execution) -> None:
        log.info("job %s %s", execution.id, "goes on" if execution.details else "begins")
        running = _Running(execution)
        if execution.details:
            running.reported = {}  # told once more, which begins the time that a step may take anew
        job = Job(
            execution.id,
            execution.document,
            execution.details,
            lambda details: self._progress(running, details),
            running.cancelled.is_set,
        )
        running.work = self._loop.run_in_executor(self._pool, self._carry_out, job)
        running.work.add_done_callback(lambda _: self._wake.set())
        self._running = running

    async def _attend(self, running: _Running) -> None:
        if running.doubtful and not running.gone:
            running.doubtful = False
            await self._confirm(running)
        if running.work.done():
            if not running.gone and not await self._conclude(running, running.work.result()):
                return
            self._running = None
            self._look_again()
        elif not running.gone and running.progress != running.reported and time.monotonic() >= running.due:
            progress = running.progress
            running.due = time.monotonic() + REPORT_EVERY_S
            if await self._tell(running, IN_PROGRESS, progress):
                running.reported = progress

    async def _confirm(self, running: _Running) -> None:
        """Ask whether the job is still ours: what ended it may have been said while nobody heard."""
        try:
            async with self._connection.others():
                held = await self._client.describe(running.execution)
        except JobRefusedError as error:
            if error.code not in GONE:
                raise
            running.let_go(error.message)
            return
        if held.status != IN_PROGRESS:
            running.let_go(f"it is {held.status}")
        running.execution = running.execution._replace(version=held.version)

    async def _conclude(self, running: _Running, outcome: _Outcome) -> bool:
        """Report the end; returns whether this was all."""
        details = dict(outcome.details)
        if outcome.status == FAILED:  # where it stood then is worth knowing
            details |= {name: value for name, value in running.progress.items() if name not in details}
        log.info("job %s: %s %s", running.execution.id, outcome.status, details)
        told = await self._tell(running, outcome.status, fitting(details))
        if told and outcome.status == IN_PROGRESS:
            self._restart()
            return False
        return True

    async def _tell(self, running: _Running, status: str, details: Details) -> bool:
        """Update the job; returns whether it was still ours."""
        wanted: Details | None = details or None
        for _ in range(ATTEMPTS):
            minutes = STEP_TIMEOUT_MINUTES if status == IN_PROGRESS else None
            try:
                async with self._connection.others():
                    version = await self._client.update(running.execution, status, wanted, minutes)
            except JobRefusedError as error:
                if error.code == VERSION_MISMATCH and error.status == IN_PROGRESS:
                    # A report of ours whose answer was lost, most likely: it is still the same execution.
                    running.execution = running.execution._replace(version=error.version)
                elif error.code in {VERSION_MISMATCH, *GONE}:
                    running.let_go(error.message)
                    return False
                elif error.code == INVALID_REQUEST and wanted:
                    log.error("job %s: told without details, since %s", running.execution.id, error.message)  # noqa: TRY400
                    wanted = None
                else:
                    raise
            else:
                running.execution = running.execution._replace(version=version)
                return True
        raise JobRefusedError(f"job {running.execution.id} changes too often to be reported")

    async def _failed(self, reason: str) -> None:
        """Pause, longer each time and never in step with others; a new link ends the pause."""
        if reason != self._last_failure:
            log.warning("jobs cannot be attended to: %s; trying again", reason)
        self._last_failure = reason
        pause = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failures, 16)) * random.uniform(0.5, 1)  # noqa: S311  no secret
        self._failures += 1
        if not self._relinked.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._relinked.wait()
        self._look_again()

    # -- in a worker thread ---------------------------------------------------------------------------------------

    def _carry_out(self, job: Job) -> _Outcome:
        try:
            name = operation_of(job.document, self._operations)
            return _Outcome(SUCCEEDED, dict(self._operations[name](job)))
        except JobDocumentError as error:
            return _Outcome(REJECTED, {"reason": error.message, "field": error.field})
        except RestartRequested as wish:
            return _Outcome(IN_PROGRESS, wish.details)
        except AgentError as error:
            return _Outcome(FAILED, {"reason": error.message} | ({"hint": error.hint} if error.hint else {}))
        except BaseException as error:  # a native library's panic is no Exception
            log.exception("job %s failed", job.id)
            return _Outcome(FAILED, {"reason": f"{type(error).__name__}: {error}"})

    def _progress(self, running: _Running, details: Mapping[str, Any]) -> None:
        running.progress = fitting(details)
        if not self._wake.is_set():
            with suppress(RuntimeError):  # a loop that has ended reports nothing any more
                self._loop.call_soon_threadsafe(self._wake.set)
