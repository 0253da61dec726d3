"""The running agent: opens the corpus, connects, answers, keeps its indexes up to date, reports, stops in order."""

import asyncio
import logging
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from agent import __version__
from agent.bridge import MQTTSearchBridge
from agent.config import Config, LocalBroker, find_config_file, load_config
from agent.corpus.embedding import embed_missing
from agent.device import host
from agent.domain import SearchRequest
from agent.errors import AgentError, BrokerError, ConfigError
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker, Outgoing, Tls
from agent.protocol.answers import encode_status
from agent.protocol.topics import AgentTopics
from agent.search.api import SearchAPI

log = logging.getLogger(__name__)

FOLLOW_INTERVAL_S: Final = 1.0
FAREWELL_TIMEOUT_S: Final = 1.0
UPKEEP_TIMEOUT_S: Final = 0.5
SERVICE: Final = "arxplorer_search"


def broker_of(
    broker: LocalBroker, *, client_id: str, receive_maximum: int = 32, will: Outgoing | None = None
) -> Broker:
    """The local broker of the configuration. Raises ConfigError when its password file cannot be read."""
    password = None
    if broker.password_file:
        try:
            password = Path(broker.password_file).read_text("utf-8").strip()
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", path="local_broker.password_file") from error
    if broker.ca_cert and not Path(broker.ca_cert).is_file():
        raise ConfigError(f"no file at {broker.ca_cert}", path="local_broker.ca_cert")
    return Broker(
        host=broker.host,
        port=broker.port,
        client_id=client_id,
        username=broker.username or None,
        password=password,
        tls=Tls(broker.ca_cert) if broker.ca_cert else None,
        keep_alive_s=broker.keep_alive,
        receive_maximum=receive_maximum,
        will=will,
    )


