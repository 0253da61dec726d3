"""What faults do to the packets of one connection on their way: messages twice, messages out of order. Pure."""

from typing import Final

import mqtt5

from agent.local_cloud.faults import Faults
from agent.local_cloud.packets import changed

HIGHEST_PACKET_ID: Final = 65_535
"""Brokers number messages from 1 upwards, so copies take numbers from above."""


class Distortion:
    def __init__(self, faults: Faults) -> None:
        self._faults: Final = faults
        self._copies: Final[set[int]] = set()  # packet ids that the broker knows nothing of
        self._held = b""

    def to_client(self, packet: mqtt5.Packet, raw: bytes) -> bytes:
        """What the client gets when the broker has sent this."""
        held, self._held = self._held, b""
        if not isinstance(packet, mqtt5.PublishPacket) or packet.packet_id is None:
            if self._faults.has("reorder"):  # still: only another message lets it go on
                self._held, held = held, b""
            return raw + held
        both = raw + self._copy(packet) if self._faults.has("duplicate") else raw
        if self._faults.has("reorder") and not held:
            self._held = both
            return b""
        return both + held

    def is_for_broker(self, packet: mqtt5.Packet) -> bool:
        """Whether what the client has sent concerns the broker: the acknowledgement of a copy does not."""
        if not isinstance(packet, mqtt5.PubAckPacket) or packet.packet_id not in self._copies:
            return True
        self._copies.discard(packet.packet_id)
        return False

    def _copy(self, packet: mqtt5.PublishPacket) -> bytes:
        number = HIGHEST_PACKET_ID
        while number in self._copies:
            number -= 1
        self._copies.add(number)
        return changed(packet, packet_id=number).write()
