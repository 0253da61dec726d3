"""One broker that the agent serves: the connection, the bridge that answers on it, and the status reported to it.

Channels know nothing of each other, so that whatever one of them waits for, the others go on.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Final, Literal

from agent import __version__
from agent.bridge import MQTTSearchBridge, topics_on
from agent.corpus.updates import LiveUpdates
from agent.device.request_marks import RequestMarks
from agent.errors import BrokerError
from agent.mqtt.connection import Connection
from agent.mqtt.delivery import Delivery
from agent.mqtt.packets import Broker, Outgoing
from agent.protocol.answers import encode_status
from agent.search.api import SearchAPI
from agent.settings import Settings
from agent.store.outbox import Outbox

log = logging.getLogger(__name__)

FAREWELL_TIMEOUT_S: Final = 1.0
STORING_TIMEOUT_S: Final = 1.0
SERVICE: Final = "arxplorer_search"

Details = dict[str, Any]


class Channel:
    def __init__(
        self,
        name: Literal["local", "cloud"],
        broker: Broker,
        api: SearchAPI,
        updates: LiveUpdates,
        outbox: Outbox,
        marks: RequestMarks,
        disk: Executor,
        *,
        explain: Callable[[str], str] = str,
    ) -> None:
        """`disk` is the thread in which the outbox is written; it and the marks are shared by all channels."""
        self.name: Final = name
        self._topics: Final = topics_on(broker, api.config)
        self._client_id: Final = broker.client_id
        self._heartbeat_s = 0.0
        self._report_now: Final = asyncio.Event()
        self._changing: asyncio.Task[None] | None = None
        will = self._status(self._topics.own_status, "offline", {"service": SERVICE}, retain=True)
        self.connection: Final = Connection(broker._replace(will=will), explain=explain)
        self.connection.on_connected(self._report_now.set)
        link = name if name == "local" else f"{name} {self.connection.address}"
        self.delivery: Final = Delivery(self.connection, link, outbox, disk)
        self.bridge: Final = MQTTSearchBridge(
            self.connection, api, delivery=self.delivery, marks=marks, updates=updates
        )
        self._told: object = None  # what the last report said, be it sent or kept
        self._quiet_since = time.monotonic()  # the last report was sent or kept, or the link was still there

    def state(self) -> Details:
        """What the status says of this channel."""
        return {
            "name": self.name,
            "broker": self.connection.address,
            "connected": self.connection.connected.is_set(),
            "pending": self.bridge.pending,
        }

    def configure(self, settings: Settings) -> None:
        """Go by these settings from here on. On the loop."""
        self._heartbeat_s = settings.health.heartbeat_s
        self.bridge.limit(settings.limits.requests_per_minute)
        self._changing = asyncio.ensure_future(self._allow(settings.limits.max_pending, self._changing))

    async def _allow(self, pending: int, earlier: asyncio.Task[None] | None) -> None:
        if earlier:
            await earlier
        try:
            await self.connection.set_receive_maximum(pending)
        except Exception:
            log.exception("limits.max_pending holds from the next start on")
        self.report_soon()  # only now: a link that is made anew for it reports once it stands

    def report_soon(self) -> None:
        self._report_now.set()

    async def report(self, details: Callable[[], Awaitable[Details]]) -> None:
        """Publish the status after each connect, when asked to, and at every heartbeat; until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._report_now.wait()
            self._report_now.clear()
            stood = self.connection.connected.is_set()
            try:
                current = await details()
                if self.connection.connected.is_set() and not stood:
                    continue  # it came up meanwhile, and a report that knows of it is due
                await self._tell("degraded" if current["problems"] else "online", current)
            except Exception:
                log.exception("the status could not be read; search goes on")

    async def _tell(self, status: str, details: Details) -> None:
        """Publish a status; where the link is down, keep it if it says something new."""
        own = self._status(self._topics.own_status, status, details, retain=True)
        general = self._status(self._topics.status, status, details)
        told = (status, details["problems"], details["corpus"], [link["connected"] for link in details["links"]])
        if self.connection.connected.is_set():
            self._quiet_since = time.monotonic()
            for report in (own, general):
                try:
                    await self.connection.send(report)
                except BrokerError as error:
                    log.warning("status not sent: %s", error.message)
                    if not error.final:
                        return  # the link was lost, or it is tried again at the next heartbeat
            self._told = told
            self.delivery.status_sent()
        elif told != self._told and time.monotonic() - self._quiet_since >= self._heartbeat_s:
            # What is retained of an agent is its newest state alone; what it went through is for those who keep count.
            # Not more often than they would be sent, and so a short cut, or a start, writes nothing.
            self._told, self._quiet_since = told, time.monotonic()
            self.delivery.keep(general, "report", lambda _: None)

    async def close(self) -> None:
        """Finish what is under way, if it is quick, and say goodbye where somebody hears it."""
        await self.bridge.close()
        details = {"service": SERVICE, "version": __version__}
        farewell = [
            self._status(self._topics.own_status, "offline", details, retain=True),
            self._status(self._topics.status, "offline", details),
        ]
        if self.connection.connected.is_set():
            with suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(FAREWELL_TIMEOUT_S):
                    await asyncio.gather(*map(self.connection.send, farewell))
        await self.connection.stop()  # from here on what was under way counts as not sent
        with suppress(TimeoutError):
            async with asyncio.timeout(STORING_TIMEOUT_S):
                await self.delivery.close()

    def _status(self, topic: str, status: str, details: Details, *, retain: bool = False) -> Outgoing:
        payload = encode_status(status, details, client_id=self._client_id, timestamp=time.time())
        return Outgoing(topic, payload, retain=retain)
