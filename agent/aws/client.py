"""A client of the agent: publish requests, await answers, follow any topic, answer on topics of your own."""

import asyncio
import datetime as dt
import inspect
import logging
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from agent.config import Config, find_config_file, load_config
from agent.errors import BrokerError
from agent.mqtt.connection import Connection
from agent.mqtt.local import local_broker
from agent.mqtt.packets import Broker, Message, Outgoing
from agent.protocol.topics import AgentTopics

log = logging.getLogger(__name__)

TopicHandler = Callable[[str, Any], Awaitable[Any] | Any]
"""Called with the topic and the decoded JSON (the raw bytes where it is none); what it returns is the response."""

CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 30.0
GZIP: Final = "application/gzip"
GZIP_WBITS: Final = 31
MAX_CONTENT_BYTES: Final = 64 * 1024 * 1024
"""Of a message once it is decompressed; an answer of the agent is far below it."""


class AWSIoTMQTTClient(Connection):
    """Talks to agents through a broker of the configuration: the local one where it is enabled, else AWS IoT Core.

    client = AWSIoTMQTTClient()
    await client.connect()
    answer = await client.ask("machine learning transformers", {"category": "cs.LG"})
    await client.disconnect()

    What waits for an answer returns the answer message, be it an error message: look for `"error"` in it. BrokerError
    is raised when the broker cannot be reached or refuses, and when no answer comes in time.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        client_id: str | None = None,
        link: Literal["local", "cloud"] | None = None,
    ) -> None:
        """Without a configuration, the one that the command line would use; `link` says which broker.

        At the local broker the client id is a new one by default. At AWS IoT Core it is the thing's name, and a second
        client of that name ends the first one's connection: an application needs a thing of its own there, never the
        one that an agent runs with. Raises ConfigError.
        """
        self.config: Final = config or load_config(find_config_file(None))
        link = link or ("local" if self.config.local_broker.enabled else "cloud")
        broker, explain = self._local(client_id) if link == "local" else self._cloud(client_id)
        self.client_id: Final = broker.client_id
        # Nobody waits for the answers of a client that is gone: no session is kept for it.
        super().__init__(broker._replace(session_expiry_s=0), explain=explain)
        section = self.config.local_broker if link == "local" else self.config.aws_iot
        self._topics = AgentTopics.of(section.topics, self.config.thing_name)
        self._response_topic: Final = f"{self._topics.response_prefix}{self.client_id}"
        self._responses: dict[bytes, asyncio.Future[Any]] = {}
        self._running: set[asyncio.Task[None]] = set()

    def _local(self, client_id: str | None) -> tuple[Broker, Callable[[str], str]]:
        new_id = client_id or f"arxplorer-client-{uuid.uuid4().hex[:12]}"
        return local_broker(self.config.local_broker, self.config.thing_name, client_id=new_id), str

    def _cloud(self, client_id: str | None) -> tuple[Broker, Callable[[str], str]]:
        # Loads what reads certificates, which local clients do without.
        from agent.cloud.identity import check_identity
        from agent.cloud.link import cloud_brokers, explainer

        aws_iot = self.config.aws_iot
        check_identity(aws_iot.certificates, dt.datetime.now(dt.UTC))
        return cloud_brokers(aws_iot, client_id or self.config.thing_name)[0], explainer(aws_iot)

    async def connect(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect, and from then on stay connected. Raises BrokerError when the broker does not answer in time."""
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

    # -- any topic ----------------------------------------------------------------------------------------------------

    async def publish(self, topic: str, message: Any) -> None:
        """Publish a message: bytes as they are, anything else as JSON. Returns when the broker has it."""
        if isinstance(message, bytes):
            await self.send(Outgoing(topic, message, content_type=None))
        else:
            await self.send(Outgoing(topic, msgspec.json.encode(message)))

    async def subscribe(self, topic: str, handler: TopicHandler) -> None:
        """Call `handler(topic, message)` for each message; a handler that raises is logged and stops nothing.

        What it returns, unless None, goes to the message's response topic, if that lies where answers may go.
        """
        await self.listen([topic], lambda message: self._dispatch(handler, message))

    async def request(self, topic: str, message: Any, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """Publish a message as JSON and wait for the response to it. Raises BrokerError when none comes in time."""
        payload = msgspec.json.encode(message)
        correlation = uuid.uuid4().bytes
        future = self._responses[correlation] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                if self._response_topic not in self._handlers:
                    await self.listen([self._response_topic], self._responded)
                await self.send(Outgoing(topic, payload, response_topic=self._response_topic, correlation=correlation))
                return await future
        except TimeoutError as error:
            raise BrokerError(
                f"no answer within {timeout_s:g} s", hint="is an agent running? arxplorer-agent run"
            ) from error
        finally:
            del self._responses[correlation]

    # -- what the agent does ------------------------------------------------------------------------------------------

    async def publish_search_request(self, query: str, filters: Mapping[str, Any] | None = None, **rest: Any) -> str:
        """Publish a question; its answer goes to the search results topic. Returns the request id."""
        request = self._envelope(query=query, filters=dict(filters or {}), **rest)
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
        """Ask, and wait for the answer. `thing_name` addresses one agent; `rest` are other fields of a request."""
        request = self._envelope(query=query, filters=dict(filters or {}), **rest)
        return await self._answer(self._requests_of(thing_name), request, timeout_s)

    async def ask_many(
        self,
        queries: Sequence[str | Mapping[str, Any]],
        filters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        thing_name: str | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        """Ask up to 16 questions in one message: the results are in `answer["batches"]`, in the same order.

        A question is a text, or an object with `query` and, where they are its own, `filters`, `offset` and `fields`.
        """
        request = self._envelope(queries=list(queries), filters=dict(filters or {}), **rest)
        return await self._answer(self._requests_of(thing_name), request, timeout_s)

    async def embed(
        self, texts: str | Sequence[str], *, kind: str = "query", timeout_s: float = ANSWER_TIMEOUT_S, **rest: Any
    ) -> dict[str, Any]:
        """The vector of each of up to 32 texts: `answer["embeddings"]`. `kind` is `query` or `document`."""
        request = self._envelope(text=texts if isinstance(texts, str) else list(texts), kind=kind, **rest)
        return await self._answer(self._topics.embeddings, request, timeout_s)

    async def update_corpus(
        self,
        *,
        add: Sequence[Mapping[str, Any]] = (),
        remove: Sequence[str] = (),
        timeout_s: float = ANSWER_TIMEOUT_S,
        **rest: Any,
    ) -> dict[str, Any]:
        """Add papers and remove arXiv ids; the answer counts `added`, `updated`, `unchanged`, `older`, `removed`."""
        request = self._envelope(add=list(add), remove=list(remove), **rest)
        return await self._answer(self._topics.corpus_updates, request, timeout_s)

    async def _answer(self, topic: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        answer: dict[str, Any] = await self.request(topic, request, timeout_s=timeout_s)
        return answer

    def _requests_of(self, thing_name: str | None) -> str:
        shared = self._topics.shared_requests
        return f"{shared}/{thing_name}" if thing_name else shared

    def _envelope(self, **fields: Any) -> dict[str, Any]:
        return {
            "client_id": self.client_id,
            "request_id": f"req-{uuid.uuid4().hex[:12]}",
            "timestamp": time.time(),
            **fields,
        }

    # -- what comes in ------------------------------------------------------------------------------------------------

    def _responded(self, message: Message) -> None:
        future = self._responses.get(message.correlation or b"")
        if future and not future.done():
            future.set_result(_content(message))
        message.acknowledge()

    def _dispatch(self, handler: TopicHandler, message: Message) -> None:
        task = asyncio.ensure_future(self._call(handler, message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _call(self, handler: TopicHandler, message: Message) -> None:
        try:
            result = handler(message.topic, _content(message))
            if inspect.isawaitable(result):
                result = await result
            if result is not None and message.response_topic is not None:
                topic = self._topics.answer_topic(message.response_topic, None, None)
                await self.send(Outgoing(topic, msgspec.json.encode(result), correlation=message.correlation))
        except Exception:
            log.exception("the handler of %s failed", message.topic)
        finally:
            message.acknowledge()


def _content(message: Message) -> Any:
    """The message as the handler wants it: decompressed, decoded; the raw bytes of what is no JSON."""
    payload = message.payload
    try:
        if message.content_type == GZIP:
            unpacking = zlib.decompressobj(GZIP_WBITS)
            payload = unpacking.decompress(payload, MAX_CONTENT_BYTES)
            if not unpacking.eof:
                return message.payload
        return msgspec.json.decode(payload)
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return message.payload
