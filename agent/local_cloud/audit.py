"""Whether an agent acknowledges a request only after its answer: told the packets of one connection, it says. Pure.

An answer is at the broker once the broker's PUBACK of it has been sent to the agent. Until then the request may be
acknowledged only if the answer is stored on the device. An answer made for a delivery is good for that one alone; one
that is stored is good for every copy of its request that was at the agent before it had left the storage. A connection
that ends takes its audit with it: the broker delivers again what was not acknowledged on it, under packet ids of the
next one.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import mqtt5


class Key(NamedTuple):
    """What tells which request an answer belongs to: its correlation data, or else the request id in its payload."""

    correlation: bytes | None
    request_id: str | None


IsRequest = Callable[[str], bool]
IsStored = Callable[[Key], bool]


@dataclass
class _Delivery:
    """A request at the agent."""

    key: Key
    served: bool
    """Its answer was stored when it came, or got to the broker from the storage since."""


class _OnItsWay(NamedTuple):
    """An answer that the broker has not acknowledged."""

    key: Key
    stored: bool
    """It came from the storage, as far as can be told: it was there when it was sent."""


@dataclass
class Findings:
    """What the audits of all connections of one client have found; the numbers count requests."""

    acknowledged: int = 0
    stored: int = 0
    """Of these, acknowledged for an answer that is stored, or was when they came."""
    early: list[Key] = field(default_factory=list)
    """Of these, acknowledged while the answer was nowhere."""
    unmarked: int = 0
    """Delivered without correlation data or request id: their answers cannot be told apart."""
    answered: Counter[Key] = field(default_factory=Counter)
    """Answers at the broker, their requests not acknowledged: these may come again by a later connection."""
    own: set[bytes] = field(default_factory=set)
    """Marks of what the agent asks itself, to hear whether it hears; that may come by a later connection, too."""


def summary(every: Iterable[Findings]) -> dict[str, Any]:
    """The findings of several clients as one document."""
    given = list(every)
    early = [key.request_id or (key.correlation or b"").hex() for found in given for key in found.early]
    return {
        "acknowledged": sum(found.acknowledged for found in given),
        "stored": sum(found.stored for found in given),
        "early": early,
        "unmarked": sum(found.unmarked for found in given),
    }


class Audit:
    """The audit of one connection, which adds to `findings`."""

    def __init__(self, findings: Findings, is_request: IsRequest, is_stored: IsStored) -> None:
        """`is_request`: whether messages on a topic are to be answered; `is_stored`: whether an answer is stored."""
        self._findings: Final = findings
        self._is_request: Final = is_request
        self._is_stored: Final = is_stored
        self._requests: Final[dict[int, _Delivery]] = {}  # by packet id
        self._answers: Final[dict[int, _OnItsWay]] = {}  # by packet id

    def to_agent(self, packet: mqtt5.Packet) -> None:
        """A packet is about to be sent to the agent."""
        match packet:
            case mqtt5.PublishPacket(packet_id=int(number), retain=False) if self._is_request(packet.topic):
                if packet.correlation_data in self._findings.own:
                    return
                key = key_of(packet)
                if key == Key(None, None):
                    self._findings.unmarked += 1
                else:
                    self._requests[number] = _Delivery(key, self._is_stored(key))
            case mqtt5.PubAckPacket():
                answer = self._answers.pop(packet.packet_id, None)
                if answer and int(packet.reason_code) < int(mqtt5.PubAckReasonCode.UNSPECIFIED_ERROR):
                    self._reached(answer)

    def from_agent(self, packet: mqtt5.Packet) -> Key | None:
        """A packet has come from the agent. Returns the request that it acknowledges early."""
        match packet:
            case mqtt5.PublishPacket(packet_id=int(number)):
                if self._is_request(packet.topic):
                    self._findings.own.add(packet.correlation_data or b"")
                else:
                    key = key_of(packet)
                    self._answers[number] = _OnItsWay(key, self._is_stored(key))
            case mqtt5.PubAckPacket():
                done = self._requests.pop(packet.packet_id, None)
                if done and not self._is_in_order(done):
                    self._findings.early.append(done.key)
                    return done.key
        return None

    def _reached(self, answer: _OnItsWay) -> None:
        """The answer is at the broker."""
        if answer.stored:
            for request in self._requests.values():
                request.served |= request.key == answer.key
        else:
            self._findings.answered[answer.key] += 1

    def _is_in_order(self, request: _Delivery) -> bool:
        self._findings.acknowledged += 1
        if not request.served and self._findings.answered[request.key]:
            self._findings.answered -= Counter([request.key])
            return True
        stored = request.served or self._is_stored(request.key)
        self._findings.stored += stored
        return stored


def key_of(packet: mqtt5.PublishPacket) -> Key:
    if packet.correlation_data is not None:
        return Key(packet.correlation_data, None)
    return Key(None, _request_id(packet.payload))


def _request_id(payload: bytes) -> str | None:
    try:
        if payload.startswith(b"\x1f\x8b"):
            payload = gzip.decompress(payload)
        document = json.loads(payload)
    except (ValueError, OSError, EOFError, zlib.error, RecursionError):
        return None
    found = document.get("request_id") if isinstance(document, dict) else None
    return found if isinstance(found, str) else None
