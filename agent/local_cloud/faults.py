"""Faults on command: what the gateway does to its connections until it is told otherwise."""

import asyncio
from typing import Final, Literal, get_args

from agent.errors import AgentError

Fault = Literal["cut", "freeze", "refuse", "delay", "throttle", "drop-puback", "deaf", "duplicate", "reorder", "clear"]
NAMES: Final[tuple[str, ...]] = get_args(Fault)
MAX_DELAY_S: Final = 60.0


class Faults:
    """The faults in force. Those that end connections or close the door are the gateway's to carry out.

    cut           every connection ends at once, without a word; clients may come back
    freeze        nothing is read or written any more, on old connections and new ones, which stay open
    refuse        every connection ends, and new ones are refused
    delay         what arrives, in either direction, waits before it goes on
    throttle      connects, publishes and subscriptions are answered with 0x97, quota exceeded
    drop-puback   publishes go through, but their PUBACKs do not come back
    deaf          clients get none of the messages they are subscribed to; all else goes well
    duplicate     clients get every message of QoS 1 twice, as two messages
    reorder       of every two messages of QoS 1 clients get the second one first
    clear         none of these any more
    """

    def __init__(self) -> None:
        self._flowing: Final = asyncio.Event()
        self._flowing.set()
        self.refusing = False
        self.delay_s = 0.0
        self._of_packets: Final[set[str]] = set()

    def has(self, fault: Fault) -> bool:
        """Whether one of those that concern single packets, `throttle` and below, is in force."""
        return fault in self._of_packets

    def put(self, fault: str, milliseconds: float = 0.0) -> None:
        """Raises AgentError for a fault that does not exist, or a delay that is out of range."""
        match fault:
            case "cut":
                pass
            case "freeze":
                self._flowing.clear()
            case "refuse":
                self.refusing = True
            case "delay":
                if not 0 <= milliseconds <= MAX_DELAY_S * 1000:
                    raise AgentError(f"a delay is 0 to {MAX_DELAY_S * 1000:.0f} ms")
                self.delay_s = milliseconds / 1000
            case "throttle" | "drop-puback" | "deaf" | "duplicate" | "reorder":
                self._of_packets.add(fault)
            case "clear":
                self.refusing = False
                self._of_packets.clear()
                self.delay_s = 0.0
                self._flowing.set()
            case _:
                raise AgentError(f"{fault!r} is no fault", hint=f"one of {', '.join(NAMES)}")

    async def hold(self) -> None:
        """Wait for as long as a freeze or a delay holds things up."""
        await self._flowing.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
            await self._flowing.wait()
