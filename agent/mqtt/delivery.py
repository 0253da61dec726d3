"""What a link could not take, kept in the outbox, and handed over once it stands again: oldest first, answers first.

Live messages come before these: few are under way at a time, and on a link with a limited rate they take a part of it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import Any, Final

from agent.crash_points import crash_point
from agent.errors import BrokerError, StateError
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Message, Outgoing
from agent.mqtt.rate import Rate
from agent.store.outbox import Kept, Kind, Outbox

log = logging.getLogger(__name__)

WINDOW: Final = 8
"""Messages under way."""
RATE_SHARE: Final = 0.4
"""Of the messages a second that the service allows, both ways: the rest is for requests and their answers."""
DOUBTFUL_FAILURES: Final = 3
"""After so many in a row, what follows a message is not made to wait for it any more."""
PROBLEM_S: Final = 60.0
"""How long a failure to keep something is named, if there is no other."""
RETRY_S: Final = 5.0
"""After the broker did not take a message, or agent.db could not be used."""
LOOK_S: Final = 60.0
"""So often the outbox is looked at without a reason to."""
KEPT_PROPERTY: Final = ("kept", "while the link was down")
"""A user property of reports from the outbox: what they say was so when they were made."""

Stored = Callable[[bool], None]
"""Told, on the loop, whether a message is on disk."""
Refused = Callable[[Kept], None]


class Delivery:
    """The outbox of one connection. All but `holds` and `set_aside` belongs to the event loop."""

    def __init__(
        self,
        connection: Connection,
        link: str,
        outbox: Outbox,
        pool: Executor,
    ) -> None:
        """`link` is the outbox's name for it; `pool` writes to disk."""
        self.link: Final = link
        self._connection: Final = connection
        self._outbox: Final = outbox
        self._pool: Final = pool
        self._on_refused: list[Refused] = []
        self._on_problem: list[Callable[[], None]] = []
        self._failures: Counter[int] = Counter()  # of each message that was not taken, by its number
        limits = connection.broker.limits
        self._rate: Final = Rate(limits.publishes_per_s * RATE_SHARE, WINDOW) if limits else None
        self._to_store: list[tuple[Kept, Stored]] = []
        self._storing: asyncio.Task[None] | None = None
        self._wake: Final = asyncio.Event()
        self._reported = False  # whether the newest status was sent over this link: older ones may follow
        self._waits: str | None = None  # why, as it was last said
        self._problem: str | None = None
        self._problem_until = 0.0  # time.monotonic()
        connection.on_connected(self._connected)

    @property
    def problems(self) -> list[str]:
        """What keeps messages from being kept, in words."""
        return [self._problem] if self._problem and time.monotonic() < self._problem_until else []

    def on_refused(self, callback: Refused) -> None:
        """Call back on the loop when an answer was set aside."""
        self._on_refused.append(callback)

    def on_problem(self, callback: Callable[[], None]) -> None:
        """Call back on the loop when something could not be kept for the first time, or for another reason."""
        self._on_problem.append(callback)

    def holds(self, request: Message) -> bool:
        """Whether the answer to this request is on disk, and will be delivered from there. From any thread."""
        return self._outbox.waiting(self.link, "answer") > 0 and self._outbox.holds(self.link, request.key)

    def keep(self, message: Outgoing, kind: Kind, stored: Stored, *, key: bytes | None = None) -> None:
        """Write a message to disk, to be delivered later; those that come together share one write."""
        self._to_store.append((self._kept(message, kind, key), stored))
        if self._storing is None:
            self._storing = asyncio.ensure_future(self._store())

    def set_aside(self, request: Message, reason: str) -> None:
        """Keep a request that is given up, for a person to look at. From any thread."""
        try:
            self._outbox.refuse(Kept(self.link, "request", request.topic, request.payload, {}, request.content), reason)
        except StateError as error:
            log.warning("it cannot be kept to be looked at: %s", error.message)

    def status_sent(self) -> None:
        """The newest status is at the broker, or cannot get there: older reports may follow."""
        self._reported = True
        self._wake.set()

    async def run(self) -> None:
        """Deliver whatever waits, whenever the link stands, until cancelled."""
        while True:
            await self._connection.connected.wait()
            self._wake.clear()
            try:
                await self._drain("answer")
                if self._reported:
                    await self._drain("report")
                await self._in_pool(self._outbox.remove)  # what could not be deleted when it was delivered
            except (BrokerError, StateError) as error:
                if error.message != self._waits:
                    log.info("the outbox waits: %s", error.message)
                self._waits = error.message
                await self._pause(RETRY_S)
            except Exception:
                log.exception("delivering from the outbox; trying again")
                await self._pause(RETRY_S)
            else:
                self._waits = None
                await self._pause(LOOK_S)

    async def close(self) -> None:
        """Finish the writing under way."""
        if self._storing:
            await asyncio.shield(self._storing)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _connected(self) -> None:
        self._reported = False
        self._wake.set()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _in_pool(self, action: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(action, *arguments))

    async def _store(self) -> None:
        while self._to_store:
            batch, self._to_store = self._to_store, []
            try:
                await self._in_pool(self._outbox.put, [kept for kept, _ in batch])
            except Exception as error:  # noqa: BLE001  said, and whoever waits is told
                self._note(error)
                held = False
            else:
                self._note(None)
                held = True
            for _, stored in batch:
                stored(held)
        self._storing = None
        self._wake.set()

    def _note(self, error: Exception | None) -> None:
        words = None
        if error:
            words = error.message if isinstance(error, StateError) else f"{type(error).__name__}: {error}"
            if words != self._problem:
                log.error("the outbox cannot be written: %s", words)
        new = words != self._problem
        self._problem, self._problem_until = words, time.monotonic() + PROBLEM_S
        for callback in self._on_problem if new else ():
            callback()

    async def _drain(self, kind: Kind) -> None:
        """Raises BrokerError when the broker does not take one of them now, and StateError."""
        last, doubtful = 0, []
        while messages := await self._next(kind, WINDOW, last):
            last = messages[-1].seq
            doubtful += [one.seq for one in messages if self._failures[one.seq] >= DOUBTFUL_FAILURES]
            await self._hand_over([one for one in messages if self._failures[one.seq] < DOUBTFUL_FAILURES])
        # By itself: it may be the reason for which the link is lost. The one that failed least comes first.
        for number in sorted(doubtful, key=self._failures.__getitem__):
            await self._hand_over(await self._next(kind, 1, number - 1))
        self._failures.clear()

    async def _next(self, kind: Kind, limit: int, after: int) -> list[Kept]:
        found: list[Kept] = await self._in_pool(partial(self._outbox.next, self.link, kind, limit, after=after))
        return found

    async def _hand_over(self, messages: Sequence[Kept]) -> None:
        """Raises BrokerError when the broker does not take one of them now."""
        verdicts = await asyncio.gather(*(self._deliver(one) for one in messages))
        judged = list(zip(messages, verdicts, strict=True))
        done = [one for one, error in judged if error is None]
        if done:
            crash_point("delivery.drain:before-remove")
            await self._remove(done)
        for message, error in judged:
            if error and error.final:
                await self._refuse(message, error.message)
        passing = [(one, error) for one, error in judged if error and not error.final]
        self._failures.update(one.seq for one, _ in passing)
        if passing:
            raise passing[0][1]

    async def _deliver(self, message: Kept) -> BrokerError | None:
        if self._rate:
            await asyncio.sleep(self._rate.reserve(asyncio.get_running_loop().time()))
        try:
            await self._connection.send(outgoing(message))
        except BrokerError as error:
            return error
        return None

    async def _remove(self, messages: Sequence[Kept]) -> None:
        """On a disk that cannot be written to they are not delivered again all the same, and deleted later."""
        try:
            await self._in_pool(self._outbox.remove, messages)
        except StateError as error:
            self._note(error)

    async def _refuse(self, message: Kept, reason: str) -> None:
        """Set it aside, and let whoever waits for an answer know."""
        log.error("set aside: %s", reason)
        try:
            await self._in_pool(self._outbox.refuse, message, reason)
        except StateError as error:
            self._note(error)
            await self._remove([message])
        for callback in self._on_refused if message.kind == "answer" else ():
            callback(message)

    def _kept(self, message: Outgoing, kind: Kind, key: bytes | None) -> Kept:
        rest = {
            "retain": message.retain,
            "response_topic": message.response_topic,
            "correlation": message.correlation.hex() if message.correlation is not None else None,
            "content_type": message.content_type,
            "user_properties": message.user_properties,
        }
        return Kept(self.link, kind, message.topic, message.payload, rest, key, message.expiry_s)


def outgoing(kept: Kept) -> Outgoing:
    """A message from the outbox, as it is sent."""
    rest = kept.rest
    properties = tuple((name, value) for name, value in rest["user_properties"])
    if kept.kind == "report":
        properties = (*properties, KEPT_PROPERTY)
    return Outgoing(
        kept.topic,
        kept.payload,
        retain=rest["retain"],
        response_topic=rest["response_topic"],
        correlation=bytes.fromhex(rest["correlation"]) if rest["correlation"] is not None else None,
        content_type=rest["content_type"],
        user_properties=properties,
        # Whole seconds, rounded up: 0 would say that it has none left.
        expiry_s=None if kept.expires_s is None else max(1, -int(-kept.expires_s // 1)),
    )
