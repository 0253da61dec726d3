"""The corpus and its model kept as they are wished for: by the shadow, a job or the configuration; now, or by a timer.

One attempt at a time, in a thread that gives way to questions. What comes of it is told in the status and the shadow's
targets, and never stops search.
"""

import asyncio
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from agent.config import CorpusSettings
from agent.corpus.installing import Installer, Tell
from agent.corpus.syncing import Source, Synced, Syncing
from agent.errors import AgentError, JobDocumentError, PackError, StateError, StoppedError, UnreachableError
from agent.protocol.job_document import OPERATION
from agent.protocol.targets import Progress, Targets, Wish, parse_targets, reported_targets
from agent.search.api import SearchAPI
from agent.store.agent_db import AgentDatabase
from agent.store.remembered import Remembered

if TYPE_CHECKING:
    from agent.cloud.jobs import Job

log = logging.getLogger(__name__)

FIRST_LOOK_S: Final = 600.0
"""At most so long after a start, by chance: a fleet that starts at once does not ask at once."""
FIRST_RETRY_S: Final = 60.0
MAX_RETRY_S: Final = 3_600.0
NICENESS: Final = 10
GO_OVER_S: Final = 60.0
"""Opening a corpus of a million papers takes a few seconds on a board."""
LOOK_S: Final = 0.05
STEPS: Final = 20
"""Progress is told in so many steps: each is a message to the shadow."""


