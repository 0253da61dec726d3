"""The link to AWS IoT Core: which of the endpoints, with what identity, and whether it still hears."""

import asyncio
import datetime as dt
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agent.cloud.identity import check_identity
from agent.config import AwsIot
from agent.errors import AgentError, BrokerError, ConfigError
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker, Tls
from agent.protocol.limits import ALPN, IOT_CORE
from agent.protocol.topics import AgentTopics, topic_fits

log = logging.getLogger(__name__)

ALPN_PORT: Final = 443
FIRST_BACKOFF_S: Final = 1.0
CLOSED: Final = "AWS_IO_SOCKET_CLOSED"
NOT_AUTHORIZED: Final = 0x87
DEAF: Final = "connected, but hears nothing: does the policy allow iot:Receive on its own request topic?"


class Patience(NamedTuple):
    """Named so that a test may shorten it; all in seconds but the attempts."""

    attempts: int = 3
    """At one endpoint before the next one gets its turn."""
    return_s: float = 300.0
    """At another endpoint before the first one is tried again."""
    come_up_s: float = 20.0
    """For the first endpoint to show that it is back."""
    recheck_s: float = 10.0
    """Between looks at certificates, or a clock, that cannot be used."""
    echo_s: float = 20.0
    """For a probe's message to come back."""
    drain_s: float = 1.5
    """For what came by an endpoint that is left to be answered."""


def cloud_brokers(aws_iot: AwsIot, thing_name: str) -> list[Broker]:
    """The configured endpoints, in the order to try them. Raises ConfigError naming the key."""
    endpoints = list(dict.fromkeys(filter(None, (aws_iot.endpoint, *aws_iot.endpoints))))
    if not endpoints:
        raise ConfigError("is empty", path="aws_iot.endpoint", hint="arxplorer-agent cloud setup finds it")
    topics = AgentTopics.of(aws_iot.topics, thing_name)
    for name, topic in topics._asdict().items():
        if not topic_fits(topic, IOT_CORE):
            raise ConfigError(
                f"{topic!r} does not fit AWS IoT Core: at most {IOT_CORE.topic_bytes} bytes and "
                f"{IOT_CORE.topic_slashes} slashes ({name})",
                path="aws_iot.topics",
            )
    certificates = aws_iot.certificates
    brokers = []
    for endpoint in endpoints:
        host, _, given = endpoint.partition(":")
        if given and not given.isdecimal():
            raise ConfigError(f"{endpoint!r}: expected HOST or HOST:PORT", path="aws_iot.endpoint")
        port = int(given or aws_iot.port)
        brokers.append(
            Broker(
                host=host,
                port=port,
                client_id=thing_name,
                tls=Tls(
                    certificates.ca_cert,
                    certificates.cert_file,
                    certificates.private_key,
                    ALPN if port == ALPN_PORT else None,
                ),
                keep_alive_s=aws_iot.keep_alive,
                qos=aws_iot.qos,
                reconnect_ms=(int(FIRST_BACKOFF_S * 1e3), aws_iot.max_backoff_s * 1_000),
                limits=IOT_CORE,
                topics=topics,
                share_group=aws_iot.share_group,
            )
        )
    return brokers


def explainer(aws_iot: AwsIot) -> Callable[[str], str]:
    """For `Connection`: what keeps it from coming up, named where it is our certificates or our clock."""

    def explain(reason: str) -> str:
        closed = CLOSED in reason  # with TLS 1.3 that is what is seen of a certificate that the server does not take
        if "TLS" not in reason and not closed:
            return reason
        try:
            check_identity(aws_iot.certificates, _now())
        except ConfigError as error:
            return error.message
        if closed:
            return f"{reason} Perhaps the server does not take our certificate, which is in order."
        return (
            f"{reason} Our certificate is in order; either the server is not the one that "
            "aws_iot.certificates.ca_cert vouches for under this name, or it does not take our certificate."
        )

    return explain


