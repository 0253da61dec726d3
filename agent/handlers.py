"""What a message asks for, done: a message in, its answer out. Runs in workers; the bridge does the transport."""

import gzip
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal, NamedTuple

from agent.corpus.updates import LiveUpdates
from agent.domain import SearchBatch
from agent.errors import AgentError, DamagedPapersError, NotReadyError, RequestError, ShortageError
from agent.mqtt.packets import Message, Outgoing
from agent.protocol.answers import (
    Encoded,
    compressed,
    encode_batch,
    encode_embeddings,
    encode_error,
    encode_search_result,
    encode_update_report,
)
from agent.protocol.limits import MAX_MESSAGE_BYTES
from agent.protocol.requests import (
    Envelope,
    parse_corpus_update,
    parse_embedding_request,
    parse_search_request,
    read_envelope,
)
from agent.protocol.topics import AgentTopics
from agent.search.api import SearchAPI

log = logging.getLogger(__name__)

GZIP_PROPERTY: Final = ("content-encoding", "gzip")


class Answer(NamedTuple):
    """What goes back for a message (None: nothing does), and what it counts as.

    One that only asks to send again, later, is `passing`: it is not worth keeping.
    """

    outgoing: Outgoing | None
    outcome: Literal["answers", "errors", "updates", "repeats"]
    passing: bool = False


Room = Callable[[str, bytes | None], int]
"""Bytes that an answer on a topic, with correlation data, may have on this connection."""


