"""The runs of the lab. Each asks on both links, and ends when everything is answered or long overdue."""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final, Self

from conftest import wait_until

from faults.asker import Asker
from faults.figures import Sample, contents, growth, in_memory, sample, written
from faults.schedule import Fault
from faults.world import World

Say = Callable[[str], None]

BURST: Final = 8
"""Requests asked at once just before a fault, so that it meets some under way."""
PACE_S: Final = 0.03
"""Between two requests otherwise."""
MOST_OPEN: Final = 100
"""Requests without an answer when the next fault begins: a machine that is slow must not pile them up."""
OVERDUE_S: Final = 120.0
"""Without faults for so long, a request without an answer counts as unanswered."""
SAMPLE_S: Final = 10.0
PAUSE_S: Final = (0.5, 2.0)
"""Between two faults of a long run."""
OFFLINE_PACE_S: Final = 0.2


def campaign(
    world: World, faults: Sequence[Fault], requests: int, seed: int, say: Say = lambda _: None
) -> dict[str, Any]:
    """So many requests, spread evenly over the faults; each fault begins in the midst of its portion."""
    random_ = random.Random(seed)
    started = time.monotonic()
    with Asking(world, random_) as asking:
        for number, fault in enumerate(faults):
            portion = requests * (number + 1) // len(faults) - asking.asked
            asking.ask(round(fault.at * portion))
            rest = portion - round(fault.at * portion)
            asking.ask(min(BURST, rest), pace_s=0)
            with world.fault(fault):
                until = time.monotonic() + fault.duration_s
                asking.ask(max(0, rest - BURST))
                time.sleep(max(0.0, until - time.monotonic()))
            say(f"{number + 1}/{len(faults)} {fault.kind}: {asking.asked} asked, {asking.open} open")
            asking.finish(leave=MOST_OPEN)
        asking.finish()
        return {
            **asking.result(),
            "faults": dict(Counter(fault.kind for fault in faults).most_common()),
            "seconds": round(time.monotonic() - started, 1),
        }


def on_and_off(
    world: World, spans_s: Sequence[tuple[float, float]], seed: int, say: Say = lambda _: None
) -> dict[str, Any]:
    """The device is offline and online again in turn. Whoever asks over the cloud asks once, and gets an answer.

    Raises AssertionError when local questions are not answered while there is no cloud, or the others not after that.
    """
    random_ = random.Random(seed)
    local, inside = world.local_asker(), world.inside_asker()
    rounds = []
    try:
        wait_until(lambda: local.ready and inside.ready)
        for offline_s, online_s in spans_s:
            world.cloud.fault("refuse")
            offline = _in_turn((local, inside), world, random_, offline_s)
            wait_until(lambda: not local.open, OVERDUE_S)  # while there is no cloud
            waiting = inside.open
            world.cloud.fault("clear")
            online = _in_turn((local, inside), world, random_, online_s)
            wait_until(lambda: not inside.open, OVERDUE_S)
            rounds.append(
                {
                    "offline_s": offline_s,
                    "online_s": online_s,
                    "asked_offline": offline,
                    "asked_online": online,
                    "waiting_when_online": waiting,
                }
            )
            say(str(rounds[-1]))
    finally:
        local.stop()
        inside.stop()
    return {
        "rounds": rounds,
        "local": local.account().summary(),
        "cloud": inside.account().summary(),
        "audit": world.audit(),
    }


def _in_turn(askers: Sequence[Asker], world: World, random_: random.Random, seconds: float) -> int:
    until, asked = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for asker in askers:
            asker.ask(random_.choice(world.questions))
            asked += 1
        time.sleep(OFFLINE_PACE_S)
    return asked


def online(world: World, requests: int, seed: int) -> dict[str, Any]:
    """Nothing fails: what is written to disk meanwhile."""
    random_ = random.Random(seed)
    with Asking(world, random_) as asking:
        asking.ask(2 * BURST, pace_s=0)
        asking.finish()
        files, bytes_, log = contents(world.data_dir), written(world.pid), world.agent.log.stat().st_size
        asking.ask(requests)
        asking.finish()
        after = contents(world.data_dir)
        return {
            **asking.result(),
            "counted": not in_memory(world.data_dir),
            "written_bytes_per_1000": round((written(world.pid) - bytes_) * 1000 / requests),
            "log_bytes_per_1000": round((world.agent.log.stat().st_size - log) * 1000 / requests),
            "changed_files": sorted(name for name in files.keys() | after.keys() if files.get(name) != after.get(name)),
        }


def endurance(
    world: World, faults: Callable[[], Fault], seconds: float, seed: int, say: Say = lambda _: None
) -> dict[str, Any]:
    """Faults of which the agent's process survives each, for a long time: what it takes, and whether that grows."""
    random_ = random.Random(seed)
    until, due = time.monotonic() + seconds, 0.0
    samples: list[Sample] = []
    pid = world.pid
    kinds: Counter[str] = Counter()
    with Asking(world, random_) as asking:
        while time.monotonic() < until:
            fault = faults()
            asking.ask(BURST, pace_s=0)
            with world.fault(fault):
                asking.ask(round(fault.duration_s / PACE_S))
            kinds[fault.kind] += 1
            asking.finish(leave=MOST_OPEN)
            time.sleep(random_.uniform(*PAUSE_S))
            if time.monotonic() >= due and world.pid == pid:
                samples.append(sample(pid, world.data_dir))
                due = time.monotonic() + SAMPLE_S
                say(f"{samples[-1]}, {asking.asked} asked, {asking.open} open, {kinds.total()} faults")
        asking.finish()
        samples.append(sample(world.pid, world.data_dir))
        return {
            **asking.result(),
            "faults": dict(kinds.most_common()),
            "seconds": seconds,
            "one_process": world.pid == pid,
            "growth": growth(samples),
        }


class Asking:
    """Clients on both links, asked in random order."""

    def __init__(self, world: World, random_: random.Random) -> None:
        self.asked = 0
        self._world: Final = world
        self._random: Final = random_
        self._ending: Final = ExitStack()
        self._askers: list[Asker] = []

    def __enter__(self) -> Self:
        for make in (self._world.local_asker, self._world.cloud_asker):
            self._askers.append(make())
            self._ending.callback(self._askers[-1].stop)
        wait_until(lambda: all(asker.ready for asker in self._askers))
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    @property
    def open(self) -> int:
        return sum(asker.open for asker in self._askers)

    def ask(self, count: int, *, pace_s: float = PACE_S) -> None:
        for _ in range(count):
            self._random.choice(self._askers).ask(self._random.choice(self._world.questions))
            self.asked += 1
            if pace_s:
                time.sleep(pace_s)

    def finish(self, *, leave: int = 0) -> None:
        """Wait for answers that are still out, all but `leave`, as long as they may take."""
        until = time.monotonic() + OVERDUE_S
        while self.open > leave and time.monotonic() < until:
            time.sleep(0.05)

    def result(self) -> dict[str, Any]:
        local, cloud = (asker.account() for asker in self._askers)
        return {
            "local": local.summary(),
            "cloud": cloud.summary(),
            "wrong": local.wrong + cloud.wrong,
            "still_open": [request.id for account in (local, cloud) for request in account.open.values()],
            "audit": self._world.audit(),
        }