class CloudLink:
    """Keeps one of several endpoints connected: the first that can be had, and the first of all once it is back."""

    def __init__(
        self,
        aws_iot: AwsIot,
        connections: Sequence[Connection],
        *,
        patience: Patience = Patience(),  # noqa: B008  unchangeable
        now: Callable[[], dt.datetime] | None = None,
        idle: Callable[[Connection], bool] = lambda _: True,
    ) -> None:
        """`idle` says whether nothing that came by a connection is still to be answered."""
        self.connections: Final = tuple(connections)
        self._aws_iot: Final = aws_iot
        self._patience: Final = patience
        self._now: Final = now or _now
        self._idle: Final = idle
        self._identity_problem: str | None = None
        self._files: dict[Connection, object] = {}  # those with which a connection was last started
        self._changed: Final = asyncio.Event()
        for connection in self.connections:
            connection.on_change(self._changed.set)

    @property
    def problems(self) -> list[str]:
        """What a person should do something about, in words."""
        own = [self._identity_problem] if self._identity_problem else []
        return own + [problem for connection in self.connections for problem in connection.problems]

    async def run(self) -> None:
        """Until cancelled; `stop` then disconnects."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._roam(), name="cloud endpoints")
            for connection in self.connections:
                tasks.create_task(self._probe(connection), name=f"probe {connection.address}")

    async def stop(self) -> None:
        await asyncio.gather(*(connection.stop() for connection in self.connections))

    # -- endpoints --------------------------------------------------------------------------------------------

    async def _roam(self) -> None:
        first = current = self.connections[0]
        await self._start(current)
        failed = 0  # endpoints, one after the other
        while True:
            only = len(self.connections) == 1
            await self._until_given_up(current, None if only or current is first else self._patience.return_s)
            if current.failed_attempts and self._files[current] != self._look():
                await current.stop()
                await self._start(current)
            elif current.failed_attempts:
                failed += 1
                await current.stop()
                if failed % len(self.connections) == 0:
                    round_s = FIRST_BACKOFF_S * 2 ** min(failed // len(self.connections), 16)
                    await asyncio.sleep(min(round_s, self._aws_iot.max_backoff_s) * random.random())  # noqa: S311  jitter
                current = self.connections[(self.connections.index(current) + 1) % len(self.connections)]
                log.warning("trying the next endpoint, %s", current.address)
                await self._start(current)
            else:
                failed = 0
                current = await self._return(current, first)

    async def _return(self, current: Connection, first: Connection) -> Connection:
        """Go back to the first endpoint if it is there again; which one is in use from here on."""
        if not await self._comes_up(first):
            await first.stop()
            return current
        log.warning("%s is back: returning to it", first.address)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience.drain_s):
                # What is unacknowledged at the end waits in a session that may not be asked for again.
                while not self._idle(current):  # noqa: ASYNC110  the bridge counts on other threads
                    await asyncio.sleep(0.01)
        await current.stop()
        return first

    async def _until_given_up(self, connection: Connection, at_most_s: float | None) -> None:
        """Until so many attempts have failed in a row, or until one has and the certificates are new.

        Or, if so long, until then and for as long as it is down.
        """
        attempts = self._patience.attempts if len(self.connections) > 1 else float("inf")
        loop = asyncio.get_running_loop()
        deadline = None if at_most_s is None else loop.time() + at_most_s * random.uniform(0.9, 1.1)  # noqa: S311
        while connection.failed_attempts < attempts:
            self._changed.clear()
            if connection.failed_attempts and self._files[connection] != self._look():
                return  # other certificates than the library has in hand
            over = deadline is not None and loop.time() >= deadline
            if over and connection.connected.is_set():
                return
            try:
                async with asyncio.timeout_at(None if over else deadline):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _comes_up(self, connection: Connection) -> bool:
        try:
            async with asyncio.timeout(self._patience.come_up_s):
                await self._start(connection)
                while not connection.connected.is_set() and not connection.failed_attempts:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return connection.connected.is_set()

    async def _start(self, connection: Connection) -> None:
        """Start a connection, once there are certificates and a clock to do it with."""
        while True:
            try:
                files = self._look()
                await asyncio.to_thread(check_identity, self._aws_iot.certificates, self._now())
                if self._files.get(connection) != files:
                    connection.forget_client()
                self._files[connection] = files
                connection.start()
            except Exception as error:  # noqa: BLE001  the library's own too: nothing here may stop the agent
                self._report(error.message if isinstance(error, AgentError) else str(error))
                await asyncio.sleep(self._patience.recheck_s)
            else:
                self._report(None)
                return

    def _look(self) -> object:
        """Changes whenever one of the files does."""
        found: list[object] = []
        for file in msgspec.structs.astuple(self._aws_iot.certificates):
            with suppress(OSError):
                seen = Path(file).stat()
                found.append((seen.st_ino, seen.st_mtime_ns, seen.st_size))
        return found

    def _report(self, problem: str | None) -> None:
        if problem and problem != self._identity_problem:
            log.error("no cloud link: %s", problem)
        elif self._identity_problem and not problem:
            log.info("certificates and clock are in order now")
        if problem != self._identity_problem:
            self._identity_problem = problem
            self.connections[0].tell_change()

    # -- hearing ----------------------------------------------------------------------------------------------

    async def _probe(self, connection: Connection) -> None:
        """After each connect, and then from time to time, see whether what is sent to us arrives."""
        came_up = asyncio.Event()
        connection.on_connected(came_up.set)
        topics = connection.broker.topics
        deaf = 0  # times, one after the other
        while topics:
            await connection.connected.wait()
            came_up.clear()
            try:
                deaf = deaf + 1 if await self._is_deaf(connection, topics.own_requests, came_up) else 0
            except BrokerError as error:
                if connection.ended_with == NOT_AUTHORIZED:
                    log.error("no more probes: the policy does not allow publishing on %s", topics.own_requests)  # noqa: TRY400
                    return
                log.info("probe not sent: %s", error.message)
            if deaf > 1:  # a new link did not help, and each one costs requests under way: more and more seldom
                await asyncio.sleep(min(self._patience.echo_s * 2 ** min(deaf, 16), self._aws_iot.probe_s))
            try:
                async with asyncio.timeout(self._aws_iot.probe_s * random.uniform(0.9, 1.1)):  # noqa: S311
                    await came_up.wait()
            except TimeoutError:
                continue

    async def _is_deaf(self, connection: Connection, topic: str, came_up: asyncio.Event) -> bool:
        """Whether a link that stood all the time did not hear itself. Raises BrokerError when it cannot be tried."""
        if await connection.echoes(topic, self._patience.echo_s):
            return False
        if came_up.is_set() or not connection.connected.is_set():
            return False  # what was sent to it may have been lost with the link
        log.error("%s: %s; connecting anew", connection.address, DEAF)
        connection.raise_alarm(DEAF)
        connection.renew()
        return True


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
