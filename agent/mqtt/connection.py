"""One MQTT 5 connection, for asyncio.

The library calls back on its own thread. A callback there may neither block nor raise, so it only takes what it
got into our hands and wakes the event loop; everything else happens on the loop.

A received message is acknowledged by the receiver, when it is done with it. Publishes are never queued while the
link is down: they fail at once, and whoever wanted them decides what then.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cache
from typing import Any, Final

from awscrt import io, mqtt5

from agent.errors import BrokerError
from agent.mqtt.packets import FINAL_REFUSALS, Broker, Message, Outgoing, publish_packet, tls_context
from agent.mqtt.sockets import disable_nagle
from agent.protocol.topics import topic_matches, valid_filter

log = logging.getLogger(__name__)

MAX_PACKET_BYTES: Final = 256 * 1024
CONNACK_TIMEOUT_MS: Final = 10_000
PING_TIMEOUT_MS: Final = 10_000
MIN_RECONNECT_MS: Final = 100
MAX_RECONNECT_MS: Final = 1_000
ACK_TIMEOUT_S: Final = 30
RESUBSCRIBE_S: Final = 5.0
STOP_TIMEOUT_S: Final = 1.5
PUBLISH_HEADER_BYTES: Final = 128
"""More than a PUBLISH of ours takes beside topic, correlation data and payload (MQTT 5.0, section 3.3)."""


class _UnpublishableError(Exception):
    """The library refuses to send such a message at all."""


Publishing = Future[Any]
"""A publish under way: done when the broker has acknowledged it, or when it failed."""

Handler = Callable[[Message], None]


@cache
def _bootstrap() -> Any:
    """One thread of the library for all connections of the process."""
    group = io.EventLoopGroup(1)
    return io.ClientBootstrap(group, io.DefaultHostResolver(group))


class Connection:
    """A connection that keeps itself up: it reconnects, and subscribes again where the broker forgot the session."""

    def __init__(self, broker: Broker) -> None:
        self.broker: Final = broker
        self.connected: Final = asyncio.Event()
        self._handlers: dict[str, Handler] = {}
        self._on_arrival: set[str] = set()  # filters whose handler is called on the library's thread
        self._on_connected: list[Callable[[], None]] = []
        self._arrived: deque[Message] = deque()
        self._waking = False
        self._stopped: Final = asyncio.Event()
        self._stopping = False
        self._session = 0  # counts lost links: an acknowledgement of an earlier link has no meaning on this one
        self._subscribed_filters: set[str] = set()
        self._last_failure: str | None = None
        self._largest_packet = MAX_PACKET_BYTES  # that the broker takes
        self._loop: asyncio.AbstractEventLoop
        self._client: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, and stay connected until `stop`. Needs a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._stopping = self._waking = False
        self._stopped.clear()
        self._subscribed_filters.clear()
        self._client = mqtt5.Client(self._options())
        self._client.start()

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait for the link. Raises BrokerError, with the last failure, when it does not come up in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.connected.wait()
        except TimeoutError as error:
            reason = self._last_failure or "no answer"
            raise BrokerError(
                f"no MQTT broker at {self.broker.host}:{self.broker.port}: {reason}",
                hint="is mosquitto running, and is local_broker.host and .port right?",
            ) from error

    async def stop(self) -> None:
        """Disconnect in order: the broker keeps the session and does not send the will."""
        if self._client is None or self._stopping:
            return
        self._stopping = True
        self._client.stop(mqtt5.DisconnectPacket())
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._stopped.wait()
        except TimeoutError:
            log.warning("the link to %s did not close in time", self.broker.host)
        for task in self._tasks:
            task.cancel()
        self._arrived.clear()
        self.connected.clear()
        self._client = None

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call back on the loop after each connect, once subscriptions stand."""
        self._on_connected.append(callback)

    # -- messages ---------------------------------------------------------------------------------------------

    async def listen(self, filters: Sequence[str], handler: Handler, *, on_arrival: bool = False) -> None:
        """Give messages of these topic filters to `handler`, on the loop, now and after each reconnect.

        With `on_arrival` it is called on the library's thread instead, which saves a change of threads, and may only
        hand the message on: a handler that blocks there holds up every connection of the process.

        Raises BrokerError when the broker, or MQTT itself, does not allow a filter; it is forgotten then.
        """
        if on_arrival:
            self._on_arrival |= set(filters)
        self._handlers |= dict.fromkeys(filters, handler)
        try:
            subscribe = self._subscribe_packet(filters)
            if self.connected.is_set():
                await self._subscribe(subscribe)
        except BrokerError as error:
            if error.final:
                for name in filters:
                    self._handlers.pop(name, None)
            raise

    async def send(self, message: Outgoing) -> None:
        """Publish and wait until the broker has it. Raises BrokerError when it has not, or refuses it."""
        publishing = self.publish_soon(message)
        await _settled(publishing)
        error = self.verdict(message.topic, publishing)
        if error:
            raise error

    def largest_payload(self, topic: str, correlation: bytes | None) -> int:
        """Bytes that a message to the broker may carry; what is larger it would drop, with the link."""
        return max(0, self._largest_packet - PUBLISH_HEADER_BYTES - len(topic.encode()) - len(correlation or b""))

    def publish_soon(self, message: Outgoing) -> Publishing:
        """Hand a message to the library, from any thread; `verdict` tells what became of it once it is done."""
        client = self._client
        if client is None:
            refused: Publishing = Future()
            refused.set_exception(ConnectionError("not connected"))
            return refused
        try:
            publishing: Publishing = client.publish(publish_packet(message))
        except Exception as error:  # noqa: BLE001  the library refuses what no MQTT packet may hold
            publishing = Future()
            publishing.set_exception(_UnpublishableError(str(error)))
        return publishing

    def verdict(self, topic: str, publishing: Publishing) -> BrokerError | None:
        """What kept a message that was handed over from reaching the broker; None if it has it."""
        failure = publishing.exception()
        if failure:
            return BrokerError(
                f"publishing on {topic!r} to {self.broker.host}:{self.broker.port} failed: {failure}",
                final=isinstance(failure, _UnpublishableError),
            )
        code = publishing.result().puback.reason_code
        if code >= mqtt5.PubackReasonCode.UNSPECIFIED_ERROR:
            return BrokerError(f"the broker refused a message on {topic!r}: {code.name}", final=code in FINAL_REFUSALS)
        return None

    # -- inside -----------------------------------------------------------------------------------------------

    def _options(self) -> Any:
        broker = self.broker
        connect = mqtt5.ConnectPacket(
            client_id=broker.client_id,
            keep_alive_interval_sec=broker.keep_alive_s,
            username=broker.username,
            password=broker.password,
            session_expiry_interval_sec=broker.session_expiry_s,
            receive_maximum=broker.receive_maximum,
            maximum_packet_size=MAX_PACKET_BYTES,
            will=publish_packet(broker.will) if broker.will else None,
        )
        persistent = mqtt5.ClientSessionBehaviorType.REJOIN_ALWAYS
        return mqtt5.ClientOptions(
            host_name=broker.host,
            port=broker.port,
            bootstrap=_bootstrap(),
            tls_ctx=tls_context(broker.tls) if broker.tls else None,
            socket_options=io.SocketOptions(),
            connect_options=connect,
            session_behavior=persistent if broker.session_expiry_s else mqtt5.ClientSessionBehaviorType.CLEAN,
            # The library's own queue is unbounded memory and is dropped by stop().
            offline_queue_behavior=mqtt5.ClientOperationQueueBehaviorType.FAIL_ALL_ON_DISCONNECT,
            extended_validation_and_flow_control_options=mqtt5.ExtendedValidationAndFlowControlOptions.NONE,
            retry_jitter_mode=mqtt5.ExponentialBackoffJitterMode.FULL,
            min_reconnect_delay_ms=MIN_RECONNECT_MS,
            max_reconnect_delay_ms=MAX_RECONNECT_MS,
            min_connected_time_to_reset_reconnect_delay_ms=5_000,
            ping_timeout_ms=min(PING_TIMEOUT_MS, broker.keep_alive_s * 500),
            connack_timeout_ms=CONNACK_TIMEOUT_MS,
            ack_timeout_sec=ACK_TIMEOUT_S,
            on_publish_callback_fn=self._crt_publish,
            on_lifecycle_event_connection_success_fn=lambda event: self._post(
                self._connected_to,
                event.connack_packet.session_present,
                event.negotiated_settings.maximum_packet_size_to_server,
            ),
            on_lifecycle_event_connection_failure_fn=lambda event: self._post(self._failed, event.exception),
            on_lifecycle_event_disconnection_fn=self._crt_disconnected,
            on_lifecycle_event_stopped_fn=lambda _: self._post(self._stopped.set),
            # A metrics user name would make a local broker apply its access rules to it.
            disable_metrics=True,
        )

    def _crt_publish(self, event: Any) -> None:
        """On the library's thread: take the message and its acknowledgement, hand them on, nothing else."""
        take = event.acquire_publish_acknowledgement_control
        message = self._message(event.publish_packet, take() if take else None)
        if message.topic in self._on_arrival:
            self._handlers[message.topic](message)
            return
        self._arrived.append(message)
        if not self._waking:
            self._waking = True
            self._post(self._drain)

    def _crt_disconnected(self, event: Any) -> None:
        self._session += 1
        self._post(self._disconnected, event.exception)

    def _post(self, callback: Callable[..., None], *arguments: Any) -> None:
        """From the library's thread to the loop; after the loop has closed there is nobody left to tell."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            log.debug("event after the end of the loop dropped")

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

    def _message(self, packet: Any, control: Any) -> Message:
        session = self._session

        def lost() -> bool:
            return session != self._session

        def acknowledge() -> None:
            # Once stop() was called, an acknowledgement would keep the link from closing.
            if control is not None and not lost() and not self._stopping:
                try:
                    self._client.invoke_publish_acknowledgement(control)
                except Exception as error:  # noqa: BLE001  a link that just died; the broker delivers again
                    log.debug("acknowledgement not sent: %s", error)

        return Message(packet, time.monotonic(), acknowledge, lost)

    def _connected_to(self, session_present: bool, largest_packet: int) -> None:
        self._largest_packet = largest_packet
        disable_nagle(self.broker.port)
        self._last_failure = None
        if not session_present:
            self._subscribed_filters.clear()
        task = asyncio.ensure_future(self._resume())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resume(self) -> None:
        """Subscribe to what the broker does not know, trying again for as long as this link stands."""
        session = self._session
        while session == self._session and not self._stopping:
            try:
                missing = [name for name in self._handlers if name not in self._subscribed_filters]
                if missing:
                    await self._subscribe(self._subscribe_packet(missing))
            except BrokerError as error:
                log.error("%s; trying again", error.message)  # noqa: TRY400  the message says it all
                await asyncio.sleep(RESUBSCRIBE_S)
                continue
            if session == self._session:
                # Said only now: whoever reads it may count on being heard.
                log.info("connected to %s:%d as %s", self.broker.host, self.broker.port, self.broker.client_id)
                self.connected.set()
                for callback in self._on_connected:
                    callback()
            return

    @staticmethod
    def _subscribe_packet(filters: Sequence[str]) -> Any:
        wrong = [name for name in filters if not valid_filter(name)]
        if wrong:
            raise BrokerError(f"{', '.join(map(repr, wrong))} is no topic filter that MQTT allows", final=True)
        subscriptions = [
            mqtt5.Subscription(
                topic_filter=name,
                qos=mqtt5.QoS.AT_LEAST_ONCE,
                # A retained request would be answered again at every connect.
                retain_handling_type=mqtt5.RetainHandlingType.DONT_SEND,
            )
            for name in filters
        ]
        return mqtt5.SubscribePacket(subscriptions=subscriptions)

    async def _subscribe(self, packet: Any) -> None:
        filters = [subscription.topic_filter for subscription in packet.subscriptions]
        try:
            future: Future[Any] = self._client.subscribe(packet)
            await _settled(future)
            granted = future.result()
        except Exception as error:
            raise BrokerError(f"subscribing to {', '.join(filters)} failed: {error}") from error
        codes = dict(zip(filters, granted.reason_codes, strict=True))
        refused = [
            f"{n} ({code.name})" for n, code in codes.items() if code >= mqtt5.SubackReasonCode.UNSPECIFIED_ERROR
        ]
        self._subscribed_filters |= {n for n, code in codes.items() if code < mqtt5.SubackReasonCode.UNSPECIFIED_ERROR}
        if refused:
            raise BrokerError(f"the broker refused the subscription to {', '.join(refused)}", final=True)

    def _failed(self, exception: Exception) -> None:
        reason = str(exception)
        if reason != self._last_failure:  # say it once, not at every attempt
            log.warning("cannot connect to %s:%d: %s", self.broker.host, self.broker.port, reason)
        self._last_failure = reason

    def _disconnected(self, exception: Exception | None) -> None:
        self.connected.clear()
        if not self._stopping:
            log.warning("link to %s:%d lost: %s", self.broker.host, self.broker.port, exception)


async def _settled(future: Future[Any]) -> None:
    """Wait until the library is done with it. Cancelled, the wait ends but not the future: the library owns it."""
    await asyncio.shield(asyncio.gather(asyncio.wrap_future(future), return_exceptions=True))
