"""What the cloud link costs the local one, and how fast it is back: the agent between a broker and the local cloud."""

import asyncio
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.aws import AWSIoTMQTTClient
from agent.errors import BrokerError
from agent.local_cloud.control import command
from agent.local_cloud.mosquitto import Mosquitto, free_port
from benchmarks.agent import COMMAND, config_for
from benchmarks.data import corpus, queries
from benchmarks.report import percentiles, publish

THING: Final = "bench"
FAULTS: Final = ("cut", "freeze", "throttle", "refuse", "delay")
DELAY_MS: Final = 3_000
KEEP_ALIVE_S: Final = 30
"""The least that AWS IoT Core takes."""
BACKOFF_STEP_S: Final = 1.0
"""The longest first wait of a link that had stood for a while (agent/cloud/link.py)."""
STABLE_S: Final = 31.0
"""More than the 30 s after which the library starts again with the shortest wait."""
AWAY_S: Final = 8.0
"""Of the local broker: long enough for the longest wait between attempts."""
WAIT_S: Final = 90.0


class Setting(NamedTuple):
    """The agent, its local broker, and the local cloud with the broker behind its gateway."""

    agent: subprocess.Popen[bytes]
    log: Path
    cloud: Path
    port: int
    broker: Mosquitto
    data_dir: Path

    def fault(self, name: str) -> None:
        command(self.cloud, do="fault", fault=name, milliseconds=DELAY_MS if name == "delay" else 0)

    def said(self, what: str, since: int = 0) -> bool:
        return what in self.log.read_text("utf-8")[since:]

    def connected(self, since: int = 0) -> bool:
        return self.said(f"connected to localhost:{self.port}", since)

    def size(self) -> int:
        return len(self.log.read_text("utf-8"))

    def client(self, port: int) -> AWSIoTMQTTClient:
        broker = Mosquitto(self.cloud, port=port)  # only its port is asked for
        return AWSIoTMQTTClient(config_for(broker, self.data_dir), link="local")

    def port_behind(self) -> int:
        """Of the broker behind the gateway: who asks there does not lose its own link with the agent's."""
        found = re.search(r"listener (\d+)", (self.cloud / "broker" / "mosquitto.conf").read_text("utf-8"))
        if not found:
            raise BrokerError("the local cloud has no broker")
        return int(found[1])


@contextmanager
def _setting(data_dir: Path) -> Iterator[Setting]:
    with tempfile.TemporaryDirectory(prefix="arxplorer-bench-") as folder:
        Path(folder).chmod(0o755)  # mosquitto gives up root
        cloud, port, log = Path(folder, "cloud"), free_port(), Path(folder, "agent.log")
        serve = [COMMAND, "local-cloud", "--dir", str(cloud), "--port", str(port), "--thing", THING]
        serving = subprocess.Popen(serve, stdout=subprocess.PIPE)
        try:
            serving.stdout and serving.stdout.readline()
            with Mosquitto(Path(folder, "broker")) as broker, log.open("ab") as stream:
                environment = {
                    **os.environ,
                    "ARXPLORER__LOCAL_BROKER__PORT": str(broker.port),
                    "ARXPLORER__AWS_IOT__KEEP_ALIVE": str(KEEP_ALIVE_S),
                }
                run = [
                    COMMAND,
                    "--config",
                    str(cloud / "things" / THING / "config.yaml"),
                    "--data-dir",
                    str(data_dir),
                    "run",
                ]
                agent = subprocess.Popen(run, env=environment, stderr=stream)
                try:
                    yield Setting(agent, log, cloud, port, broker, data_dir)
                finally:
                    agent.terminate()
                    agent.wait(10)
        finally:
            serving.terminate()
            serving.wait(10)


