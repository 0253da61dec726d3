"""One client's connection and its own one to the broker, joined: bytes go both ways as the session decides."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

import mqtt5

from agent.local_cloud.audit import Audit
from agent.local_cloud.faults import Faults
from agent.local_cloud.packets import PacketError, PacketReader, Received, packets_in
from agent.local_cloud.session import Step, disconnect
from agent.protocol.limits import Limits

log = logging.getLogger(__name__)

LAST_WORDS_S: Final = 0.5
"""How long a client that was told goodbye may take to hang up."""


Decide = Callable[[Received, float], Step]


class Rules(Protocol):
    """What becomes of the packets of one connection; `patience_s`: how long the client may say nothing."""

    @property
    def patience_s(self) -> float | None: ...

    def from_client(self, received: Received, now: float, /) -> Step: ...

    def from_broker(self, received: Received, now: float, /) -> Step: ...

    def delivered(self, now: float, /) -> None: ...


class Link(asyncio.StreamReaderProtocol):
    """One end: packets to read and a writer for bytes."""

    def __init__(self, limits: Limits) -> None:
        self._stream: Final = asyncio.StreamReader()
        super().__init__(self._stream)
        self.packets: Final = PacketReader(self._stream, limits)
        self.writer: asyncio.StreamWriter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.writer = asyncio.StreamWriter(transport, self, self._stream, asyncio.get_running_loop())  # type: ignore[arg-type]

    def abort(self) -> None:
        """End at once and without a word, not even of TLS."""
        self.writer.transport.abort()

    async def hang_up(self) -> None:
        """End after what was written last has arrived: closing over unread bytes would destroy it on its way."""
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self.writer.drain()
                while await self._stream.read(2**16):
                    pass
        except (OSError, TimeoutError):
            pass
        finally:
            self.writer.close()


class Relay:
    def __init__(
        self, name: str, rules: Rules, client: Link, broker: Link, faults: Faults, audit: Audit | None = None
    ) -> None:
        self._name: Final = name
        self._rules: Final = rules
        self._audit: Final = audit
        self._client: Final = client
        self._broker: Final = broker
        self._faults: Final = faults
        self._taken_over: Final = asyncio.Event()
        self._aside: Final[asyncio.Queue[tuple[float, Step]]] = asyncio.Queue()  # and when each is due
        self._waiting = 0  # of these, the one included that is carried out now

    async def run(self, arrived: list[Received]) -> None:
        """Until either end is through with it. `arrived` are packets of the client's that were read already."""
        self._listen(self._client, arrived)
        up = self._pump(self._client, self._rules.from_client, arrived, self._rules.patience_s)
        down = self._pump(self._broker, self._rules.from_broker, [], None)
        tasks = [asyncio.create_task(one) for one in (up, down, self._carry_out_aside(), self._taken_over.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            if self._taken_over.is_set():
                code = mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER
                await self._carry_out(disconnect(code, "another connection with the same client id"))
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, OSError):
                    log.info("%s: %s", self._name, outcome)
                elif isinstance(outcome, Exception):
                    log.error("%s: %r", self._name, outcome, exc_info=outcome)

    def take_over(self) -> None:
        """Another connection with the same client id has come: this one ends."""
        self._taken_over.set()

    async def _pump(self, source: Link, decide: Decide, packets: list[Received], patience_s: float | None) -> None:
        while True:
            for received in packets:
                now = time.monotonic()
                step = decide(received, now)
                if step.aside and (step.wait_s or self._waiting):
                    self._waiting += 1
                    self._aside.put_nowait((now + step.wait_s, step))
                elif await self._carry_out(step):
                    return
            try:
                async with asyncio.timeout(patience_s):
                    packets = await source.packets.read()
                    self._listen(source, packets)
                    await self._faults.hold()
            except PacketError as error:
                await self._carry_out(disconnect(error.code, str(error)))
                return
            except TimeoutError:
                self._broker.writer.close()  # now, so that the last will is sent, also if the client cannot be told yet
                await self._faults.hold()
                await self._carry_out(disconnect(mqtt5.DisconnectReasonCode.KEEP_ALIVE_TIMEOUT, "no word"))
                return
            if not packets:
                return

    async def _carry_out_aside(self) -> None:
        while True:
            due, step = await self._aside.get()
            await self._carry_out(step._replace(wait_s=max(0.0, due - time.monotonic())))
            self._waiting -= 1

    def _listen(self, source: Link, packets: list[Received]) -> None:
        """Let the audit know what the client has said, when it was said: what it is told later is no excuse."""
        if self._audit and source is self._client:
            for packet, _ in packets:
                early = self._audit.from_agent(packet)
                if early:
                    log.error("%s: acknowledged before its answer: %s", self._name, early)

    async def _carry_out(self, step: Step) -> bool:
        """Send what is to be sent. Returns whether that was the end."""
        if step.note:
            log.info("%s: %s", self._name, step.note)
        if step.wait_s:
            await asyncio.sleep(step.wait_s)
        if step.aside:
            self._rules.delivered(time.monotonic())
        if self._audit:
            for packet in packets_in(step.to_client):
                self._audit.to_agent(packet)
        for link, content in ((self._broker, step.to_broker), (self._client, step.to_client)):
            if content:
                link.writer.write(content)
                await link.writer.drain()
        return step.end
