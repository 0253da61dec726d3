"""Messages over a link to a broker: subscriptions that outlive it, handlers, publishing.

A received message is acknowledged by the receiver, when it is done with it. Publishes are never queued while the
link is down: they fail at once, and whoever wanted them decides what then.
"""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from awscrt import mqtt5

from agent.errors import BrokerError
from agent.mqtt.breaker import Breaker
from agent.mqtt.link import Link
from agent.mqtt.packets import FINAL_REFUSALS, Broker, Message, Outgoing, publish_packet, refusal, subscribe_packets
from agent.mqtt.rate import Rate
from agent.protocol.topics import topic_matches, topic_part

log = logging.getLogger(__name__)

RESUBSCRIBE_S: Final = 5.0
REFUSED_S: Final = 60.0
"""Between attempts at a subscription that the broker refuses."""
RATE_SHARE: Final = 0.9
"""Of the messages a second that the service allows: it counts by a clock of its own."""
OTHERS_POLL_S: Final = 0.05
ECHO: Final = b"arxplorer-echo:"
"""How the correlation data of our own probes begins."""
ECHO_EXPIRY_S: Final = 30
PUBLISH_HEADER_BYTES: Final = 128
"""More than a PUBLISH of ours takes beside topic, correlation data and payload (MQTT 5.0, section 3.3)."""


class _UnpublishableError(Exception):
    """The library, or the service, does not take such a message at all."""


Publishing = Future[Any]
"""A publish under way: done when the broker has acknowledged it, or when it failed."""

Handler = Callable[[Message], None]