class Handlers:
    """Answers every kind of message. Methods never raise; a bad message becomes an error reply."""

    def __init__(self, api: SearchAPI, updates: LiveUpdates, topics: AgentTopics, room: Room) -> None:
        self._api: Final = api
        self._updates: Final = updates
        self._topics: Final = topics
        self._room: Final = room
        self.kinds: Final[dict[str, Callable[[Message], Answer]]] = {
            topics.shared_requests: self.search,
            topics.own_requests: self.search,
            topics.embeddings: self.embed,
            topics.corpus_updates: self.update,
        }

    def search(self, message: Message) -> Answer:
        return self._answered(message, self._search)

    def embed(self, message: Message) -> Answer:
        return self._answered(message, self._embed)

    def update(self, message: Message) -> Answer:
        return self._answered(message, self._update)

    def refusal(self, message: Message, error: RequestError, *, on_results: bool = False) -> Answer:
        """The error reply, where the answer would have gone; on the results topic where that may not be."""
        envelope = read_envelope(message.payload)
        topic = self._topics.results_for(envelope.client_id)
        if not on_results:
            default = self._topics.embeddings_response if message.topic == self._topics.embeddings else None
            with suppress(RequestError):
                topic = self._topic(message, envelope, default)
        payload = encode_error(error, envelope, processed_by=self._api.config.thing_name, timestamp=time.time())
        return Answer(_outgoing(message, topic, Encoded(payload)), "errors", passing=error.code == "overloaded")

    def refused_answer(self, answer: bytes, correlation: bytes | None) -> Outgoing:
        """Say on the results topic that an answer could not be delivered, of which only the bytes are left."""
        with suppress(OSError):  # it is not compressed
            answer = gzip.decompress(answer)
        envelope = read_envelope(answer)
        error = RequestError("invalid_request", "the broker refuses messages on the topic asked for")
        payload = encode_error(error, envelope, processed_by=self._api.config.thing_name, timestamp=time.time())
        return Outgoing(self._topics.results_for(envelope.client_id), payload, correlation=correlation)

    def refused_by_broker(self, message: Message) -> Answer:
        """Say on the results topic that the broker does not let us answer on the topic asked for."""
        field = "response_topic" if message.response_topic is not None else "reply_to"
        error = RequestError("invalid_request", f"{field}: the broker refuses messages on this topic", field=field)
        return self.refusal(message, error, on_results=True)

    # -- the kinds of messages --------------------------------------------------------------------------------

    def _search(self, message: Message) -> Answer:
        started = time.perf_counter()
        queue_ms = (time.monotonic() - message.received) * 1e3
        request = parse_search_request(message.payload)
        envelope = Envelope(request.request_id, request.client_id, request.reply_to)
        topic = self._topic(message, envelope)
        limit = min(MAX_MESSAGE_BYTES, self._room(topic, message.correlation))

        def clock() -> float:
            return (time.perf_counter() - started) * 1e3

        if isinstance(request, SearchBatch):
            results = [self._api.answer(one, queue_ms=queue_ms) for one in request.requests]
            encoded = encode_batch(results, envelope, limit, accepts_gzip=request.gzip, clock=clock)
        else:
            result = self._api.answer(request, queue_ms=queue_ms)
            encoded = encode_search_result(result, limit, accepts_gzip=request.gzip, clock=clock)
        return Answer(_outgoing(message, topic, encoded), "answers")

    def _embed(self, message: Message) -> Answer:
        request = parse_embedding_request(message.payload)
        envelope = Envelope(request.request_id, request.client_id, request.reply_to)
        topic = self._topic(message, envelope, default=self._topics.embeddings_response)
        embedder = self._api.engine.embedder
        if embedder is None:
            raise NotReadyError("embeddings need a model, and none is installed")
        query = request.kind == "query"
        vectors = [embedder.query(t) for t in request.texts] if query else embedder.documents(request.texts)
        payload = encode_embeddings(
            [vector.tolist() for vector in vectors],
            envelope,
            model=embedder.manifest.name,
            dimensions=embedder.dimensions,
            timestamp=time.time(),
        )
        encoded = compressed(payload, accepts_gzip=request.gzip)
        limit = min(MAX_MESSAGE_BYTES, self._room(topic, message.correlation))
        if len(encoded.payload) > limit:
            raise RequestError(
                "payload_too_large",
                f"text: the answer would have {len(encoded.payload)} bytes, at most {limit} can be sent; ask for fewer",
                field="text",
            )
        return Answer(_outgoing(message, topic, encoded), "answers")

    def _update(self, message: Message) -> Answer:
        update = parse_corpus_update(message.payload)
        envelope = Envelope(update.request_id, update.client_id, update.reply_to)
        wanted = message.response_topic is not None or update.reply_to is not None
        topic = self._topic(message, envelope)
        counts = self._updates.apply(update)
        log.info("corpus update: %s", ", ".join(f"{count} {name}" for name, count in counts.items() if count))
        if not wanted:
            return Answer(None, "updates")
        report = encode_update_report(
            counts,
            envelope,
            corpus_version=self._api.engine.corpus_version,
            processed_by=self._api.config.thing_name,
            timestamp=time.time(),
        )
        return Answer(_outgoing(message, topic, Encoded(report)), "updates")

    # -- what they share --------------------------------------------------------------------------------------

    def _answered(self, message: Message, handle: Callable[[Message], Answer]) -> Answer:
        try:
            return handle(message)
        except RequestError as error:
            return self.refusal(message, error)
        except (NotReadyError, DamagedPapersError, ShortageError) as error:  # the same may work later
            return self.refusal(message, RequestError("not_ready", error.message))
        except AgentError as error:
            log.error("a request failed: %s", error.message)  # noqa: TRY400  the message says it all
            return self.refusal(message, RequestError("internal", f"the agent is in trouble: {error.message}"))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a native library's panic is no Exception, and must not leave a request unanswered
            log.exception("a request failed")
            return self.refusal(message, RequestError("internal", "the request failed; see the agent's log"))

    def _topic(self, message: Message, envelope: Envelope, default: str | None = None) -> str:
        return self._topics.answer_topic(message.response_topic, envelope.reply_to, envelope.client_id, default)


def _outgoing(message: Message, topic: str, encoded: Encoded) -> Outgoing:
    content_type, properties = ("application/gzip", (GZIP_PROPERTY,)) if encoded.gzipped else ("application/json", ())
    return Outgoing(
        topic,
        encoded.payload,
        correlation=message.correlation,
        content_type=content_type,
        user_properties=properties,
    )