class MQTTSearchService:
    """The agent, complete.

    await MQTTSearchService().run_forever()
    """

    def __init__(self, config: Config | None = None) -> None:
        """Without a configuration, the one that the command line would use. Raises ConfigError."""
        self.config: Final = config or load_config(find_config_file(None))
        if self.config.aws_iot.enabled:
            raise ConfigError("the cloud link is not part of this version yet; set it to false", path="aws_iot.enabled")
        if not self.config.local_broker.enabled:
            raise ConfigError("no broker is enabled, so nobody could ask", path="local_broker.enabled")
        self.api: Final = SearchAPI(self.config)
        self._topics: Final = AgentTopics.of(self.config.local_broker.topics, self.config.thing_name)
        self._client_id: Final = self.config.local_broker.client_id or self.config.thing_name
        self._started = time.monotonic()
        self._stop = asyncio.Event()
        self._report_now = asyncio.Event()
        self._follow_now = asyncio.Event()
        # One thread, hence one SQLite connection, follows the corpus; it also embeds what has no vector yet.
        self._upkeep: Final = ThreadPoolExecutor(1, thread_name_prefix="upkeep")
        self._job: Future[None] | None = None
        self._embedded = -1  # change number up to which everything has a vector

    def stop(self) -> None:
        """Ask `run_forever` to end in order."""
        self._stop.set()

    async def run_forever(self) -> None:
        """Run until SIGTERM, SIGINT or `stop`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        await loop.run_in_executor(self._upkeep, self._open)
        will = self._status_message(self._topics.own_status, "offline", {"service": SERVICE}, retain=True)
        connection = Connection(
            broker_of(
                self.config.local_broker,
                client_id=self._client_id,
                receive_maximum=self.config.limits.max_pending,
                will=will,
            )
        )
        bridge = MQTTSearchBridge(connection, self.api)
        connection.on_connected(self._report_now.set)
        bridge.on_update(self._follow_now.set)
        await bridge.setup()
        connection.start()
        log.info(
            "ready: %d papers, model %s",
            self.api.engine.index.papers.count(),
            self.api.engine.model or "none",
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(self._follow_corpus(), name="follow corpus"),
                    tasks.create_task(self._report(connection, bridge), name="report status"),
                ]
                await self._stop.wait()
                for task in loops:
                    task.cancel()
        finally:
            await self._shut_down(connection, bridge)

    async def _shut_down(self, connection: Connection, bridge: MQTTSearchBridge) -> None:
        """Within 5 s, whatever is under way: each wait below is bounded."""
        await bridge.close()
        details = {"service": SERVICE, "version": __version__}
        farewell = [
            self._status_message(self._topics.own_status, "offline", details, retain=True),
            self._status_message(self._topics.status, "offline", details),
        ]
        with suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(FAREWELL_TIMEOUT_S):
                await asyncio.gather(*map(connection.send, farewell))
        await connection.stop()
        # Building an index of many vectors cannot be interrupted, and need not be waited for: papers.db is safe to
        # leave at any moment, and half a segment is never used.
        self._upkeep.shutdown(wait=False, cancel_futures=True)
        if not self._job or await asyncio.to_thread(wait, [self._job], UPKEEP_TIMEOUT_S) == ({self._job}, set()):
            self.api.close()
        log.info("stopped")

    def _open(self) -> None:
        engine = self.api.open(owner=True).engine
        # The first question loads code and pages that every later one finds in memory: ask it ourselves. What fails
        # here would fail every client: it is noted and mended while the agent runs.
        with suppress(AgentError):
            engine.search(SearchRequest(query="the first question"))
        host.release_memory()

    # -- loops ------------------------------------------------------------------------------------------------

    async def _follow_corpus(self) -> None:
        """Notice what commands wrote into papers.db, make it searchable, and embed what has no vector."""
        while True:
            try:
                self._job = self._upkeep.submit(self._upkeep_once)
                await asyncio.wrap_future(self._job)
            except AgentError as error:
                log.error("following the corpus failed: %s", error.message)  # noqa: TRY400  the message says it all
            except Exception:
                log.exception("following the corpus failed; search goes on with what it has")
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_INTERVAL_S):
                    await self._follow_now.wait()
            self._follow_now.clear()

    def _upkeep_once(self) -> None:
        engine = self.api.engine
        index = engine.index
        if index.is_behind():
            index.catch_up()
        change = index.papers.last_change()
        if engine.embedder and self.config.corpus.embed_in_background and change != self._embedded:
            done = embed_missing(index, engine.embedder, workers=1, stop=self._stop.is_set)
            if done is not None and not self._stop.is_set():
                self._embedded = change
            if done:
                log.info("embedded %d papers", done)
                self._report_now.set()

    async def _report(self, connection: Connection, bridge: MQTTSearchBridge) -> None:
        """Publish the status after each connect and at every heartbeat."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.config.health.heartbeat_s):
                    await self._report_now.wait()
            self._report_now.clear()
            if not connection.connected.is_set():
                continue
            try:
                details = await self._details(bridge)
                status = "degraded" if details["problems"] else "online"
                await connection.send(self._status_message(self._topics.own_status, status, details, retain=True))
                await connection.send(self._status_message(self._topics.status, status, details))
            except BrokerError as error:
                log.warning("status not sent: %s", error.message)
            except Exception:
                log.exception("the status could not be read; search goes on")

    # -- status -----------------------------------------------------------------------------------------------

    def _status_message(self, topic: str, status: str, details: dict[str, Any], *, retain: bool = False) -> Outgoing:
        payload = encode_status(status, details, client_id=self._client_id, timestamp=time.time())
        return Outgoing(topic, payload, retain=retain)

    async def _details(self, bridge: MQTTSearchBridge) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.api.pool, self._read_details, bridge)

    def _read_details(self, bridge: MQTTSearchBridge) -> dict[str, Any]:
        engine = self.api.engine
        papers = engine.index.papers
        capabilities = ["keyword_search"] + (["semantic_search", "hybrid_search"] if engine.embedder else [])
        return {
            "service": SERVICE,
            "version": __version__,
            "capabilities": capabilities,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "corpus": {
                "papers": papers.count(),
                "embedded": papers.count_embedded(self.config.model.name),
                "version": engine.corpus_version,
            },
            "model": engine.model,
            "queue": {"pending": bridge.pending, "max_pending": self.config.limits.max_pending},
            "counters": dict(bridge.counters),
            "memory_mb": host.memory_mb(),
            "disk_free_mb": host.disk_free_mb(self.config.data_dir),
            "temperature_c": host.temperature_c(),
            "problems": self.api.problems,
        }
