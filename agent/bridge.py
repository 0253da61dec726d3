"""Search meets MQTT: a message in, its answer at the broker, and only then the message acknowledged.

A client therefore gets at least one answer to every request that the broker took: whatever happens in between, the
broker still holds the request and delivers it again. An answer that the link could not take is kept on disk, and so
good as delivered: the request, delivered again, is only acknowledged. What waits here unacknowledged is the
back-pressure: the broker sends no more than receive-maximum at a time. Brokers that do not keep to that are told
`overloaded` in the end.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from agent.config import Config
from agent.corpus.updates import LiveUpdates
from agent.crash_points import crash_point
from agent.device.request_marks import RequestMarks
from agent.errors import BrokerError, RequestError
from agent.handlers import Answer, Handlers
from agent.mqtt.connection import Connection, Publishing
from agent.mqtt.delivery import Delivery, outgoing
from agent.mqtt.packets import Broker, Message, Outgoing
from agent.mqtt.rate import Rate
from agent.protocol.topics import AgentTopics
from agent.search.api import SearchAPI
from agent.store.journal import journal_of
from agent.store.outbox import Kept

log = logging.getLogger(__name__)

DRAIN_TIMEOUT_S: Final = 1.5
RETRY_S: Final = 1.0
BURST_S: Final = 10.0
"""What a limited rate allows in so many seconds may come at once."""
MAX_WAITING: Final = 4_096
MAX_WAITING_BYTES: Final = 8 * 1024 * 1024


def topics_on(broker: Broker, config: Config) -> AgentTopics:
    """The agent's topics on a broker: its own ones, else those of the local broker."""
    return broker.topics or AgentTopics.of(config.local_broker.topics, config.thing_name)