async def _until(condition: Any) -> float:
    """Wait for it; the seconds that it took, to 10 ms."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > WAIT_S:
            raise BrokerError(f"not within {WAIT_S:g} s")
        await asyncio.sleep(0.01)
    return time.monotonic() - started


def measure(size: str, blocks: int, block: int) -> None:
    with _setting(corpus(size).data_dir) as setting:
        asyncio.run(_measure(setting, size, blocks, block))


def measure_arrival(size: str, times: int = 8) -> None:
    """Seconds from a local broker's arrival to the agent's subscriptions there; it had none for a while before."""
    with _setting(corpus(size).data_dir) as setting:
        found = asyncio.run(_arrivals(setting, times))
    row = {"median_s": round(statistics.median(found), 2), "most_s": round(max(found), 2)}
    publish(f"arrival-{size}", {"local broker": row}, arrivals=times)


def measure_offline(size: str, blocks: int, block: int) -> None:
    """Local questions in blocks, in turn with the cloud there and with nobody at its address."""
    with _setting(corpus(size).data_dir) as setting:
        found = asyncio.run(_offline(setting, queries(blocks * block), block))
    healthy, failing, unanswered = found
    publish(
        f"offline-{size}",
        {"cloud there": percentiles(healthy), "cloud gone": percentiles(failing["refuse"])},
        ratio_of_medians=round(statistics.median(failing["refuse"]) / statistics.median(healthy), 3),
        local_requests=len(healthy) + len(failing["refuse"]),
        local_requests_unanswered=unanswered,
    )


async def _offline(setting: Setting, texts: list[str], block: int) -> tuple[list[float], dict[str, list[float]], int]:
    await _until(setting.connected)
    local = setting.client(setting.broker.port)
    await local.connect()
    found = await _local(setting, local, texts, block, ("refuse",))
    await local.disconnect()
    return found


async def _arrivals(setting: Setting, times: int) -> list[float]:
    here = f"connected to 127.0.0.1:{setting.broker.port}"
    await _until(lambda: setting.said(here))
    found = []
    for _ in range(times):
        await asyncio.to_thread(setting.broker.stop)
        await asyncio.sleep(AWAY_S)
        since = setting.size()
        await asyncio.to_thread(setting.broker.start)
        found.append(await _until(lambda since=since: setting.said(here, since)))
    return found


async def _measure(setting: Setting, size: str, blocks: int, block: int) -> None:
    await _until(setting.connected)
    local = setting.client(setting.broker.port)
    await local.connect()
    healthy, failing, unanswered = await _local(setting, local, queries(blocks * block), block)
    await local.disconnect()
    behind = setting.client(setting.port_behind())
    await behind.connect()
    back = await _cuts(setting, behind, 6)
    await behind.disconnect()
    frozen = [await _freeze(setting) for _ in range(2)]
    rows = {"cloud healthy": percentiles(healthy)} | {f"cloud {name}": percentiles(t) for name, t in failing.items()}
    publish(
        f"cloud-{size}",
        rows,
        ratios_of_medians={
            name: round(statistics.median(times) / statistics.median(healthy), 3) for name, times in failing.items()
        },
        ratio_of_medians=round(statistics.median(sum(failing.values(), [])) / statistics.median(healthy), 3),  # noqa: RUF017
        local_requests=len(healthy) + sum(map(len, failing.values())),
        local_requests_unanswered=unanswered,
        answered_after_cut_s={"median": round(statistics.median(back), 2), "most": round(max(back), 2)},
        beyond_the_backoff_step_s=round(max(back) - BACKOFF_STEP_S, 2),
        freeze_noticed_s=[round(seconds, 1) for seconds in frozen],
        freeze_noticed_keep_alives=round(max(frozen) / KEEP_ALIVE_S, 2),
        keep_alive_s=KEEP_ALIVE_S,
    )


async def _local(
    setting: Setting, client: AWSIoTMQTTClient, texts: list[str], block: int, faults: Sequence[str] = FAULTS
) -> tuple[list[float], dict[str, list[float]], int]:
    """Blocks of local questions, in turn with the cloud healthy and with one of the faults."""
    healthy: list[float] = []
    failing: dict[str, list[float]] = {name: [] for name in faults}
    unanswered = 0
    parts = [texts[start : start + block] for start in range(0, len(texts), block)]
    for number, part in enumerate([parts[0], *parts]):  # the first one twice: it warms up
        fault = faults[number // 2 % len(faults)] if number % 2 else None
        if fault:
            since = setting.size()
            setting.fault(fault)
        times = []
        for text in part:
            started = time.perf_counter()
            try:
                await client.ask(text, timeout_s=10)
                times.append(time.perf_counter() - started)
            except BrokerError:
                unanswered += 1
        if number:
            (failing[fault] if fault else healthy).extend(times)
        if fault:
            setting.fault("clear")
            if setting.said("lost", since):
                await _until(lambda since=since: setting.connected(since))
    return healthy, failing, unanswered


async def _cuts(setting: Setting, client: AWSIoTMQTTClient, times: int) -> list[float]:
    """Seconds from a cut to the answer of a request sent right after it."""
    found = []
    for _ in range(times):
        await asyncio.sleep(STABLE_S)
        setting.fault("cut")
        started = time.monotonic()
        with suppress(BrokerError):
            await client.ask("what came after the cut", thing_name=THING, timeout_s=WAIT_S)
        found.append(time.monotonic() - started)
    return found


async def _freeze(setting: Setting) -> float:
    """Seconds until a frozen link is given up."""
    since = setting.size()
    setting.fault("freeze")
    taken = await _until(lambda: setting.said(f"link to localhost:{setting.port} lost", since))
    since = setting.size()
    setting.fault("clear")
    await _until(lambda: setting.connected(since))
    return taken
