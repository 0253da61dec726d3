"""The Device Shadow `config` kept in step: wishes become settings, and what became of them is reported.

After each connect the whole document is read, and from then on every change is heard. Only the newest document
matters. A report names the version that it answers; if that was overtaken, the newer document is read and decided
upon. What differs from the last report is sent, and nothing else, so that a report is never answered by another.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Final

from agent.cloud.shadow_client import ShadowClient, ShadowRefusedError, Snapshot
from agent.mqtt.connection import Connection
from agent.protocol.limits import IOT_CORE
from agent.protocol.shadow_document import Document, Report, changes, fitting, settled, size, split
from agent.settings import Outcome

log = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 60.0
"""How often facts and targets are looked at, and the least time between two reports of facts alone."""

CONFLICT, TOO_LARGE, TOO_MANY = 409, 413, 429
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 60.0
FIRST_CONFLICT_PAUSE_S: Final = 0.05
MAX_CONFLICT_PAUSE_S: Final = 5.0

Apply = Callable[[Any, int], Outcome]
Targets = Callable[[Any], Document]
Facts = Callable[[], Document]


class ShadowSync:
    """Follows the shadow of one thing for as long as `run` runs."""

    def __init__(
        self,
        connection: Connection,
        thing_name: str,
        *,
        apply: Apply,
        targets: Targets,
        facts: Facts,
        pool: Executor | None = None,
    ) -> None:
        """`apply` takes desired.settings and the version, `targets` desired.targets, whatever they are.

        `facts` are for reported.agent, and should change rarely. All three are called in a thread of `pool`, by
        default of the loop's own, which is waited for when the loop ends.
        """
        self._connection: Final = connection
        self._apply: Final = apply
        self._targets: Final = targets
        self._facts: Final = facts
        self._pool: Final = pool
        self._client: Final = ShadowClient(thing_name, self._heard, self._read_again)
        self._wake: Final = asyncio.Event()
        self._relinked: Final = asyncio.Event()
        self._read = False  # whether what we hold may be old
        self._held: Snapshot | None = None
        self._newest: Snapshot | None = None  # that was heard and not yet looked at
        self._room = IOT_CORE.shadow_bytes
        self._hopeless: Document | None = None  # an update that the service refuses for good; {}: any
        self._facts_due = 0.0  # time.monotonic()
        self._failures = 0
        self._last_failure = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        connection.on_connected(self._connected)

    def changed(self) -> None:
        """Look at targets and facts now, from any thread."""
        if self._loop:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Keep the shadow in step until cancelled, whatever happens."""
        self._loop = asyncio.get_running_loop()
        if self._connection.connected.is_set():
            self._connected()
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S):
                        await self._wake.wait()
                self._wake.clear()
                try:
                    await self._step()
                except ShadowRefusedError as error:
                    await self._failed(error.message, conflict=error.code == CONFLICT)
                except Exception as error:
                    log.exception("following the shadow failed; the agent goes on without")
                    await self._failed(f"{type(error).__name__}: {error}")
                else:
                    self._failures, self._last_failure = 0, ""
        finally:
            self._client.close()

    # -- on the loop, called by others ----------------------------------------------------------------------------

    def _connected(self) -> None:
        self._relinked.set()
        self._client.relinked()
        self._read_again()

    def _read_again(self) -> None:
        self._read = True
        self._wake.set()

    def _heard(self, snapshot: Snapshot) -> None:
        if snapshot.version > max((one.version for one in (self._held, self._newest) if one), default=0):
            self._newest = snapshot
            self._wake.set()

    # -- one document after the other -----------------------------------------------------------------------------

    async def _step(self) -> None:
        if not self._connection.connected.is_set() or self._connection.client is None:
            return  # the next connect wakes us
        if self._relinked.is_set():
            self._relinked.clear()
            self._room, self._hopeless = IOT_CORE.shadow_bytes, None
            await self._client.attach(self._connection.client)
        if self._read:
            self._read = False
            async with self._connection.others():
                held = await self._client.get()
            # What was heard meanwhile may be newer; of a shadow that does not exist it is of the one before.
            if self._newest and not self._newest.version > held.version > 0:
                self._newest = None
            self._held = held
        if self._newest:
            self._held, self._newest = self._newest, None
        if self._held:
            await self._settle(self._held)

    async def _settle(self, held: Snapshot) -> None:
        """Decide upon a document, and report what is not reported yet."""
        report = await asyncio.get_running_loop().run_in_executor(self._pool, self._decide, held)
        while True:
            document = fitting(report.documents(), held.desired, self._room)
            if document is None:
                if self._hopeless != {}:
                    log.warning("the shadow has no room for a report: its wishes are too large")
                self._hopeless = {}
                return
            wanted = settled(document, held.reported)
            change = changes(held.reported, wanted)
            if not change or change == self._hopeless:
                return
            if change.keys() == {"agent"} and time.monotonic() < self._facts_due:
                return
            version = await self._send(change, held, size(held.desired, document))
            if version is not None:
                break
        if "agent" in change:
            self._facts_due = time.monotonic() + LOOK_AGAIN_S
        self._held, self._hopeless = Snapshot(version, held.desired, wanted), None
        if not held.version:
            self._read_again()  # others may have wished for something in the shadow that this made

    async def _send(self, change: Document, held: Snapshot, bytes_used: int) -> int | None:
        """Report; returns the new version, None where just this is refused. Raises ShadowRefusedError."""
        try:
            async with self._connection.others():
                return await self._client.update(change, held.version)
        except ShadowRefusedError as error:
            if error.code == TOO_LARGE:
                self._room = bytes_used - 1
                return None
            if error.code is not None and 400 <= error.code < 500 and error.code not in {CONFLICT, TOO_MANY}:  # noqa: PLR2004
                log.error("the shadow service refuses the report: %s", error.message)  # noqa: TRY400
                self._hopeless = change
                return None
            raise

    def _decide(self, held: Snapshot) -> Report:
        """In a worker thread: settings into effect, and what there is to say of everything."""
        desired = split(held.desired)
        outcome = self._apply(desired.settings, held.version)
        targets = _quietly("targets", lambda: self._targets(desired.targets))
        return Report(outcome, targets, _quietly("agent", self._facts), desired.ignored)

    async def _failed(self, reason: str, *, conflict: bool = False) -> None:
        """Pause, longer each time and never in step with others; a new link ends the pause."""
        if reason != self._last_failure and not conflict:
            log.warning("the shadow is not in step: %s; trying again", reason)
        self._last_failure = reason
        first, most = (FIRST_CONFLICT_PAUSE_S, MAX_CONFLICT_PAUSE_S) if conflict else (FIRST_PAUSE_S, MAX_PAUSE_S)
        pause = min(most, first * 2 ** min(self._failures, 16)) * random.uniform(0.5, 1)  # noqa: S311  no secret
        self._failures += 1
        if not self._relinked.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._relinked.wait()
        self._read_again()


def _quietly(what: str, ask: Callable[[], Document]) -> Document:
    """Settings do not wait for this: where it fails, nothing is said of it."""
    try:
        return ask()
    except Exception:
        log.exception("reported.%s cannot be told", what)
        return {}
