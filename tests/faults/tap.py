"""A tap in the line between the agent and the local broker: faults and the audit, as the local cloud's gateway has them."""

import asyncio
import threading
from pathlib import Path
from typing import Any, Final

import mqtt5

from agent.config import LocalBroker
from agent.local_cloud.audit import Audit, Findings, IsStored, summary
from agent.local_cloud.distortion import Distortion
from agent.local_cloud.door import Door
from agent.local_cloud.faults import Faults
from agent.local_cloud.outbox_rows import holds
from agent.local_cloud.packets import Received
from agent.local_cloud.relay import Link, Relay
from agent.local_cloud.session import Step
from agent.protocol.limits import IOT_CORE, Limits
from agent.protocol.topics import AgentTopics

LOCAL: Final = IOT_CORE._replace(packet_bytes=1024 * 1024)
"""A local broker takes larger packets."""
TIMEOUT_S: Final = 30.0


class Rules:
    """Lets everything through but for what the faults say."""

    patience_s = None

    def __init__(self, faults: Faults) -> None:
        self._faults: Final = faults
        self._distortion: Final = Distortion(faults)

    def from_client(self, received: Received, _: float) -> Step:
        packet, raw = received
        passed = raw if self._distortion.is_for_broker(packet) else b""
        return Step(to_broker=passed, end=isinstance(packet, mqtt5.DisconnectPacket))

    def from_broker(self, received: Received, _: float) -> Step:
        packet, raw = received
        if isinstance(packet, mqtt5.PubAckPacket) and self._faults.has("drop-puback"):
            return Step()
        return Step(to_client=self._distortion.to_client(packet, raw))

    def delivered(self, _: float) -> None:
        """A plain broker counts no rate."""


class TapDoor(Door):
    def __init__(self, port: int, broker_port: int, thing: str, is_stored: IsStored, limits: Limits = LOCAL) -> None:
        super().__init__(port, broker_port, Faults(), limits, tls=None)
        self.findings: Final = Findings()
        self._requests: Final = AgentTopics.of(LocalBroker().topics, thing).answered()
        self._is_stored: Final = is_stored

    async def _converse(self, link: Link, address: str) -> None:
        broker = await self._to_broker()
        audit = Audit(self.findings, self._requests.__contains__, self._is_stored)
        try:
            await Relay(address, Rules(self._faults), link, broker, self._faults, audit).run([])
        finally:
            broker.writer.close()


class Tap:
    """A `TapDoor` with a thread of its own, for callers that have no event loop."""

    def __init__(self, port: int, broker_port: int, thing: str, data_dir: Path) -> None:
        self.port: Final = port
        self._door: Final = TapDoor(port, broker_port, thing, lambda key: holds(data_dir, key))
        self._loop: Final = asyncio.new_event_loop()
        self._thread: Final = threading.Thread(target=self._loop.run_forever, name="tap", daemon=True)

    def start(self) -> "Tap":
        self._thread.start()
        self._call(_opened(self._door))
        return self

    def fault(self, name: str, milliseconds: float = 0.0) -> None:
        self._call(self._door.put(name, milliseconds))

    def findings(self) -> dict[str, Any]:
        return summary([self._door.findings])

    def stop(self) -> None:
        self._call(self._door.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        self._loop.close()

    def _call(self, action: Any) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(TIMEOUT_S)


async def _opened(door: Door) -> None:
    door.open()
