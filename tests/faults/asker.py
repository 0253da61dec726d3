"""The independent client: paho, another code base than the agent's, which asks again until it is answered."""

import itertools
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import ClassVar, Final

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from faults.account import Account, Request
from faults.questions import Question

RESEND_S: Final = 4.0
WINDOW: Final = 40
"""With more under way than this a client that asks again only adds to what keeps the others waiting."""
TICK_S: Final = 0.03
STUCK_S: Final = 5.0
"""Without a PUBACK for so long the link is taken for broken: MQTT resends on the next connection only."""
SESSION_EXPIRY_S: Final = 300
RECONNECT_S: Final = 1
UNDER_WAY: Final = 20
"""Publishes without PUBACK that mosquitto allows a client, and paho does not ask for."""


class Asker:
    """Asks on one broker, and keeps the account of it."""

    _number: ClassVar = itertools.count(1)  # of the next one: a late answer to an earlier one is no answer to it

    def __init__(
        self,
        name: str,
        port: int,
        topics: tuple[str, ...],
        *,
        host: str = "127.0.0.1",
        tls: Mapping[str, str] | None = None,
        resend_s: float = RESEND_S,
        window: int = WINDOW,
    ) -> None:
        """`topics` take turns; `tls` are the files of a mutual TLS connection: ca, cert, key.

        So many as `window` allows are sent before the answers to earlier ones have come.
        """
        self.name: Final = name
        self._topics: Final = topics
        self._resend_s: Final = resend_s
        self._window: Final = window
        self._answers: Final = f"arxplorer/responses/{name}"
        self._account: Final = Account()
        self._guard: Final = threading.Lock()
        self._prefix: Final = f"{name}-{next(self._number)}"
        self._asked = 0
        self._subscribed: Final = threading.Event()
        self._ending: Final = threading.Event()
        self._published: deque[tuple[paho.MQTTMessageInfo, float]] = deque()  # without PUBACK, and since when
        self._client: Final = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
        client = self._client
        if tls:
            client.tls_set(tls["ca"], tls["cert"], tls["key"])
        client.reconnect_delay_set(RECONNECT_S, RECONNECT_S)
        client.max_inflight_messages_set(UNDER_WAY)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = self._received
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        client.connect_async(host, port, clean_start=False, properties=properties)
        self._sender: Final = threading.Thread(target=self._send, name=f"asker {name}", daemon=True)

    def start(self) -> "Asker":
        self._client.loop_start()
        self._sender.start()
        return self

    def stop(self) -> None:
        self._ending.set()
        self._sender.join()
        self._client.disconnect()
        self._client.loop_stop()

    def ask(self, question: Question) -> None:
        with self._guard:
            self._asked += 1
            self._account.ask(f"{self._prefix}-{self._asked}", question)

    @property
    def ready(self) -> bool:
        return self._subscribed.is_set()

    @property
    def open(self) -> int:
        """Requests without an answer."""
        return len(self._account.open)

    def account(self) -> Account:
        return self._account

    # -- paho's thread --------------------------------------------------------------------------------------------

    def _connected(self, client: paho.Client, *_: object) -> None:
        client.subscribe(self._answers, qos=1)

    def _disconnected(self, *_: object) -> None:
        self._subscribed.clear()

    def _received(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        correlation = getattr(message.properties, "CorrelationData", None)
        with self._guard:
            self._account.answered(correlation, message.payload, time.monotonic())

    # -- the sender's ---------------------------------------------------------------------------------------------

    def _send(self) -> None:
        while not self._ending.wait(TICK_S):
            if not self._subscribed.is_set():
                continue
            now = time.monotonic()
            self._published = deque(one for one in self._published if not one[0].is_published())
            if self._published and now - self._published[0][1] > STUCK_S:
                self._break_link()
                continue
            with self._guard:
                due = self._account.due(now, self._resend_s, self._window)[: UNDER_WAY - len(self._published)]
                for request in due:
                    self._account.sent(request, now)
            for request in due:
                self._publish(request)

    def _publish(self, request: Request) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = self._answers
        properties.CorrelationData = request.correlation
        topic = self._topics[zlib.crc32(request.correlation) % len(self._topics)]
        sent = self._client.publish(topic, request.question.payload(request.id), qos=1, properties=properties)
        if sent.rc == paho.MQTT_ERR_SUCCESS:
            self._published.append((sent, time.monotonic()))

    def _break_link(self) -> None:
        """As a client does that believes its link dead. paho connects again by itself."""
        self._published.clear()
        connection = self._client.socket()
        if connection:
            with suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)
