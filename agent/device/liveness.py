"""Whether the agent is alive, proved again and again: for systemd's watchdog, and for a container's health check.

Liveness is earned: by a question answered since the last time, else by one that the agent asks itself through the
workers that answer clients. Without that nothing is said, and systemd starts the agent anew.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from agent.device import systemd
from agent.device.heartbeat import HeartbeatFile

log = logging.getLogger(__name__)

PROOFS_A_WATCHDOG: Final = 4
INTERVAL_S: Final = 15.0
"""Between proofs where systemd sets no pace."""


class Liveness:
    """Tells systemd `READY=1` when it starts to run, `WATCHDOG=1` at every proof, and `STOPPING=1` at the end."""

    def __init__(
        self,
        answered: Callable[[], int],
        prove: Callable[[], str],
        pool: Callable[[], Executor],
        file: HeartbeatFile,
    ) -> None:
        """`answered` counts the questions answered so far.

        `prove`, called in the pool, asks one and says in words how the agent does. What it raises is no proof.
        """
        self._answered: Final = answered
        self._prove: Final = prove
        self._pool: Final = pool
        self._file: Final = file
        watchdog = systemd.watchdog_s()
        self._interval_s: Final = watchdog / PROOFS_A_WATCHDOG if watchdog else INTERVAL_S
        self._seen = 0
        self._proving: asyncio.Future[str] | None = None
        self._status = ""
        self._writes = True

    async def run(self, proven: str | None = None) -> None:
        """Prove it until cancelled. Requests can be taken when this starts.

        `proven`: what `prove` has just said, so that it need not ask at once again.
        """
        systemd.notify("READY=1")
        last = time.monotonic()
        try:
            if proven:
                self._status = proven
                self._say()
                await asyncio.sleep(self._interval_s)
            while True:
                started = time.monotonic()
                if await self._alive():
                    last = time.monotonic()
                    self._say()
                else:
                    log.warning("no question could be answered for %.0f s", time.monotonic() - last)
                await asyncio.sleep(max(0.0, started + self._interval_s - time.monotonic()))
        finally:
            systemd.notify("STOPPING=1", "STATUS=stopping")
            self._file.remove()

    async def _alive(self) -> bool:
        if self._was_busy():
            return True
        if self._proving is None:
            loop = asyncio.get_running_loop()
            self._proving = asyncio.ensure_future(loop.run_in_executor(self._pool(), self._prove))
        # One proof at a time: those that hang must not pile up, and one that is late counts when it comes.
        await asyncio.wait([self._proving], timeout=self._interval_s)
        if not self._proving.done():
            return self._was_busy()
        proving, self._proving = self._proving, None
        error = proving.exception()
        if error:
            log.error("a question of our own failed", exc_info=error)
            return False
        self._status = proving.result()
        return True

    def _was_busy(self) -> bool:
        seen, self._seen = self._seen, self._answered()
        return self._seen != seen

    def _say(self) -> None:
        systemd.notify("WATCHDOG=1", f"STATUS={self._status or 'answering'}")
        try:
            self._file.beat(good_for_s=PROOFS_A_WATCHDOG * self._interval_s)
            self._writes = True
        except OSError as error:
            if self._writes:
                log.warning("%s cannot be written: %s; health checks will fail", self._file.path, error.strerror)
            self._writes = False
