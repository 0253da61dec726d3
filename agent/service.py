"""The running agent: opens the corpus, connects, answers, keeps its indexes up to date, reports, stops in order."""

import asyncio
import itertools
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

from agent import __version__
from agent.channel import SERVICE, Channel
from agent.config import Config, find_config_file, load_config
from agent.configuring import Configurator
from agent.corpus.keeper import CorpusKeeper
from agent.corpus.trials import HeldBackPacks
from agent.corpus.updates import LiveUpdates
from agent.device import host
from agent.device.heartbeat import HeartbeatFile
from agent.device.liveness import Liveness
from agent.device.request_marks import RequestMarks, marks_file
from agent.domain import SearchRequest
from agent.errors import AgentError, ConfigError, CorpusError
from agent.logs import set_level
from agent.mqtt.connection import Connection
from agent.mqtt.local import local_broker
from agent.mqtt.packets import Broker
from agent.search.api import SearchAPI
from agent.settings import Settings
from agent.store import agent_db
from agent.store.accepted import AcceptedSettings
from agent.store.agent_db import AgentDatabase
from agent.store.generations import current_folder
from agent.store.journal import Journal
from agent.store.outbox import Outbox
from agent.updating import Updater, give_way

if TYPE_CHECKING:
    from agent.cloud.jobs import Operation
    from agent.cloud.link import CloudLink
    from agent.cloud.services import CloudServices
    from agent.corpus.harvest_timer import HarvestTimer

log = logging.getLogger(__name__)

FOLLOW_INTERVAL_S: Final = 1.0
CLOSE_TIMEOUT_S: Final = 0.5


