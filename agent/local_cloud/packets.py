"""MQTT 5 packets out of a byte stream, and copies of packets with something changed. The codec is the library's."""

from asyncio import StreamReader
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, TypeVar

import mqtt5

from agent.protocol.limits import Limits

CHUNK_BYTES: Final = 64 * 1024
P = TypeVar("P")


class PacketError(Exception):
    """Bytes that are no MQTT 5, or a packet larger than allowed; `code` says which."""

    def __init__(self, code: mqtt5.DisconnectReasonCode, message: str, *, other_version: bool = False) -> None:
        super().__init__(message)
        self.code: Final = code
        self.other_version: Final = other_version


class Received(NamedTuple):
    packet: mqtt5.Packet
    raw: bytes


class PacketReader:
    """Reads whole packets from a stream."""

    def __init__(self, stream: StreamReader, limits: Limits) -> None:
        self._stream: Final = stream
        self._largest: Final = limits.packet_bytes
        self._rest = b""

    async def read(self) -> list[Received]:
        """The packets that have arrived, at least one; none at the end of the stream. Raises PacketError."""
        while True:
            chunk = await self._stream.read(CHUNK_BYTES)
            if not chunk:
                return []
            self._rest += chunk
            found = list(self._packets())
            if found:
                return found

    def _packets(self) -> Iterator[Received]:
        while self._rest:
            try:
                packet, length = mqtt5.read(memoryview(self._rest))
            except IndexError:  # not all of it has arrived yet
                if len(self._rest) > self._largest:
                    raise PacketError(mqtt5.DisconnectReasonCode.PACKET_TOO_LARGE, "packet too large") from None
                return
            except ValueError as error:
                raise PacketError(
                    mqtt5.DisconnectReasonCode.MALFORMED_PACKET,
                    str(error),
                    other_version="protocol version" in str(error),
                ) from error
            raw, self._rest = self._rest[:length], self._rest[length:]
            yield Received(packet, raw)


def packets_in(content: bytes) -> Iterator[mqtt5.Packet]:
    """The packets of bytes that hold whole ones."""
    while content:
        packet, length = mqtt5.read(memoryview(content))
        content = content[length:]
        yield packet


def changed(packet: P, **changes: Any) -> P:
    """A copy of a packet, whose library makes them unchangeable, with some of its fields set anew."""
    kept = {name: getattr(packet, name) for name in _fields(type(packet))}
    return type(packet)(**(kept | changes))


def _fields(kind: type) -> list[str]:
    return [name for name, held in vars(kind).items() if not name.startswith("_") and not callable(held)]
