"""A broker that does what it is told, also what no broker should: for cases that the local cloud cannot make."""

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any

import mqtt5

from agent.local_cloud.packets import PacketError, PacketReader
from agent.mqtt.packets import Broker
from agent.protocol.limits import IOT_CORE


class HostileBroker:
    """Answers as MQTT 5 wants it, except where one of its attributes says otherwise."""

    def __init__(self) -> None:
        self.accepted: list[float] = []  # time.monotonic() of each connection
        self.received: list[mqtt5.Packet] = []
        self.tls_versions: list[str | None] = []
        self.hang_up = False  # before a word was said
        self.answer_pings = True
        self.suback: Callable[[str], mqtt5.SubAckReasonCode] = lambda _: (
            mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE
        )
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def start(self, tls: ssl.SSLContext | None = None) -> "HostileBroker":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        return self

    async def stop(self) -> None:
        self._server.close()
        self.end_all(None)
        if self._serving:
            await asyncio.wait(self._serving)

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def as_broker(self, **options: Any) -> Broker:
        """What a connection needs to know of it."""
        return Broker("localhost", self.port, "device", **{"reconnect_ms": (20, 100)} | options)

    def end_all(self, code: mqtt5.DisconnectReasonCode | None) -> None:
        """End every connection, with a reason or without a word."""
        for writer in list(self._writers):
            if code is not None:
                writer.write(mqtt5.DisconnectPacket(reason_code=code).write())
            writer.close()

    def count(self, kind: type[mqtt5.Packet]) -> int:
        return sum(isinstance(packet, kind) for packet in self.received)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted.append(time.monotonic())
        self._writers.add(writer)
        task: Any = asyncio.current_task()
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            if self.hang_up:
                return
            secured = writer.get_extra_info("ssl_object")
            self.tls_versions.append(secured.version() if secured else None)
            packets = PacketReader(reader, IOT_CORE)
            while arrived := await packets.read():
                for one in arrived:
                    self.received.append(one.packet)
                    answer = self._answer(one.packet)
                    if answer:
                        writer.write(answer.write())
        except (OSError, PacketError):
            pass
        finally:
            writer.close()
            self._writers.discard(writer)

    def _answer(self, packet: mqtt5.Packet) -> mqtt5.Packet | None:
        match packet:
            case mqtt5.ConnectPacket():
                return mqtt5.ConnAckPacket()
            case mqtt5.SubscribePacket():
                return mqtt5.SubAckPacket(packet.packet_id, [self.suback(one.pattern) for one in packet.topic_filters])
            case mqtt5.PublishPacket() if packet.packet_id is not None:
                return mqtt5.PubAckPacket(packet.packet_id)
            case mqtt5.PingReqPacket() if self.answer_pings:
                return mqtt5.PingRespPacket()
        return None
