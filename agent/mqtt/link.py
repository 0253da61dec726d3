"""A link to one broker that keeps itself up, for asyncio: connecting, losing, pausing, and why.

The library calls back on its own thread. A callback there may neither block nor raise, so it only takes what it
got into our hands and wakes the event loop; everything else happens on the loop.
"""

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from awscrt import mqtt5

from agent.errors import BrokerError
from agent.mqtt.breaker import REFUSING
from agent.mqtt.options import MAX_PACKET_BYTES, Callbacks, new_client
from agent.mqtt.packets import Broker, Message
from agent.mqtt.reasons import BUSY_PAUSE_S, advice
from agent.mqtt.sockets import disable_nagle

log = logging.getLogger(__name__)

ALARM_S: Final = 120.0
"""An alarm is over when a link has stood so long."""
STOP_TIMEOUT_S: Final = 1.5
LONG_WAIT: Final = 2 / 3
"""Of the longest wait between attempts: give or take a half, it is never exceeded."""


class Link(ABC):
    """What `Connection` stands on."""

    def __init__(self, broker: Broker, *, explain: Callable[[str], str] = str) -> None:
        """`explain` may put what kept a link from coming up into better words than the library's."""
        self.broker = broker
        self.connected: Final = asyncio.Event()
        self.failed_attempts = 0  # since the link last stood
        self.ended_with: int | None = None  # the reason code, if any, with which the broker ended a link that is down
        self._explain: Final = explain
        self._on_connected: list[Callable[[], None]] = []
        self._on_change: list[Callable[[], None]] = []
        self._changing: Final = asyncio.Lock()  # held while the link is stopped or made anew
        self._stopped: Final = asyncio.Event()
        self._stopping = True
        self._pausing = False
        self._pause_s = 0.0
        self._going_on: asyncio.TimerHandle | None = None  # after a pause
        self._in_vain = 0  # links lost while publishing, since a publish was last acknowledged
        self._session = 0  # counts lost links: an acknowledgement of an earlier link has no meaning on this one
        self._largest_packet = MAX_PACKET_BYTES  # that the broker takes
        self._last_failure: str | None = None
        self._alarm: str | None = None
        self._alarm_over: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop
        self._client: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    def _take(self, message: Message) -> None:
        """A message has arrived. On the library's thread."""

    @abstractmethod
    async def _resume(self, session: int) -> None:
        """A link has come up, the one that `_session` counts so: `_announce` it once it can be used."""

    @abstractmethod
    def _ended(self, code: int | None) -> bool:
        """The link has ended, with a reason code if the broker said one. On the library's thread.

        Returns whether publishes are under way, which the library would send again by itself.
        """

    @abstractmethod
    def _forget_session(self) -> None:
        """The broker knows nothing of earlier subscriptions, or is not to be trusted in that."""

    @property
    def client(self) -> Any:
        """The library's own client, for its clients of services; another one after `set_receive_maximum`."""
        return self._client

    @property
    def address(self) -> str:
        return f"{self.broker.host}:{self.broker.port}"

    @property
    def problems(self) -> list[str]:
        """What a person should do something about, in words."""
        return [f"{self.address}: {self._alarm}"] if self._alarm else []

    def start(self) -> None:
        """Begin to connect, and stay connected until `stop`. Needs a running event loop.

        Raises AwsCrtError when a file of the TLS settings cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        self._client = self._client or new_client(self.broker, self._callbacks())
        self._stopping = False
        self.failed_attempts = 0
        self._forget_session()
        self._client.start()

    def _callbacks(self) -> Callbacks:
        return Callbacks(
            publish=self._crt_publish,
            connected=lambda event: self._post(
                self._connected_to,
                self._session,
                event.connack_packet.session_present,
                event.negotiated_settings.maximum_packet_size_to_server,
            ),
            failed=lambda event: self._post(self._failed, event.exception, event.connack_packet),
            disconnected=self._crt_disconnected,
            stopped=lambda _: self._post(self._has_stopped),
        )

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait for the link. Raises BrokerError, with the last failure, when it does not come up in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.connected.wait()
        except TimeoutError as error:
            hint = "is mosquitto running, and is local_broker.host and .port right?"
            if self.broker.limits:
                hint = "is there a network, and is aws_iot.endpoint and .port right?"
            raise BrokerError(
                f"no MQTT broker at {self.address}: {self._last_failure or 'no answer'}", hint=hint
            ) from error

    async def stop(self) -> None:
        """Disconnect in order: the broker keeps the session and does not send the will."""
        async with self._changing:
            await self._end()

    async def _end(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        if self._going_on:
            self._going_on.cancel()
            self._going_on = None
        if not self._pausing:
            self._stopped.clear()
            self._client.stop(mqtt5.DisconnectPacket())
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._stopped.wait()
        except TimeoutError:
            log.warning("the link to %s did not close in time", self.address)
            self._client = None  # started before it has stopped, it would never come up again
        self._pausing = False
        for task in self._tasks:
            task.cancel()
        self.connected.clear()

    async def set_receive_maximum(self, messages: int) -> None:
        """Let the broker send so many unacknowledged messages; a link that stands is made anew for it.

        Raises AwsCrtError, and leaves the link as it is, when a file of the TLS settings cannot be used any more.
        """
        async with self._changing:
            broker = self.broker._replace(receive_maximum=messages)
            if broker == self.broker:
                return
            if self._stopping:
                self.broker, self._client = broker, None
                return
            client = new_client(broker, self._callbacks())
            await self._end()
            self.broker, self._client = broker, client
            self.start()

    def raise_alarm(self, words: str) -> None:
        """Name a problem until a link has stood for a while without it."""
        self._alarm = words
        if self._alarm_over:
            self._alarm_over.cancel()

    def renew(self) -> None:
        """Make the link anew and trust nothing of the old one: every subscription is asked for again."""
        self._forget_session()
        self._pause(0.0)

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call back on the loop after each connect, once subscriptions stand."""
        self._on_connected.append(callback)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back on the loop whenever the link came up or was lost, and when an attempt failed."""
        self._on_change.append(callback)

    def tell_change(self) -> None:
        for callback in self._on_change:
            callback()

    def forget_client(self) -> None:
        """Read the files of the TLS settings anew at the next start. Only while the link is stopped."""
        self._client = None

    # -- on the library's thread ------------------------------------------------------------------------------

    def _post(self, callback: Callable[..., Any], *arguments: Any) -> None:
        """From any thread to the loop; after the loop has closed there is nobody left to tell."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            log.debug("event after the end of the loop dropped")

    def _crt_disconnected(self, event: Any) -> None:
        self._session += 1
        packet = event.disconnect_packet
        self._post(self._disconnected, event.exception, packet, self._ended(packet.reason_code if packet else None))

    def _crt_publish(self, event: Any) -> None:
        take = event.acquire_publish_acknowledgement_control
        control = take() if take else None
        session = self._session

        def lost() -> bool:
            return session != self._session

        def acknowledge() -> None:
            # Once stop() was called, an acknowledgement would keep the link from closing.
            if control is not None and not lost() and not (self._stopping or self._pausing):
                try:
                    self._client.invoke_publish_acknowledgement(control)
                except Exception as error:  # noqa: BLE001  a link that just died; the broker delivers again
                    log.debug("acknowledgement not sent: %s", error)

        self._take(Message(event.publish_packet, time.monotonic(), acknowledge, lost))

    # -- on the loop ------------------------------------------------------------------------------------------

    def _connected_to(self, session: int, session_present: bool, largest_packet: int) -> None:
        if not session_present:
            self._forget_session()
        if session != self._session:
            return  # it is gone again
        self.ended_with = None
        self._largest_packet = largest_packet
        disable_nagle(self.broker.port)
        task = asyncio.ensure_future(self._resume(session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _announce(self) -> None:
        # Said only now: whoever reads it may count on being heard.
        log.info("connected to %s as %s", self.address, self.broker.client_id)
        self._last_failure = None
        self.failed_attempts = 0
        if self._alarm:
            self._alarm_over = self._loop.call_later(ALARM_S, self._end_alarm)
        self.connected.set()
        for callback in self._on_connected:
            callback()
        self.tell_change()

    def _failed(self, exception: Exception, connack: Any) -> None:
        if self._stopping or self._pausing:
            return
        self.failed_attempts += 1
        reason = f"refused, {self._heeded(connack.reason_code)}" if connack else self._explain(str(exception))
        if reason != self._last_failure:  # say it once, not at every attempt
            log.warning("cannot connect to %s: %s", self.address, reason)
        self._last_failure = reason
        self.tell_change()
        least, most = self.broker.reconnect_ms
        if least * 2 ** min(self.failed_attempts, 32) >= most:
            # From here on the library waits for exactly `most`, in each of its modes of jitter (awscrt 0.36.1).
            self._pause(most / 1e3 * LONG_WAIT)

    def _disconnected(self, exception: Exception | None, packet: Any, publishing: bool) -> None:
        self.connected.clear()
        self.ended_with = packet.reason_code if packet else None
        if self._alarm_over:
            self._alarm_over.cancel()
        if self._stopping or self._pausing:
            return
        if publishing and packet and packet.reason_code in REFUSING:
            # It may be one message that is not welcome, not we: which one has to be found out, so not too slowly.
            self._pause(min(BUSY_PAUSE_S, self.broker.reconnect_ms[1] / 1e3))
        log.warning("link to %s lost: %s", self.address, self._heeded(packet.reason_code) if packet else exception)
        if publishing:
            # Stopped, the library gives up what it has under way: whose message it is decides what becomes of it. It
            # forgets its back-off, too, so where publishing ends the link again and again, that is ours to do.
            least, most = (limit / 1e3 for limit in self.broker.reconnect_ms)
            self._pause(min(least / 2 * 2 ** min(self._in_vain, 32), most * LONG_WAIT))
            self._in_vain += 1
        self.tell_change()

    def _heeded(self, code: int) -> str:
        """What a reason code means, in words, after doing what follows from it."""
        what = advice(code)
        words = f"0x{code:02X}: {what.meaning}"
        if what.alarm:
            self.raise_alarm(words)
        if what.pause_s:
            self._pause(min(what.pause_s, self.broker.reconnect_ms[1] / 1e3))
        return words

    def _end_alarm(self) -> None:
        self._alarm = None
        self.tell_change()

    def _pause(self, about_s: float) -> None:
        """End the link, or the attempts at one, and begin anew after that time, give or take a half."""
        if not self._stopping and not self._pausing:
            self._pausing = True
            self._pause_s = about_s * random.uniform(0.5, 1.5)  # noqa: S311  devices should not come back all at once
            self.connected.clear()
            self._stopped.clear()
            self._client.stop(mqtt5.DisconnectPacket())  # said in order, or the broker would publish the last will

    def _has_stopped(self) -> None:
        self._stopped.set()
        # Not before: told to stop and to start in one go, the library does neither.
        if self._pausing and not self._stopping:
            self._going_on = self._loop.call_later(self._pause_s, self._go_on)

    def _go_on(self) -> None:
        self._pausing = False
        self._going_on = None
        self._client.start()
