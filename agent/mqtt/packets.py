"""What a connection sends and receives, and how the library wants it."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

from awscrt import io, mqtt5

from agent.errors import BrokerError
from agent.protocol.limits import Limits
from agent.protocol.topics import AgentTopics, topic_fits, valid_filter

SESSION_EXPIRY_S: Final = 7 * 24 * 3_600
"""As long as AWS IoT Core allows: what was asked while a device was away is answered when it is back."""

FINAL_REFUSALS: Final = frozenset(
    (
        mqtt5.PubackReasonCode.NOT_AUTHORIZED,
        mqtt5.PubackReasonCode.TOPIC_NAME_INVALID,
        mqtt5.PubackReasonCode.PAYLOAD_FORMAT_INVALID,
    )
)
"""Asking again would not help; every other refusal may pass."""


class Outgoing(NamedTuple):
    """A message to publish; one with `expiry_s` is worth nothing to who gets it later."""

    topic: str
    payload: bytes
    retain: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    content_type: str | None = "application/json"
    user_properties: tuple[tuple[str, str], ...] = ()
    expiry_s: int | None = None


class Tls(NamedTuple):
    """Files of a connection that uses TLS, as paths; with a certificate and its key it is mutual."""

    ca_cert: str
    cert_file: str | None = None
    private_key: str | None = None
    alpn: str | None = None


class Broker(NamedTuple):
    """Where to connect, and as whom; without `tls` in plain TCP. `topics` are an agent's on this broker."""

    host: str
    port: int
    client_id: str
    username: str | None = None
    password: str | None = None
    tls: Tls | None = None
    keep_alive_s: int = 45
    receive_maximum: int = 32
    session_expiry_s: int = SESSION_EXPIRY_S
    will: Outgoing | None = None
    qos: Literal[0, 1] = 1
    # The least and the most that the library waits between attempts, a random part of a doubling time.
    reconnect_ms: tuple[int, int] = (100, 800)
    limits: Limits | None = None  # what the service allows beyond MQTT itself
    topics: AgentTopics | None = None
    share_group: str | None = None  # of the subscription to requests that go to any agent


def _nothing() -> None:
    """What is left to do for a message that was acknowledged."""


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()


class Message:
    """A received message. It counts as taken only once `acknowledge` was called."""

    __slots__ = (
        "_acknowledge",
        "_lost",
        "content_type",
        "correlation",
        "expires",
        "payload",
        "received",
        "response_topic",
        "topic",
    )

    def __init__(self, packet: Any, received: float, acknowledge: Callable[[], None], lost: Callable[[], bool]) -> None:
        self.topic: str = packet.topic
        self.payload: bytes = packet.payload or b""
        self.response_topic: str | None = packet.response_topic
        self.content_type: str | None = packet.content_type
        self.correlation: bytes | None = packet.correlation_data_bytes
        self.received: float = received  # time.monotonic()
        expiry: int | None = packet.message_expiry_interval_sec
        # Brokers count down in whole seconds and may deliver with 0 left.
        self.expires: float | None = None if expiry is None else received + max(expiry, 1)
        self._acknowledge = acknowledge
        self._lost = lost

    @property
    def size(self) -> int:
        """Bytes that it takes while it waits."""
        return len(self.payload) + len(self.correlation or b"") + len(self.response_topic or "")

    @property
    def key(self) -> bytes:
        """The same for the same request, delivered or sent again: of what is asked, by whom, to be answered where."""
        return _digest(self.content, (self.response_topic or "").encode(), self.correlation or b"")

    @property
    def content(self) -> bytes:
        """The same for what makes the same work: topic and payload."""
        return _digest(self.topic.encode(), self.payload)

    @property
    def lost(self) -> bool:
        """Whether the link it came by is gone: the broker will deliver it again by the next one."""
        return self._lost()

    def acknowledge(self) -> None:
        """Tell the broker that this message is done with; once is enough, and more is nothing.

        After a lost link it will be delivered again instead.
        """
        acknowledge, self._acknowledge = self._acknowledge, _nothing
        acknowledge()


def publish_packet(message: Outgoing, qos: int = 1) -> Any:
    return mqtt5.PublishPacket(
        topic=message.topic,
        payload=message.payload,
        qos=mqtt5.QoS(qos),
        retain=message.retain,
        response_topic=message.response_topic,
        correlation_data_bytes=message.correlation,
        content_type=message.content_type,
        message_expiry_interval_sec=message.expiry_s,
        user_properties=[mqtt5.UserProperty(name=name, value=value) for name, value in message.user_properties],
        # No payload format indicator: with it the library refuses a text that holds U+007F, as some abstracts do.
    )


def subscribe_packets(filters: Sequence[str], qos: int, limits: Limits | None) -> list[Any]:
    """SUBSCRIBE packets for these filters, as few as allowed. Raises BrokerError for what is no filter."""
    wrong = [name for name in filters if not _fits(name, limits, is_filter=True)]
    if wrong:
        raise BrokerError(
            f"{', '.join(map(repr, wrong))} is no topic filter that MQTT or the broker allows", final=True
        )
    subscriptions = [
        mqtt5.Subscription(
            topic_filter=name,
            qos=mqtt5.QoS(qos),
            # A retained request would be answered again at every connect.
            retain_handling_type=mqtt5.RetainHandlingType.DONT_SEND,
        )
        for name in filters
    ]
    size = limits.filters_per_subscribe if limits else max(1, len(subscriptions))
    return [
        mqtt5.SubscribePacket(subscriptions=subscriptions[first : first + size])
        for first in range(0, len(subscriptions), size)
    ]


def refusal(message: Outgoing, limits: Limits) -> str | None:
    """Why the service would end the connection over a message (AWS IoT Core does); None if it takes it."""
    if not _fits(message.topic, limits):
        return f"a topic has at most {limits.topic_bytes} bytes and {limits.topic_slashes} slashes: {message.topic!r}"
    if len(message.payload) > limits.payload_bytes:
        return f"a message of {len(message.payload)} bytes; at most {limits.payload_bytes} are taken"
    return None


def _fits(topic: str, limits: Limits | None, *, is_filter: bool = False) -> bool:
    return topic_fits(topic, limits, is_filter=is_filter) if limits else valid_filter(topic)


def tls_context(tls: Tls) -> Any:
    """Raises OSError and AwsCrtError when a file cannot be read or does not hold what it should."""
    if tls.cert_file and tls.private_key:
        options = io.TlsContextOptions.create_client_with_mtls_from_path(tls.cert_file, tls.private_key)
    else:
        options = io.TlsContextOptions()
    options.override_default_trust_store_from_path(None, tls.ca_cert)
    options.min_tls_ver = io.TlsVersion.TLSv1_2  # the library's own default went down to 1.1
    if tls.alpn:
        options.alpn_list = [tls.alpn]
    return io.ClientTlsContext(options)