class Updater:
    """Follows wishes while `run` runs; its other methods may be called from any thread."""

    def __init__(
        self, api: SearchAPI, database: AgentDatabase, *, changed: Callable[[], None], gone_over: Callable[[], bool]
    ) -> None:
        """`changed` is called when there is something new to report, or another corpus to go over to.

        `gone_over` tells whether that is what `api` searches by now.
        """
        config = api.config
        self._config: Final = config
        self._changed: Final = changed
        self._gone_over: Final = gone_over
        self._remembered: Final = Remembered(database, "targets")
        self._under_way: Final = Remembered(database, "update under way")
        self._stopping: Final = threading.Event()
        self._installer: Final = Installer(config, database, api)
        self._syncing: Final = Syncing(config, database, self._installer)
        self._one_at_a_time: Final = threading.Lock()
        self._pool: Final = ThreadPoolExecutor(1, thread_name_prefix="update", initializer=give_way)
        self._wake: Final = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._document: Any = self._remembered.load()  # of valid targets; it holds without a network
        self._heard: Any = self._document
        self._targets: Targets = parse_targets(self._document)
        self._interval_s = config.corpus.sync_interval_s
        self._progress = Progress() if self._targets.wish == Wish() else Progress(state="pending")
        self._failures = 0
        self._unreachable = False  # the last attempt, since nobody answered
        self._at = self._first_look()  # time.monotonic() of the next attempt

    def _first_look(self) -> float:
        now = time.monotonic()
        if self._under_way.load() or self._targets.wish != Wish():
            return now
        return now + random.uniform(0, FIRST_LOOK_S) if self._is_timed else math.inf  # noqa: S311  no secret

    @property
    def _is_timed(self) -> bool:
        return bool(self._interval_s and self._config.corpus.repository)

    # -- what is wished for -------------------------------------------------------------------------------------------

    def configure(self, settings: CorpusSettings) -> None:
        """Look so often from here on."""
        if settings.sync_interval_s != self._interval_s:
            self._interval_s = settings.sync_interval_s
            now = time.monotonic()
            at = now + self._pause()
            # What is wished for, or was begun, does not wait for the timer.
            self._look_at(min(self._at, at) if self._progress.state != "current" or self._at <= now else at)

    def targets(self, document: Any, *, model: str | None, corpus_version: str) -> dict[str, Any]:
        """Take the shadow's targets, any JSON value, and return what to report of them. Never raises."""
        self._take(document or None)
        return reported_targets(self._targets, self._progress, model=model, corpus_version=corpus_version)

    def _take(self, document: Any) -> None:
        if document == self._heard:
            return
        self._heard = document
        heard, before = parse_targets(document), self._targets
        valid = {target: document[target] for target in heard.named if target not in heard.errors}
        # One that makes no sense leaves the device with what was wished for before.
        held = self._document if isinstance(self._document, dict) else {}
        valid |= {target: held[target] for target in heard.errors if target in held}
        wish = parse_targets(valid).wish
        self._document, self._targets = valid, msgspec.structs.replace(heard, wish=wish)
        try:
            self._remembered.save(valid)
        except StateError as error:
            log.warning("the targets will not outlive this process: %s", error.message)
        if wish != before.wish:
            self._progress, self._failures = Progress(), 0
            if wish != Wish():
                self._progress = Progress(state="pending")
                self._look_at(0)

    def _look_at(self, moment: float) -> None:
        self._at = moment
        if self._loop:
            with suppress(RuntimeError):  # a loop that has ended looks at nothing any more
                self._loop.call_soon_threadsafe(self._wake.set)

    # -- now ----------------------------------------------------------------------------------------------------------

    def update(self, wish: Wish, tell: Tell, stop: Callable[[], bool]) -> Synced:
        """Fulfil a wish in this thread, once an attempt under way has ended; `tell` hears how far it is.

        Raises AgentError; StoppedError when `stop` says so, or the agent ends.
        """

        def stopped() -> bool:
            return stop() or self._stopping.is_set()

        while not self._one_at_a_time.acquire(timeout=LOOK_S):
            if stopped():
                raise StoppedError("stopped before it was begun")
        try:
            done = self._syncing.run(Source.configured(self._config), wish, tell, stopped)
            if done.installed:
                self._see_it_through(done)
            return done
        finally:
            self._one_at_a_time.release()

    def _see_it_through(self, done: Synced) -> None:
        """Wait until the new corpus is searched. Raises PackError where it is not."""
        self._changed()
        until = time.monotonic() + GO_OVER_S
        while not self._gone_over() and time.monotonic() < until and not self._stopping.wait(LOOK_S):
            pass
        if self._stopping.is_set():
            return
        if self._installer.version != done.version:
            raise PackError(f"{done.version} was given back: it has not proved itself", hint="see the agent's log")
        if not self._gone_over():
            raise PackError(f"{done.version} is installed and was not gone over to within {GO_OVER_S:.0f} s")

    def corpus_job(self, job: "Job") -> dict[str, Any]:
        """The operation `corpus.update`: `channel`, `version` and `categories` as in the shadow's target."""
        return self._job(job, {"corpus": {key: value for key, value in job.document.items() if key != OPERATION}})

    def model_job(self, job: "Job") -> dict[str, Any]:
        """The operation `model.update`: a pack for the model `name`, which brings it along."""
        return self._job(job, {"model": {"name": job.document.get("name")}})

    def _job(self, job: "Job", document: dict[str, Any]) -> dict[str, Any]:
        targets = parse_targets(document)
        for target, error in targets.errors.items():
            path, _, reason = error.partition(": ")
            raise JobDocumentError(reason, field=path.removeprefix(f"targets.{target}."))
        done = self.update(
            targets.wish,
            lambda progress: job.report({"state": progress.state, "progress": f"{progress.part or 0:.2f}"}),
            job.cancelled,
        )
        if done.held_back:
            raise PackError(f"not taken: {done.held_back}")
        return {"version": done.version, "installed": " ".join(done.installed) or "nothing new"}

    @property
    def problems(self) -> list[str]:
        """What a person should know, in words."""
        # A device is meant to be offline for long: that what it looks for is out of reach is nothing wrong with it.
        failed = None if self._unreachable else self._progress.error
        return [*self._syncing.problems, *([f"the corpus is not as it is wished for: {failed}"] if failed else [])]

    # -- by itself ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look when something is wished for, and at every interval, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            pause = self._at - time.monotonic()
            if pause <= 0:
                self._at = math.inf  # a wish that comes during the attempt brings it forward again
                await self._loop.run_in_executor(self._pool, self._attempt)
                self._at = min(self._at, time.monotonic() + self._pause())
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(pause) else pause):
                    await self._wake.wait()
            self._wake.clear()

    def stop(self) -> None:
        """End what is under way, at its next step; the next start goes on."""
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _attempt(self) -> None:
        """Never raises."""
        wish, begun = self._targets.wish, False

        def tell(progress: Progress) -> None:
            nonlocal begun
            if not begun:
                begun = True
                self._note_under_way(begun=True)
            self._tell(progress)

        try:
            done = self.update(wish, tell, lambda: self._targets.wish != wish)
        except StoppedError:
            log.info("the update of the corpus is stopped")
        except AgentError as error:
            self._failed(error.message, unreachable=isinstance(error, UnreachableError))
        except Exception as error:
            log.exception("updating the corpus")
            self._failed(f"{type(error).__name__}: {error}")
        else:
            self._failures = 0
            if done.held_back:
                log.warning("a newer corpus is not taken: %s", done.held_back)
            self._tell(Progress())
        if not self._stopping.is_set() and (begun or self._under_way.load()):  # else the next start goes on
            self._note_under_way(begun=False)

    def _note_under_way(self, *, begun: bool) -> None:
        try:
            self._under_way.save(begun)
        except StateError as error:
            log.info("what is under way will not outlive this process: %s", error.message)

    def _failed(self, reason: str, *, unreachable: bool = False) -> None:
        self._failures += 1
        self._unreachable = unreachable
        if reason != self._progress.error:
            log.error("the corpus is not updated: %s", reason)
        self._tell(Progress(state="failed", error=reason))

    def _tell(self, progress: Progress) -> None:
        if progress.part is not None:
            progress = msgspec.structs.replace(progress, part=math.floor(progress.part * STEPS) / STEPS)
        if progress != self._progress:
            self._progress = progress
            self._changed()

    def _pause(self) -> float:
        """Seconds to the next attempt: never in step with others, and longer after each failure."""
        interval = self._interval_s if self._is_timed else math.inf
        if self._failures and self._config.corpus.repository:
            interval = min(interval, MAX_RETRY_S, FIRST_RETRY_S * 2 ** min(self._failures - 1, 16))
        return interval * random.uniform(0.9, 1.1)  # noqa: S311  no secret


def give_way() -> None:
    """Let this thread's work wait for that of others: on Linux each has a niceness of its own."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
