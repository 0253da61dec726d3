"""A client of the agent: publish requests, await answers, follow any topic."""

import asyncio
import inspect
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from agent.config import Config, find_config_file, load_config
from agent.errors import BrokerError
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Message, Outgoing
from agent.protocol.topics import AgentTopics
from agent.service import broker_of

log = logging.getLogger(__name__)

TopicHandler = Callable[[str, Any], Awaitable[None] | None]
"""Called with the topic and the decoded JSON (the raw bytes where it is none)."""

CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 30.0


class AWSIoTMQTTClient(Connection):
    """Talks to agents through the local broker of the configuration.

    client = AWSIoTMQTTClient()
    await client.connect()
    answer = await client.ask("machine learning transformers", {"category": "cs.LG"})
    await client.disconnect()
    """

    def __init__(self, config: Config | None = None, *, client_id: str | None = None) -> None:
        """Without a configuration, the one that the command line would use; the client id is a new one."""
        self.config: Final = config or load_config(find_config_file(None))
        self.client_id: Final = client_id or f"arxplorer-client-{uuid.uuid4().hex[:12]}"
        broker = broker_of(self.config.local_broker, client_id=self.client_id)
        # Nobody waits for the answers of a client that is gone: no session is kept for it.
        super().__init__(broker._replace(session_expiry_s=0))
        self._topics = AgentTopics.of(self.config.local_broker.topics, self.config.thing_name)
        self._answers: dict[bytes, asyncio.Future[bytes]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def connect(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect. Raises BrokerError when the broker does not answer in time."""
        self.start()
        try:
            await self.wait_connected(timeout_s)
        except BrokerError:
            await self.stop()
            raise

    async def disconnect(self) -> None:
        await self.stop()
        for task in self._running:
            task.cancel()

    async def publish(self, topic: str, message: Any) -> None:
        """Publish a message: bytes as they are, anything else as JSON. Returns when the broker has it."""
        if isinstance(message, bytes):
            await self.send(Outgoing(topic, message, content_type=None))
        else:
            await self.send(Outgoing(topic, msgspec.json.encode(message)))

    async def subscribe(self, topic: str, handler: TopicHandler) -> None:
        """Call `handler(topic, message)` for each message; a handler that raises is logged and stops nothing."""
        await self.listen([topic], lambda message: self._dispatch(handler, message))

    async def publish_search_request(self, query: str, filters: Mapping[str, Any] | None = None, **rest: Any) -> str:
        """Publish a request; its answer goes to the search results topic. Returns the request id."""
        request = self._request(query, filters, rest)
        await self.publish(self._topics.shared_requests, request)
        return str(request["request_id"])

    async def ask(
        self,
        query: str,
        filters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        thing_name: str | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        """Publish a request and wait for its answer, a result or an error message.

        `thing_name` addresses one agent. Raises BrokerError when no answer comes in time.
        """
        answers = f"{self._topics.response_prefix}{self.client_id}"
        if answers not in self._handlers:
            await self.listen([answers], self._answered)
        request = self._request(query, filters, rest)
        topic = f"{self._topics.shared_requests}/{thing_name}" if thing_name else self._topics.shared_requests
        correlation = uuid.uuid4().bytes
        future = self._answers[correlation] = asyncio.get_running_loop().create_future()
        try:
            payload = msgspec.json.encode(request)
            await self.send(Outgoing(topic, payload, response_topic=answers, correlation=correlation))
            async with asyncio.timeout(timeout_s):
                answer: dict[str, Any] = msgspec.json.decode(await future)
        except TimeoutError as error:
            raise BrokerError(
                f"no answer within {timeout_s:g} s", hint="is an agent running? arxplorer-agent run"
            ) from error
        finally:
            del self._answers[correlation]
        return answer

    def _request(self, query: str, filters: Mapping[str, Any] | None, rest: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "query": query,
            "filters": dict(filters or {}),
            "client_id": self.client_id,
            "request_id": f"req-{uuid.uuid4().hex[:12]}",
            "timestamp": time.time(),
            **rest,
        }

    def _answered(self, message: Message) -> None:
        future = self._answers.get(message.correlation or b"")
        if future and not future.done():
            future.set_result(message.payload)
        message.acknowledge()

    def _dispatch(self, handler: TopicHandler, message: Message) -> None:
        task = asyncio.ensure_future(self._call(handler, message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _call(self, handler: TopicHandler, message: Message) -> None:
        try:
            content: Any = msgspec.json.decode(message.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            content = message.payload
        try:
            result = handler(message.topic, content)
            if inspect.isawaitable(result):
                await result
        except Exception:
            log.exception("the handler of %s failed", message.topic)
        finally:
            message.acknowledge()
