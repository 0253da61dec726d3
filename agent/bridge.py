"""Search meets MQTT: a request in, its answer at the broker, and only then the request acknowledged.

A client therefore gets at least one answer to every request that the broker took: whatever happens in between, the
broker still holds the request and delivers it again.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Final, Literal, NamedTuple

from agent.errors import NotReadyError, RequestError
from agent.mqtt.connection import Connection, Publishing
from agent.mqtt.packets import Message, Outgoing
from agent.protocol.messages import (
    MAX_MESSAGE_BYTES,
    encode_error,
    encode_search_result,
    parse_search_request,
    read_envelope,
)
from agent.protocol.topics import AgentTopics
from agent.search.api import SearchAPI

log = logging.getLogger(__name__)

DRAIN_TIMEOUT_S: Final = 1.5
RETRY_S: Final = 1.0


class Answer(NamedTuple):
    """What goes back for a request, and what it counts as."""

    outgoing: Outgoing
    outcome: Literal["answers", "errors"]


class MQTTSearchBridge:
    """Answers the search requests that arrive on one connection.

    bridge = MQTTSearchBridge(client, search_api)
    await bridge.setup()
    """

    def __init__(self, client: Connection, search_api: SearchAPI) -> None:
        self.counters: Final[Counter[str]] = Counter()
        self._client = client
        self._api = search_api
        self._topics = AgentTopics.of(search_api.config.local_broker.topics, search_api.config.thing_name)
        self._guard = threading.Lock()
        self._pending = 0  # requests that were received and are not finished yet
        self._closing = False
        self._drained = asyncio.Event()

    @property
    def pending(self) -> int:
        """Requests that were received and are not answered yet."""
        return self._pending

    async def setup(self) -> None:
        """Subscribe; from here on requests are answered."""
        self._loop = asyncio.get_running_loop()
        await self._client.listen(self._topics.subscriptions(), self._take, on_arrival=True)

    async def close(self) -> None:
        """Take no more requests, and finish those under way if they are quick."""
        with self._guard:
            self._closing = True
        if self._pending:
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await self._drained.wait()

    # A request changes threads as rarely as can be, since each change costs latency: library (take) -> worker (answer
    # and publish) -> loop (acknowledge, when the broker has the answer).

    def _take(self, message: Message) -> None:
        with self._guard:
            if self._closing:
                return  # unacknowledged: the broker keeps it for the next run
            self.counters["requests"] += 1
            self._pending += 1
        self._api.pool.submit(self._serve, message)

    def _serve(self, message: Message) -> None:
        self._send(message, self.answer(message))

    def _send(self, message: Message, answer: Answer) -> None:
        publishing = self._client.publish_soon(answer.outgoing)
        publishing.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._finish, message, answer, done))

    def _finish(self, message: Message, answer: Answer, publishing: Publishing) -> None:
        self.counters[answer.outcome] += 1
        error = self._client.verdict(answer.outgoing.topic, publishing)
        if error:
            self.counters["unsent"] += 1
            log.warning("%s", error.message)
        if error and not error.final and not message.lost and not self._closing:
            # The link stands but the broker did not answer in time: try again. Of a link that is gone the broker
            # holds the request and delivers it again.
            self._loop.call_later(RETRY_S, self._api.pool.submit, self._serve, message)
            return
        if error and error.final and answer.outcome == "answers":
            self._send(message, self._refused_by_broker(message))
            return
        if error is None or error.final:
            message.acknowledge()
        with self._guard:
            self._pending -= 1
        if self._closing and not self._pending:
            self._drained.set()

    def answer(self, message: Message) -> Answer:
        """Compute the answer, or the error reply, to a message; runs in a worker and never raises."""
        queue_ms = (time.monotonic() - message.received) * 1e3
        try:
            request = parse_search_request(message.payload)
            topic = self._topics.answer_topic(message.response_topic, request.reply_to, request.client_id)
            limit = min(MAX_MESSAGE_BYTES, self._client.largest_payload(topic, message.correlation))
            payload = encode_search_result(self._api.answer(request, queue_ms=queue_ms), limit)
        except RequestError as error:
            return self._refusal(message, error)
        except NotReadyError as error:
            return self._refusal(message, RequestError("not_ready", error.message))
        except Exception:
            log.exception("a request failed")
            return self._refusal(message, RequestError("internal", "the search failed; see the agent's log"))
        return Answer(Outgoing(topic, payload, correlation=message.correlation), "answers")

    def _refused_by_broker(self, message: Message) -> Answer:
        """Say on the results topic that the broker does not let us answer on the topic asked for."""
        field = "response_topic" if message.response_topic is not None else "reply_to"
        error = RequestError("invalid_request", f"{field}: the broker refuses messages on this topic", field=field)
        return self._refusal(message, error, on_results=True)

    def _refusal(self, message: Message, error: RequestError, *, on_results: bool = False) -> Answer:
        envelope = read_envelope(message.payload)
        topic = self._topics.results_for(envelope.client_id)
        if not on_results:
            with suppress(RequestError):
                topic = self._topics.answer_topic(message.response_topic, envelope.reply_to, envelope.client_id)
        payload = encode_error(error, envelope, processed_by=self._api.config.thing_name, timestamp=time.time())
        return Answer(Outgoing(topic, payload, correlation=message.correlation), "errors")
