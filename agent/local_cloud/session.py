"""One connection through the gateway, packet by packet: what IoT Core would let through, change, answer or end. Pure.

Bytes and sockets are the gateway's business, and so is the time, which is handed in.
"""

from typing import Final, NamedTuple

import mqtt5
from mqtt5 import ConnAckReasonCode, DisconnectReasonCode, PubAckReasonCode, QoS, SubAckReasonCode

from agent.cloud.policy import CONNECT_ATTRIBUTES, IS_ATTACHED, THING_NAME
from agent.local_cloud.distortion import Distortion
from agent.local_cloud.faults import Faults
from agent.local_cloud.packets import Received, changed
from agent.local_cloud.policy import CLIENT_ID, SOURCE_IP, Policy
from agent.local_cloud.topics import delivers
from agent.mqtt.rate import Rate
from agent.protocol.limits import Limits
from agent.protocol.topics import has_wildcard, topic_fits

KEEP_ALIVES: Final = 1.5
"""After so many keep-alives without a word a client is taken for gone (MQTT 5.0, section 3.1.2.10)."""

Subscriptions = dict[str, set[str]]
"""Topic filters of each client id, for as long as the broker keeps its session."""


Connects = dict[str, Rate]
"""How often each client id has connected of late."""


class Step(NamedTuple):
    """What follows from a packet: bytes to each side, sent after `wait_s`; with `end` the connection is over.

    What waits `aside` does not hold up what comes after it.
    """

    to_broker: bytes = b""
    to_client: bytes = b""
    end: bool = False
    wait_s: float = 0.0
    aside: bool = False
    note: str = ""


class Client(NamedTuple):
    """Who connects: the thing of the certificate (None: registered nowhere) and what its policy says."""

    thing: str | None
    policy: Policy
    address: str