class MQTTSearchService:
    """The agent, complete.

    await MQTTSearchService().run_forever()
    """

    def __init__(self, config: Config | None = None, *, sample: bool = False) -> None:
        """Without a configuration, the one that the command line would use. Raises ConfigError.

        With `sample`, a corpus that never held a paper begins with the sample papers.
        """
        self.config: Final = config or load_config(find_config_file(None))
        if not (self.config.local_broker.enabled or self.config.aws_iot.enabled):
            raise ConfigError("no broker is enabled, so nobody could ask", path="local_broker.enabled")
        self.api: Final = SearchAPI(self.config)
        self._sample: Final = sample
        self._channels: list[Channel] = []
        self._cloud: CloudLink | None = None
        self._services: list[CloudServices] = []
        # One job at a time, whichever region it comes from. One that is under way is told to end, and not waited for.
        self._job_pool: Final = ThreadPoolExecutor(1, thread_name_prefix="job", initializer=give_way)
        # Settings are put into effect, and kept on disk, by one thread that a stop need not wait for.
        self._settling: Final = ThreadPoolExecutor(1, thread_name_prefix="settings")
        self._settings = Settings.of(self.config)
        database = AgentDatabase(self.config.data_dir / agent_db.NAME)
        self._database: Final = database
        self._journal: Final = Journal(database)
        self._updates: Final = LiveUpdates(self.api, self._journal)
        self._held_back: Final = HeldBackPacks(database)
        self._outbox: Final = Outbox(database, self.config.outbox)
        self._marks: Final = RequestMarks(marks_file(self.config.data_dir))
        self._disk: Final = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._configurator: Final = Configurator(
            self._settings,
            AcceptedSettings(database),
            owners=[self._configure],
            probe=self._probe,
        )
        self._updater: Final = Updater(
            self.api, database, changed=self._corpus_changed, gone_over=self._searches_current
        )
        self._add_channels()
        self._started = time.monotonic()
        self._stop = asyncio.Event()
        self._follow_now = asyncio.Event()
        # One thread, hence one SQLite connection, follows the corpus; it also embeds what has no vector yet.
        self._upkeep: Final = ThreadPoolExecutor(1, thread_name_prefix="upkeep")
        self._job: Future[None] | None = None
        self._links: tuple[Any, ...] = ()  # as they were last reported
        self._liveness: Final = Liveness(
            answered=lambda: sum(channel.bridge.counters["answers"] for channel in self._channels),
            prove=self._prove,
            pool=lambda: self.api.pool,
            file=HeartbeatFile(self.config.data_dir),
        )
        self._harvest: Final = self._harvest_timer()
        self._keeper: Final = CorpusKeeper(
            self.api,
            self._journal,
            self._held_back,
            stop=self._stop.is_set,
            changed=self._report_from_thread,
        )

    def _add_channels(self) -> None:
        thing_name = self.config.thing_name
        if self.config.local_broker.enabled:
            broker = local_broker(self.config.local_broker, thing_name)
            self._channels.append(self._channel("local", broker))
        aws_iot = self.config.aws_iot
        if aws_iot.enabled:
            # Loads what reads certificates, which a device without a cloud link need not hold in memory.
            from agent.cloud.link import CloudLink, cloud_brokers, explainer

            explain = explainer(aws_iot)
            cloud = [self._channel("cloud", broker, explain) for broker in cloud_brokers(aws_iot, thing_name)]
            bridges = {channel.connection: channel.bridge for channel in cloud}
            self._cloud = CloudLink(aws_iot, list(bridges), idle=lambda connection: not bridges[connection].pending)
            self._channels += cloud
            self._services = [self._services_of(channel.connection) for channel in cloud]

    def _channel(self, name: Literal["local", "cloud"], broker: Broker, explain: Callable[[str], str] = str) -> Channel:
        return Channel(name, broker, self.api, self._updates, self._outbox, self._marks, self._disk, explain=explain)

    def _services_of(self, connection: Connection) -> "CloudServices":
        from agent.cloud.services import CloudServices

        def targets(wished: Any) -> dict[str, Any]:
            engine = self.api.engine
            return self._updater.targets(wished, model=engine.model, corpus_version=engine.corpus_version)

        return CloudServices(
            connection,
            self.config.thing_name,
            apply=self._configurator.apply,
            targets=targets,
            facts=lambda: {"version": __version__, "corpus_version": self.api.engine.corpus_version},
            settling=self._settling,
            operations=self._operations(),
            job_pool=self._job_pool,
            restart=self.stop,
        )

    def _operations(self) -> "dict[str, Operation]":
        """What jobs may ask for, by the name of the operation."""
        return {"corpus.update": self._updater.corpus_job, "model.update": self._updater.model_job}

    def _harvest_timer(self) -> "HarvestTimer | None":
        wanted = self.config.corpus.harvest
        if not (wanted.categories and wanted.interval_s):
            return None
        # Loads an HTTP client, which a device that harvests nothing need not hold in memory.
        from agent.corpus.harvest_timer import HarvestTimer

        return HarvestTimer(self.api, self._updates.apply, self._database, done=self._follow_from_thread)

    def stop(self) -> None:
        """Ask `run_forever` to end in order."""
        self._stop.set()

    async def run_forever(self) -> None:
        """Run until SIGTERM, SIGINT or `stop`."""
        self._loop = loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        for channel in self._channels:
            channel.configure(self._settings)
        proven = await loop.run_in_executor(self._upkeep, self._open)
        for channel in self._channels:
            channel.bridge.on_update(self._follow_now.set)
            channel.connection.on_change(self._report_links)
            channel.delivery.on_problem(self._report_everywhere)  # a link that is down cannot tell of it itself
            await channel.bridge.setup()
            if channel.name == "local":
                channel.connection.start()
        log.info(
            "ready: %d papers, model %s; %d searches at a time, planned for %d MiB",
            self.api.engine.index.papers.count(),
            self.api.engine.model or "none",
            self.api.workers,
            self.api.footprint.memory_mib,
        )
        if self._harvest:
            self._harvest.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(self._liveness.run(proven), name="liveness"),
                    tasks.create_task(self._follow_corpus(), name="follow corpus"),
                ]
                for channel in self._channels:
                    name = channel.connection.address
                    loops.append(tasks.create_task(channel.report(self._details), name=f"report to {name}"))
                    loops.append(tasks.create_task(channel.delivery.run(), name=f"deliver to {name}"))
                if self._cloud:
                    loops.append(tasks.create_task(self._cloud.run(), name="cloud link"))
                loops.append(tasks.create_task(self._updater.run(), name="corpus updates"))
                for services in self._services:
                    loops += services.start(tasks)
                await self._stop.wait()
                for task in loops:
                    task.cancel()
        finally:
            await self._shut_down()

    async def _shut_down(self) -> None:
        """Within 5 s, whatever is under way: each wait below is bounded."""
        if self._harvest:
            self._harvest.stop()
        self._updater.stop()
        await asyncio.gather(*(channel.close() for channel in self._channels))
        # Building an index of many vectors cannot be interrupted, and need not be waited for: papers.db is safe to
        # leave at any moment, and half a segment is never used.
        self._upkeep.shutdown(wait=False, cancel_futures=True)
        # Nor can settings that are put into effect: what the disk has not taken yet is wished for again.
        working = [self._settling.submit(lambda: None), *([self._job] if self._job else [])]
        self._settling.shutdown(wait=False)
        self._job_pool.shutdown(wait=False, cancel_futures=True)
        self._disk.shutdown(wait=False)
        self._marks.close()
        closing = threading.Thread(target=self._close, args=[working], name="close", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_TIMEOUT_S)
        log.info("stopped")

    def _close(self, working: list[Future[None]]) -> None:
        """Put away what is worth it. What a search, a person or a slow disk holds on to is safe to leave, too."""
        self._keeper.end_trial()
        wait(working)
        if self._harvest:
            self._harvest.stop(CLOSE_TIMEOUT_S)
        self._keeper.close()
        self._database.close()
        self.api.close()

    def _open(self) -> str:
        """Open the corpus and ask a first question; how the agent does, in words."""
        self._keeper.open()
        engine = self.api.engine
        if self._sample and not engine.index.papers.last_change():
            self._import_sample()
        # The first question loads code and pages that every later one finds in memory: ask it ourselves. What fails
        # here would fail every client: it is noted and mended while the agent runs.
        proven = self._prove()
        self._outbox.load()
        if self._cloud:
            self._configurator.start()  # what the shadow last set holds without a network, too
        return proven

    def _import_sample(self) -> None:
        from agent.corpus.importer import import_papers, read_vectors
        from agent.corpus.sample import SAMPLE_PAPERS, sample_vectors

        model = self.api.model_name
        given = sample_vectors(model)
        try:
            vectors = read_vectors(given, self.api.dimensions) if given else None
            report = import_papers(str(SAMPLE_PAPERS), self.api.engine.index, model, vectors=vectors)
        except AgentError as error:
            log.error("the sample corpus cannot be imported: %s", error.message)  # noqa: TRY400  the message says it all
        else:
            log.info("no papers yet: imported the sample corpus of %d", report.added)

    # -- settings -----------------------------------------------------------------------------------------------

    def _configure(self, settings: Settings) -> None:
        """Put settings into effect. In a worker thread."""
        self._settings = settings
        self.api.configure(settings.search)
        set_level(settings.logging.level)
        self._outbox.configure(settings.outbox)
        self._updater.configure(settings.corpus)
        for channel in self._channels:
            self._loop.call_soon_threadsafe(channel.configure, settings)

    def _probe(self) -> None:
        """Whether questions are still answered. Raises AgentError."""
        self.api.engine.search(SearchRequest(query="the first question"))

    def _prove(self) -> str:
        """Answer a question as a client's; how the agent does, in words. In a worker.

        A new start mends no corpus that is absent, damaged or being made again: there it is proof enough that the
        workers turn.
        """
        try:
            self._probe()
            self._keeper.proven()
            problems = self._problems()
        except AgentError as error:
            problems = [error.message]
        except BaseException:  # a native library's panic is no Exception
            problems = self._problems()
            if not problems:
                raise
        return f"degraded: {'; '.join(problems)}" if problems else "answering"

    # -- loops ------------------------------------------------------------------------------------------------

    async def _follow_corpus(self) -> None:
        """Notice what commands wrote into papers.db, make it searchable, and embed what has no vector."""
        for turn in itertools.count():
            self._job = self._upkeep.submit(self._keeper.turn)
            await asyncio.wrap_future(self._job)
            if turn == 1:  # not sooner: questions that have waited for the agent come first
                self._upkeep.submit(host.release_memory)
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_INTERVAL_S):
                    await self._follow_now.wait()
            self._follow_now.clear()

    def _report_everywhere(self) -> None:
        for channel in self._channels:
            channel.report_soon()

    def _report_from_thread(self) -> None:
        with suppress(RuntimeError):  # a loop that has ended reports nothing any more
            self._loop.call_soon_threadsafe(self._report_everywhere)
        for services in self._services:
            services.changed()

    def _follow_from_thread(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._follow_now.set)

    def _corpus_changed(self) -> None:
        """There is another generation, or something to say of one that is on its way. From any thread."""
        self._follow_from_thread()
        self._report_from_thread()

    def _searches_current(self) -> bool:
        return self.api.engine.index.folder == current_folder(self.config.data_dir)

    def _report_links(self) -> None:
        """A link that came up, went or got into trouble is of interest on the others; each failed attempt is not."""
        links = (*(channel.connection.connected.is_set() for channel in self._channels), *self._link_problems())
        if links != self._links:
            self._links = links
            self._report_everywhere()

    # -- status -----------------------------------------------------------------------------------------------

    async def _details(self) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(self.api.pool, self._read_details)

    def _read_details(self) -> dict[str, Any]:
        engine = self.api.engine
        papers = engine.index.papers
        count = embedded = 0  # where nobody can tell: the problems say why
        with suppress(CorpusError):
            count, embedded = papers.count(), papers.count_embedded(engine.index.model)
        capabilities = ["keyword_search"] + (["semantic_search", "hybrid_search"] if engine.embedder else [])
        return {
            "service": SERVICE,
            "version": __version__,
            "capabilities": capabilities,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "corpus": {"papers": count, "embedded": embedded, "version": engine.corpus_version},
            "model": engine.model,
            "queue": {
                "pending": sum(channel.bridge.pending for channel in self._channels),
                "max_pending": self._settings.limits.max_pending,
            },
            "links": [channel.state() for channel in self._channels],
            "outbox": self._outbox.counts(),
            "counters": dict(sum((channel.bridge.counters for channel in self._channels), Counter())),
            "memory_mb": host.memory_mb(),
            "disk_free_mb": host.disk_free_mb(self.config.data_dir),
            "temperature_c": host.temperature_c(),
            "problems": self._problems() + self._link_problems() + self._delivery_problems(),
        }

    def _problems(self) -> list[str]:
        return self.api.problems + self._keeper.problems + self._updater.problems + self._harvest_problems()

    def _harvest_problems(self) -> list[str]:
        return self._harvest.problems if self._harvest else []

    def _link_problems(self) -> list[str]:
        found = self._cloud.problems if self._cloud else []
        for channel in self._channels:
            found += channel.connection.problems if channel.name == "local" else []
        return found

    def _delivery_problems(self) -> list[str]:
        return sorted({problem for channel in self._channels for problem in channel.delivery.problems})