class Connection(Link):
    """A connection that keeps itself up: it reconnects, and subscribes again where the broker forgot the session."""

    def __init__(self, broker: Broker, *, explain: Callable[[str], str] = str) -> None:
        super().__init__(broker, explain=explain)
        self._handlers: dict[str, Handler] = {}
        self._on_arrival: dict[str, Handler] = {}  # by topic: called on the library's thread
        self._arrived: deque[Message] = deque()
        self._waking = False
        self._subscribed_filters: set[str] = set()
        self._refused: str | None = None  # what the broker says of subscriptions that it does not grant
        self._echo_mark: Final = ECHO + os.urandom(16)
        self._heard = 0  # messages
        self._echo: asyncio.Event | None = None
        per_s = broker.limits.publishes_per_s if broker.limits else 0
        self._rate: Final = Rate(per_s * RATE_SHARE, per_s / 2) if per_s else None
        self._sending: Final = threading.RLock()  # guards rate, breaker and what is held back
        self._breaker: Final = Breaker()
        self._held_back: deque[tuple[Publishing, Outgoing]] = deque()  # until they may go
        self._convicted: tuple[Outgoing, int] | None = None
        self._here: Final = threading.local()
        self._release_due = False  # a timer runs for what is held back by the rate
        self._others = 0  # requests of the library's own clients that are under way

    @property
    def problems(self) -> list[str]:
        return super().problems + ([f"{self.address}: {self._refused}"] if self._refused else [])

    def start(self) -> None:
        self._waking = self._release_due = False
        super().start()

    async def _end(self) -> None:
        await super()._end()
        self._arrived.clear()

    # -- for its users ----------------------------------------------------------------------------------------

    async def listen(self, filters: Sequence[str], handler: Handler, *, on_arrival: bool = False) -> None:
        """Give messages of these topic filters to `handler`, on the loop, now and after each reconnect.

        With `on_arrival`, for filters without wildcards, it is called on the library's thread instead, which saves a
        change of threads, and may only hand the message on: one that blocks there holds up every connection of the
        process.

        Raises BrokerError when the broker, or MQTT itself, does not allow a filter; it is forgotten then.
        """
        packets = subscribe_packets(filters, self.broker.qos, self.broker.limits)
        if on_arrival:
            self._on_arrival |= dict.fromkeys(map(topic_part, filters), handler)
        self._handlers |= dict.fromkeys(filters, handler)
        try:
            if self.connected.is_set():
                await self._subscribe(packets)
        except BrokerError as error:
            if error.final:
                for name in filters:
                    self._handlers.pop(name, None)
                    self._on_arrival.pop(topic_part(name), None)
            raise

    async def send(self, message: Outgoing) -> None:
        """Publish and wait until the broker has it. Raises BrokerError when it has not, or refuses it."""
        publishing = self.publish_soon(message)
        await _done(publishing)
        error = self.verdict(message.topic, publishing)
        if error:
            raise error

    async def echoes(self, topic: str, timeout_s: float) -> bool:
        """Whether a message published on a topic that this connection listens on comes back in time.

        Or any other message comes: behind a backlog it may take longer than that. Raises BrokerError when it cannot be
        published.
        """
        self._echo, heard = asyncio.Event(), self._heard
        await self.send(Outgoing(topic, b"", correlation=self._echo_mark, content_type=None, expiry_s=ECHO_EXPIRY_S))
        try:
            async with asyncio.timeout(timeout_s):
                return await self._echo.wait()
        except TimeoutError:
            return self._heard != heard

    def largest_payload(self, topic: str, correlation: bytes | None) -> int:
        """Bytes that a message to the broker may carry; what is larger it would drop, with the link."""
        return max(0, self._largest_packet - PUBLISH_HEADER_BYTES - len(topic.encode()) - len(correlation or b""))

    def publish_soon(self, message: Outgoing) -> Publishing:
        """Hand a message to the library, from any thread; `verdict` tells what became of it once it is done."""
        publishing: Publishing = Future()
        wrong = refusal(message, self.broker.limits) if self.broker.limits else None
        with self._sending:
            code = self._breaker.blocked(message.topic, time.monotonic())
            if code is not None:
                wrong = f"not long ago the broker ended the link over a message on this topic (0x{code:02X})"
            if not wrong:
                self._held_back.append((publishing, message))
        if wrong:
            publishing.set_exception(_UnpublishableError(wrong))
        else:
            self._release()
        return publishing

    @asynccontextmanager
    async def others(self) -> AsyncIterator[None]:
        """While something else than our messages is under way: never beside a suspect, as either may end the link."""
        while not self._begin_other():  # noqa: ASYNC110  what it waits for happens on the library's thread
            await asyncio.sleep(OTHERS_POLL_S)
        try:
            yield
        finally:
            with self._sending:
                self._others -= 1
            self._release()

    def _begin_other(self) -> bool:
        with self._sending:
            free = not self._breaker.on_trial
            self._others += free
        return free

    def verdict(self, topic: str, publishing: Publishing) -> BrokerError | None:
        """What kept a message that was handed over from reaching the broker; None if it has it."""
        failure = publishing.exception()
        if failure:
            return BrokerError(
                f"publishing on {topic!r} to {self.address} failed: {failure}",
                final=isinstance(failure, _UnpublishableError),
            )
        puback = publishing.result().puback  # none at QoS 0
        code = puback.reason_code if puback else mqtt5.PubackReasonCode.SUCCESS
        if code is None:
            # One that MQTT does not have there, such as mosquitto's 0x95 for what is over its message_size_limit.
            return BrokerError(f"the broker refused a message on {topic!r}, the library does not say why", final=True)
        if code >= mqtt5.PubackReasonCode.UNSPECIFIED_ERROR:
            return BrokerError(f"the broker refused a message on {topic!r}: {code.name}", final=code in FINAL_REFUSALS)
        return None

    # -- publishing -------------------------------------------------------------------------------------------

    def _release(self) -> None:
        """Hand over what may go now, in order. What may not would end the link, or be discarded without a word."""
        if getattr(self._here, "releasing", False):
            return  # further up in this thread it goes on
        self._here.releasing = True
        try:
            while self._release_one():
                pass
        finally:
            self._here.releasing = False

    def _release_one(self) -> bool:
        """Returns whether there may be more."""
        with self._sending:
            if not self._held_back or not self._breaker.may_go(self._held_back[0][1], others=self._others > 0):
                return False  # what is under way releases more once it is settled
            if self._rate and not self._rate.take(time.monotonic()):
                self._release_later(self._rate.wait(time.monotonic()))
                return False
            promised, message = self._held_back.popleft()
            self._breaker.sent(message)
        self._handed_over(message).add_done_callback(partial(self._settled, promised, message))
        return True

    def _release_later(self, wait_s: float) -> None:
        if not self._release_due:
            self._release_due = True
            self._post(lambda: self._loop.call_later(wait_s, self._release_again))

    def _release_again(self) -> None:
        self._release_due = False
        self._release()

    def _handed_over(self, message: Outgoing) -> Publishing:
        failed: Publishing = Future()
        if self._stopping or self._client is None:
            failed.set_exception(ConnectionError("not connected"))
            return failed
        try:
            publishing: Publishing = self._client.publish(publish_packet(message, self.broker.qos))
        except Exception as error:  # noqa: BLE001  the library refuses what no MQTT packet may hold
            failed.set_exception(_UnpublishableError(str(error)))
            return failed
        return publishing

    def _settled(self, promised: Publishing, message: Outgoing, done: Publishing) -> None:
        failure = done.exception()
        with self._sending:
            self._breaker.settled(message, taken=failure is None)
            if not failure:
                self._in_vain = 0
            if failure and self._convicted and self._convicted[0] is message:
                failure = _UnpublishableError(f"the broker ends the link over it (0x{self._convicted[1]:02X})")
                self._convicted = None
        promised.set_exception(failure) if failure else promised.set_result(done.result())
        self._release()

    def _ended(self, code: int | None) -> bool:
        with self._sending:
            under_way = self._breaker.under_way
            if self._breaker.ended(code, others=self._others > 0):
                (message,) = under_way
                self._breaker.convict(message, code or 0, time.monotonic())
                self._convicted = message, code or 0
            held, self._held_back = self._held_back, deque()
        for promised, _ in held:
            promised.set_exception(ConnectionError("the link was lost"))
        return bool(under_way)

    # -- what comes in ----------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        if self._rate:
            with self._sending:
                self._rate.reserve(time.monotonic())
        self._heard += 1
        if message.correlation and message.correlation.startswith(ECHO):
            self._post(self._echoed, message)
        elif message.topic in self._on_arrival:
            self._on_arrival[message.topic](message)
        else:
            self._arrived.append(message)
            if not self._waking:
                self._waking = True
                self._post(self._drain)

    def _drain(self) -> None:
        self._waking = False  # first: what arrives from here on wakes us again
        while self._arrived:
            message = self._arrived.popleft()
            handler = self._handler_of(message.topic)
            if handler:
                handler(message)
            else:
                message.acknowledge()  # of a subscription that an earlier run of this client left in the session

    def _handler_of(self, topic: str) -> Handler | None:
        """The handler of the topic itself, else of the first wildcard that matches: a message goes to one of them."""
        wildcards = (handler for name, handler in self._handlers.items() if topic_matches(name, topic))
        return self._handlers.get(topic) or next(wildcards, None)

    def _echoed(self, message: Message) -> None:
        message.acknowledge()
        if self._echo and message.correlation == self._echo_mark:  # not one that an earlier run sent
            self._echo.set()

    # -- subscriptions ----------------------------------------------------------------------------------------

    def _forget_session(self) -> None:
        self._subscribed_filters.clear()

    async def _resume(self, session: int) -> None:
        """Subscribe to what the broker does not know, trying again for as long as this link stands."""
        while session == self._session and not self._stopping:
            refused = None
            missing = [name for name in self._handlers if name not in self._subscribed_filters]
            try:
                await self._subscribe(subscribe_packets(missing, self.broker.qos, self.broker.limits))
            except BrokerError as error:
                if not error.final:
                    log.error("%s; trying again", error.message)  # noqa: TRY400  the message says it all
                    await asyncio.sleep(RESUBSCRIBE_S)
                    continue
                refused = error.message
                log.error("%s", refused)  # noqa: TRY400  as above
            if session != self._session:
                return
            if not self._handlers.keys() <= self._subscribed_filters.union(missing):
                continue  # more is listened to since then
            self._refused = refused  # the rest works on
            if not self.connected.is_set():
                self._announce()
            if not refused:
                return
            await asyncio.sleep(REFUSED_S)

    async def _subscribe(self, packets: Sequence[Any]) -> None:
        """Raises BrokerError, final where the broker refused for good; the others are subscribed to all the same."""
        session, refused, final = self._session, [], True
        for packet in packets:
            filters = [subscription.topic_filter for subscription in packet.subscriptions]
            try:
                async with self.others():
                    future: Future[Any] = self._client.subscribe(packet)
                    await _done(future)
                codes = dict(zip(filters, future.result().reason_codes, strict=True))
            except Exception as error:
                raise BrokerError(f"subscribing to {', '.join(filters)} failed: {error}") from error
            if session != self._session:
                raise BrokerError(f"subscribing to {', '.join(filters)} failed: the link was lost")
            for name, code in codes.items():
                if code >= mqtt5.SubackReasonCode.UNSPECIFIED_ERROR:
                    refused.append(f"{name} ({code.name})")
                    final = final and code != mqtt5.SubackReasonCode.QUOTA_EXCEEDED
                else:
                    self._subscribed_filters.add(name)
        if refused:
            raise BrokerError(f"the broker refused the subscription to {', '.join(refused)}", final=final)


async def _done(future: Future[Any]) -> None:
    """Wait until the library is done with it. Cancelled, the wait ends but not the future: the library owns it."""
    await asyncio.shield(asyncio.gather(asyncio.wrap_future(future), return_exceptions=True))