class Session:
    def __init__(
        self, client: Client, subscriptions: Subscriptions, connects: Connects, limits: Limits, faults: Faults
    ) -> None:
        self.client_id = ""
        self.patience_s = 0.0  # how long the client may say nothing
        self._client: Final = client
        self._subscriptions: Final = subscriptions
        self._connects: Final = connects
        self._limits: Final = limits
        self._faults: Final = faults
        self._distortion: Final = Distortion(faults)
        self._rate: Final = Rate(limits.publishes_per_s)
        # A backlog for the client leaves it room to answer: the service replays what it stored more slowly than that.
        self._deliveries: Final = Rate(limits.publishes_per_s / 2)
        self._bytes: Final = Rate(limits.bytes_per_s)
        self._granted: set[str] = set()  # topic filters, on this connection
        self._aliases: dict[int, str] = {}
        self._refused: dict[int, list[SubAckReasonCode | None]] = {}  # by packet id; None: the broker's to answer
        self._connack: mqtt5.ConnAckPacket = mqtt5.ConnAckPacket()

    # -- connecting -----------------------------------------------------------------------------------------------

    def connect(self, packet: mqtt5.Packet, now: float) -> Step:
        """The first packet: the CONNECT as the broker gets it, or the refusal."""
        if not isinstance(packet, mqtt5.ConnectPacket):
            return Step(end=True, note="the first packet is no CONNECT")
        self.client_id = packet.client_id
        refusal = self._refusal(packet, now)
        if refusal is not None:
            answer = mqtt5.ConnAckPacket(reason_code=refusal)
            return Step(to_client=answer.write(), end=True, note=f"CONNECT refused: {refusal.name}")
        will = packet.will
        if will and not self._may_publish(will.topic, retain=will.retain):
            will = None
        keep_alive = packet.keep_alive or self._limits.max_keep_alive_s
        keep_alive = max(self._limits.min_keep_alive_s, min(keep_alive, self._limits.max_keep_alive_s))
        self.patience_s = KEEP_ALIVES * keep_alive
        expiry = min(packet.session_expiry_interval, self._limits.session_expiry_s)
        self._connack = mqtt5.ConnAckPacket(
            session_expiry_interval=expiry,
            server_keep_alive=keep_alive if keep_alive != packet.keep_alive else None,
            receive_max=self._limits.receive_maximum,
            topic_alias_max=self._limits.topic_aliases,
            max_qos=QoS.AT_LEAST_ONCE,
            max_packet_size=self._limits.packet_bytes,
            subscription_id_available=False,
        )
        connect = changed(
            packet,
            username=None,
            password=None,
            will=will,
            keep_alive=0,
            session_expiry_interval=expiry,
            receive_max=min(packet.receive_max, self._limits.receive_maximum),
            topic_alias_max=0,
        )
        return Step(
            to_broker=connect.write(), note="" if will or not packet.will else "last will not allowed: left out"
        )

    def _refusal(self, packet: mqtt5.ConnectPacket, now: float) -> ConnAckReasonCode | None:
        will = packet.will
        if not 0 < len(packet.client_id.encode()) <= self._limits.client_id_bytes:
            return ConnAckReasonCode.CLIENT_ID_NOT_VALID
        if packet.authentication_method is not None:
            return ConnAckReasonCode.BAD_AUTHENTICATION_METHOD
        if self._faults.has("throttle"):
            return ConnAckReasonCode.QUOTA_EXCEEDED
        if will and (bad_will := self._will_refusal(will)) is not None:
            return bad_will
        used = {"PersistentConnect": packet.session_expiry_interval > 0, "LastWill": will is not None}
        attributes = {CONNECT_ATTRIBUTES: [name for name, is_used in used.items() if is_used]}
        allowed = self._client.policy.allows(
            "iot:Connect", "client", packet.client_id, {**self._context(), **attributes}
        )
        if not self._client.thing or not allowed:
            return ConnAckReasonCode.NOT_AUTHORIZED
        return None if self._may_connect(now) else ConnAckReasonCode.QUOTA_EXCEEDED

    def _will_refusal(self, will: mqtt5.Will) -> ConnAckReasonCode | None:
        if will.qos == QoS.EXACTLY_ONCE:
            return ConnAckReasonCode.QUALITY_NOT_SUPPORTED
        return None if topic_fits(will.topic, self._limits) else ConnAckReasonCode.TOPIC_NAME_INVALID

    def _may_connect(self, now: float) -> bool:
        """Whether this client id has not connected too often; nobody else can use its turns up."""
        most = self._limits.connects_per_s
        return not most or self._connects.setdefault(self.client_id, Rate(most)).take(now)

    def _context(self) -> dict[str, str]:
        attached = self.client_id == self._client.thing
        context = {
            CLIENT_ID: self.client_id,
            SOURCE_IP: self._client.address,
            IS_ATTACHED: str(attached).lower(),
        }
        # The service looks for the thing by the client id, among those that the certificate is attached to.
        return context | ({THING_NAME: self.client_id} if attached else {})

    # -- from the client ------------------------------------------------------------------------------------------

    def from_client(self, received: Received, now: float) -> Step:
        if not self._distortion.is_for_broker(received.packet):
            return Step()
        return self._in_turn(self._heard(received, now), len(received.raw), now)

    def _in_turn(self, step: Step, size: int, now: float) -> Step:
        """The same, once its bytes are within the rate: the service delays what exceeds it, and loses nothing."""
        return step._replace(wait_s=max(step.wait_s, self._bytes.reserve(now, size)))

    def _heard(self, received: Received, now: float) -> Step:
        packet, raw = received
        match packet:
            case mqtt5.PublishPacket():
                return self._publish(packet, raw, now)
            case mqtt5.SubscribePacket():
                return self._subscribe(packet)
            case mqtt5.UnsubscribePacket():
                self._filters.difference_update(packet.patterns)
                return Step(to_broker=raw)
            case mqtt5.DisconnectPacket():
                return Step(to_broker=self._farewell(packet), end=True)
            case mqtt5.PubAckPacket() | mqtt5.PingReqPacket():
                return Step(to_broker=raw)
        return disconnect(DisconnectReasonCode.PROTOCOL_ERROR, f"unexpected {type(packet).__name__}")

    def _publish(self, packet: mqtt5.PublishPacket, raw: bytes, now: float) -> Step:
        topic = self._topic_of(packet)
        if topic is None:
            return disconnect(DisconnectReasonCode.TOPIC_ALIAS_INVALID, f"topic alias {packet.topic_alias}")
        allowed = self._may_publish(topic, retain=packet.retain)
        checks = (
            (packet.qos != QoS.EXACTLY_ONCE, DisconnectReasonCode.QOS_NOT_SUPPORTED),
            (len(packet.payload) <= self._limits.payload_bytes, DisconnectReasonCode.PACKET_TOO_LARGE),
            (topic_fits(topic, self._limits), DisconnectReasonCode.TOPIC_NAME_INVALID),
            (allowed, DisconnectReasonCode.NOT_AUTHORIZED),
        )
        for holds, code in checks:
            if not holds:
                kind = "retained message" if packet.retain else "message"
                return disconnect(code, f"a {kind} of {len(packet.payload)} bytes, QoS {packet.qos}, on {topic!r}")
        if not self._rate.take(now):
            return Step(note=f"over {self._limits.publishes_per_s} publishes/s: one on {topic!r} discarded")
        if self._faults.has("throttle"):
            refused = _puback(packet, PubAckReasonCode.QUOTA_EXCEEDED)
            return Step(to_client=refused, note=f"throttled: one on {topic!r} refused")
        if packet.topic_alias is None:
            return Step(to_broker=raw)
        return Step(to_broker=changed(packet, topic=topic, topic_alias=None).write())

    def _topic_of(self, packet: mqtt5.PublishPacket) -> str | None:
        """The topic, be it said by an alias; None if that alias may not be or was never given."""
        alias = packet.topic_alias
        if alias is None:
            return packet.topic
        if not 0 < alias <= self._limits.topic_aliases:
            return None
        if packet.topic:
            self._aliases[alias] = packet.topic
        return self._aliases.get(alias)

    def _may_publish(self, topic: str, *, retain: bool) -> bool:
        actions = ["iot:Publish"] + (["iot:RetainPublish"] if retain else [])
        return all(self._client.policy.allows(action, "topic", topic, self._context()) for action in actions)

    def _subscribe(self, packet: mqtt5.SubscribePacket) -> Step:
        if packet.subscription_id is not None:
            return disconnect(DisconnectReasonCode.SUBSCRIPTION_IDS_NOT_SUPPORTED, "subscription identifier")
        filters = packet.topic_filters
        if len(filters) > self._limits.filters_per_subscribe:
            return disconnect(DisconnectReasonCode.QUOTA_EXCEEDED, f"{len(filters)} filters in one SUBSCRIBE")
        codes = [self._filter_refusal(one.pattern) for one in filters]
        refused = [f"{one.pattern!r} {code.name}" for one, code in zip(filters, codes, strict=True) if code]
        note = f"not subscribed: {', '.join(refused)}" if refused else ""
        granted = [one for one, code in zip(filters, codes, strict=True) if code is None]
        if not granted:
            answer = mqtt5.SubAckPacket(packet.packet_id, [code for code in codes if code])
            return Step(to_client=answer.write(), note=note)
        self._refused[packet.packet_id] = codes
        # IoT Core sends no retained messages to wildcard subscriptions.
        asked = [
            changed(one, retain_handling=mqtt5.RetainHandling.SEND_NEVER) if has_wildcard(one.pattern) else one
            for one in granted
        ]
        return Step(to_broker=changed(packet, topic_filters=asked).write(), note=note)

    def _filter_refusal(self, topic_filter: str) -> SubAckReasonCode | None:
        if not topic_fits(topic_filter, self._limits, is_filter=True):
            return SubAckReasonCode.TOPIC_FILTER_INVALID
        if not self._client.policy.allows("iot:Subscribe", "topicfilter", topic_filter, self._context()):
            return SubAckReasonCode.NOT_AUTHORIZED
        full = topic_filter not in self._filters and len(self._filters) >= self._limits.subscriptions
        if full or self._faults.has("throttle"):
            return SubAckReasonCode.QUOTA_EXCEEDED
        self._filters.add(topic_filter)
        self._granted.add(topic_filter)
        return None

    def _farewell(self, packet: mqtt5.DisconnectPacket) -> bytes:
        wanted = packet.session_expiry_interval
        if wanted is None:
            return packet.write()
        return changed(packet, session_expiry_interval=min(wanted, self._limits.session_expiry_s)).write()

    @property
    def _filters(self) -> set[str]:
        return self._subscriptions.setdefault(self.client_id, set())

    # -- from the broker ------------------------------------------------------------------------------------------

    def from_broker(self, received: Received, now: float) -> Step:
        step = self._told(received, now)
        return self._in_turn(step, len(step.to_client), now)

    def _told(self, received: Received, now: float) -> Step:
        packet, raw = received
        match packet:
            case mqtt5.ConnAckPacket():
                if not packet.session_present:
                    # Those of an earlier session are gone; a client need not wait for CONNACK before it subscribes.
                    self._filters.intersection_update(self._granted)
                answer = changed(self._connack, session_present=packet.session_present, reason_code=packet.reason_code)
                return Step(to_client=answer.write(), end=packet.reason_code != ConnAckReasonCode.SUCCESS)
            case mqtt5.PublishPacket():
                return self._deliver(packet, raw, now)
            case mqtt5.SubAckPacket():
                given = iter(packet.reason_codes)
                codes = [code or next(given) for code in self._refused.pop(packet.packet_id, [])]
                return Step(to_client=changed(packet, reason_codes=codes or packet.reason_codes).write())
            case mqtt5.PubAckPacket() if self._faults.has("drop-puback"):
                return Step(note=f"PUBACK {packet.packet_id} dropped")
            case mqtt5.PubAckPacket(reason_code=PubAckReasonCode.NO_MATCHING_SUBSCRIBERS):
                return Step(to_client=mqtt5.PubAckPacket(packet.packet_id).write())  # IoT Core does not tell
        sent = self._distortion.to_client(packet, raw)
        return Step(to_client=sent, end=isinstance(packet, mqtt5.DisconnectPacket))

    def _deliver(self, packet: mqtt5.PublishPacket, raw: bytes, now: float) -> Step:
        """A message for the client, unless the policy, the service's own way with `x/#`, or the rate keeps it back."""
        at_least_once = packet.qos == QoS.AT_LEAST_ONCE
        if self._faults.has("deaf"):
            # As if the subscription were lost: the broker is told that it arrived, so that it never comes again.
            return Step(to_broker=_puback(packet), note=f"deaf: one on {packet.topic!r} lost")
        if not self._client.policy.allows("iot:Receive", "topic", packet.topic, self._context()):
            return Step(to_broker=_puback(packet), note=f"receiving on {packet.topic!r} is not allowed")
        if not any(delivers(one, packet.topic) for one in self._filters):
            return Step(to_broker=_puback(packet))
        if not at_least_once and not self._rate.take(now):
            return Step(note=f"over {self._limits.publishes_per_s} publishes/s: one for the client discarded")
        # IoT Core does not say of a message that it was sent before.
        plain = changed(packet, duplicate=False).write() if packet.duplicate else raw
        # Over the rate the service would deliver it again later; waiting comes to the same.
        sent = self._distortion.to_client(packet, plain)
        if not at_least_once:
            return Step(to_client=sent)
        return Step(to_client=sent, wait_s=self._deliveries.reserve(now), aside=True)

    def delivered(self, now: float) -> None:
        """What waited aside was sent: from now on it counts into the rate of both directions."""
        self._rate.reserve(now)


def _puback(packet: mqtt5.PublishPacket, code: PubAckReasonCode = PubAckReasonCode.SUCCESS) -> bytes:
    """What acknowledges a message; nothing for QoS 0."""
    if packet.packet_id is None:
        return b""
    return mqtt5.PubAckPacket(packet.packet_id, reason_code=code).write()


def disconnect(code: DisconnectReasonCode, why: str) -> Step:
    """The end of a connection, with its reason."""
    packet = mqtt5.DisconnectPacket(reason_code=code)
    return Step(to_client=packet.write(), end=True, note=f"disconnected with 0x{int(code):02X} {code.name}: {why}")