class MQTTSearchBridge:
    """Answers the messages that arrive on one connection.

    bridge = MQTTSearchBridge(client, search_api)
    await bridge.setup()
    """

    def __init__(
        self,
        client: Connection,
        search_api: SearchAPI,
        *,
        delivery: Delivery | None = None,
        marks: RequestMarks | None = None,
        updates: LiveUpdates | None = None,
    ) -> None:
        """Without `delivery`, what the link cannot take is left to the broker to ask for again.

        `marks` and `updates` are those of all bridges of the process.
        """
        self.counters: Final[Counter[str]] = Counter()
        self._client = client
        self._delivery: Final = delivery
        if delivery:
            delivery.on_refused(self._set_aside)
        self._marks: Final = marks or RequestMarks(None)
        self._api = search_api
        self._topics = topics_on(client.broker, search_api.config)
        updates = updates or LiveUpdates(search_api, journal_of(search_api.config.data_dir))
        self._handlers = Handlers(search_api, updates, self._topics, client.largest_payload)
        # Updates change something, so they are carried out one after the other, in the order of their arrival.
        self._updates: Final = ThreadPoolExecutor(1, thread_name_prefix="updates")
        self._on_update: list[Callable[[], None]] = []
        self._guard = threading.Lock()
        self._waiting: deque[Message] = deque()  # requests for which there is no worker yet
        self._at_work = 0  # requests that were handed to workers
        self._pending = 0  # messages that were received and are not finished yet
        self._pending_bytes = 0
        self._rate: Rate | None = None
        self._closing = False
        self._drained = asyncio.Event()

    @property
    def pending(self) -> int:
        """Messages that were received and are not answered yet."""
        return self._pending

    def limit(self, requests_per_minute: int) -> None:
        """Answer so many requests a minute, corpus updates not counted, and refuse the rest; 0: answer them all."""
        per_s = requests_per_minute / 60
        with self._guard:
            self._rate = Rate(per_s, max(1.0, per_s * BURST_S)) if requests_per_minute else None

    def on_update(self, callback: Callable[[], None]) -> None:
        """Call back on the loop when a corpus update was carried out."""
        self._on_update.append(callback)

    async def setup(self) -> None:
        """Subscribe; from here on messages are answered."""
        self._loop = asyncio.get_running_loop()
        filters = list(self._handlers.kinds)
        if self._client.broker.share_group:
            # Every agent of the group subscribes to these, and one of them gets each request.
            shared = self._topics.shared_requests
            filters[filters.index(shared)] = f"$share/{self._client.broker.share_group}/{shared}"
        await self._client.listen(filters, self._take, on_arrival=True)

    async def close(self) -> None:
        """Take no more messages, and finish those under way if they are quick."""
        with self._guard:
            self._closing = True
        if self._pending:
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await self._drained.wait()
        with self._guard:
            self._waiting.clear()  # unacknowledged, as above
        self._updates.shutdown(wait=False, cancel_futures=True)

    # A message changes threads as rarely as can be, since each change costs time: library (take) -> worker (answer and
    # publish) -> library (acknowledge, when the broker has the answer). Only what goes wrong comes to the loop.

    def _take(self, message: Message) -> None:
        with self._guard:
            if self._closing:
                return  # unacknowledged: the broker keeps it for the next run
            reason = None
            if self._pending >= MAX_WAITING or self._pending_bytes >= MAX_WAITING_BYTES:
                reason = "more messages are waiting than the agent can hold; send it again later"
            elif self._rate and message.topic != self._topics.corpus_updates and not self._rate.take(time.monotonic()):
                reason = "more requests came than limits.requests_per_minute allows; send it again later"
            self.counters["requests"] += 1
            self._pending += 1
            self._pending_bytes += message.size
        if reason:
            self._on_loop(self._overloaded, message, reason)
        else:
            self._submit(message)

    def _submit(self, message: Message) -> None:
        if message.topic == self._topics.corpus_updates:
            self._updates.submit(self._serve, message)
            return
        with self._guard:
            # No more than can be worked on at a time: the workers are there for all links, and one with a long backlog
            # must not be before all others.
            if self._at_work >= self._api.workers:
                self._waiting.append(message)
                return
            self._at_work += 1
        self._api.pool.submit(self._work, message)

    def _work(self, message: Message) -> None:
        try:
            self._serve(message)
        finally:
            with self._guard:
                following = self._waiting.popleft() if self._waiting else None
                self._at_work -= following is None
            if following:
                self._api.pool.submit(self._work, following)

    def _serve(self, message: Message) -> None:
        if message.expires is not None and time.monotonic() > message.expires:
            error = RequestError("expired", "the message waited longer than its expiry interval allows")
            self._send(message, self._handlers.refusal(message, error))
            return
        if self._delivery and self._delivery.holds(message):
            self._done(message, Answer(None, "repeats"))
            return
        content = message.content
        if self._marks.fatal(content):
            log.error("a request on %r, %s, has ended the agent twice: refused", message.topic, content.hex()[:16])
            reason = "the agent ended twice while it worked on this request; it is not tried again"
            if self._delivery:
                self._delivery.set_aside(message, reason)
            self._send(message, self._handlers.refusal(message, RequestError("internal", reason)))
            return
        with self._marks.working(content):
            answer = self._handlers.kinds[message.topic](message)
        if message.topic == self._topics.corpus_updates:
            crash_point("bridge.serve:update-stored")
            # It is in papers.db (or was refused): acknowledged at once, so that no later update overtakes it.
            message.acknowledge()
        self._send(message, answer)

    def _overloaded(self, message: Message, reason: str) -> None:
        self._send(message, self._handlers.refusal(message, RequestError("overloaded", reason)))

    def _send(self, message: Message, answer: Answer) -> None:
        if answer.outgoing is None:
            self._done(message, answer)
            return
        publishing = self._client.publish_soon(answer.outgoing)
        publishing.add_done_callback(lambda done: self._published(message, answer, done))

    def _published(self, message: Message, answer: Answer, publishing: Publishing) -> None:
        topic = answer.outgoing.topic if answer.outgoing else ""
        error = self._client.verdict(topic, publishing)
        if error is None:
            self._done(message, answer)
        else:
            self._on_loop(self._unsent, message, answer, error)

    def _unsent(self, message: Message, answer: Answer, error: BrokerError) -> None:
        self.counters["unsent"] += 1
        stands = self._client.connected.is_set() and not message.lost and not self._closing
        log.log(logging.WARNING if stands or error.final else logging.INFO, "%s", error.message)
        if error.final:
            self._refused(message, answer)
        elif stands:
            # The broker did not answer in time: try again.
            self._loop.call_later(RETRY_S, self._send, message, answer)
        elif self._delivery and answer.outgoing and not answer.passing:
            self._delivery.keep(
                self._lasting(message, answer.outgoing),
                "answer",
                lambda kept: self._kept(message, answer, kept=kept),
                key=message.key,
            )
        else:
            self._done(message, answer, keep=True)

    def _refused(self, message: Message, answer: Answer) -> None:
        """The broker does not take the answer: say so on the results topic, unless that is what it does not take."""
        notice = self._handlers.refused_by_broker(message)
        topics = {one.outgoing.topic for one in (answer, notice) if one.outgoing}
        if answer.outcome != "errors" or len(topics) > 1:
            self._send(message, notice)
        else:
            self._done(message, answer)

    def _kept(self, message: Message, answer: Answer, *, kept: bool) -> None:
        # On a disk that is full the broker has to hold the request for longer.
        self.counters["kept"] += kept
        self._done(message, answer, keep=not kept)

    @staticmethod
    def _lasting(message: Message, answer: Outgoing) -> Outgoing:
        """An answer is worth something for as long as its request was."""
        if message.expires is None:
            return answer
        return answer._replace(expiry_s=max(1, round(message.expires - time.monotonic())))

    def _set_aside(self, answer: Kept) -> None:
        """Whoever asked should hear of it: by way of the outbox, since the link has just ended over the answer."""
        notice = self._handlers.refused_answer(answer.payload, outgoing(answer).correlation)
        if self._delivery and notice.topic != answer.topic:
            self._delivery.keep(notice, "answer", lambda _: None)

    def _done(self, message: Message, answer: Answer, *, keep: bool = False) -> None:
        """The message is finished: acknowledged, unless the broker is to `keep` and deliver it again."""
        if not keep:
            crash_point("bridge.done:before-acknowledge")
            message.acknowledge()
        with self._guard:
            self.counters[answer.outcome] += 1
            self._pending -= 1
            self._pending_bytes -= message.size
            drained = self._closing and not self._pending
        if drained:
            self._on_loop(self._drained.set)
        if answer.outcome == "updates":
            for callback in self._on_update:
                self._on_loop(callback)

    def _on_loop(self, callback: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # a loop that has ended needs to know nothing any more
            self._loop.call_soon_threadsafe(callback, *arguments)
