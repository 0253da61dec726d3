"""The running agent's harvests: one each interval, later and later while they fail, in a thread of their own."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from agent.corpus.harvest import Apply, Harvester, harvester_of
from agent.corpus.oai import SPACING_S
from agent.errors import AgentError, HarvestError, UnreachableError
from agent.search.api import SearchAPI
from agent.store.agent_db import AgentDatabase

log = logging.getLogger(__name__)

JITTER: Final = 0.1
"""Of the interval: not all devices should come at the same moment of the day."""
MAX_JITTER_S: Final = 600.0
RETRY_S: Final = 300.0
"""After the first failure; doubled by each further one, up to the interval."""
LOOK_S: Final = 60.0
"""So often the clock is looked at."""


def pause_s(interval_s: float, failures: int, chance: float) -> float:
    """How long to leave arXiv alone at least, from now on; `chance` is 0 to 1."""
    jitter_s = min(JITTER * interval_s, MAX_JITTER_S) * chance
    return jitter_s + (min(RETRY_S * 2.0 ** min(failures - 1, 20), interval_s) if failures else 0.0)


def left_s(interval_s: float, ago_s: float | None, here_s: float) -> float:
    """What is left of the interval.

    `ago_s` is how long ago the last complete harvest was by the clock of this device, None: never; negative, if that
    clock was set. `here_s` is how long the timer has been waiting for the next.
    """
    return 0.0 if ago_s is None else max(interval_s - max(ago_s, here_s), 0.0)


class HarvestTimer:
    """Harvests what the configuration names until stopped. `start` is called once."""

    def __init__(
        self,
        api: SearchAPI,
        apply: Apply,
        database: AgentDatabase,
        *,
        done: Callable[[], None],
        spacing_s: float = SPACING_S,
    ) -> None:
        """`api` is open when `start` is called; `done` is called after each harvest, in its thread."""
        self._api: Final = api
        self._apply: Final = apply
        self._database: Final = database
        self._done: Final = done
        self._spacing_s: Final = spacing_s
        self._interval_s: Final = float(api.config.corpus.harvest.interval_s)
        self._stop: Final = threading.Event()
        self._failures = 0
        self._error: str | None = None
        self._unreachable = False  # the last attempt failed since nobody answered
        # A socket that is being read cannot be interrupted, and need not be waited for: what was applied is durable.
        self._thread: Final = threading.Thread(target=self._run, name="harvest", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 0.0) -> bool:
        """Ask it to end; whether it has within that time."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def problems(self) -> list[str]:
        """Why the last attempt failed, in words; that nobody answers is no problem: devices are offline for long."""
        return [f"no harvest: {self._error}"] if self._error and not self._unreachable else []

    def _run(self) -> None:
        asked_s = 0.0  # what the repository has asked to be left alone for
        harvester = harvester_of(self._api, self._apply, self._database, stop=self._stop, spacing_s=self._spacing_s)
        while not self._wait(harvester.finished_s(), asked_s):
            asked_s = self._once(harvester)
            self._done()

    def _wait(self, finished_s: float, asked_s: float) -> bool:
        """Wait until the next harvest is due; true when it is time to stop instead."""
        begun_s = time.monotonic()
        least_s = max(pause_s(self._interval_s, self._failures, random.random()), asked_s)  # noqa: S311
        while True:
            here_s = time.monotonic() - begun_s
            # Asked anew each time: on a device without a battery the clock is set when the network is there.
            ago_s = time.time() - finished_s if finished_s else None
            left = max(least_s - here_s, 0.0 if self._failures else left_s(self._interval_s, ago_s, here_s))
            if left <= 0.0 or self._stop.wait(min(left, LOOK_S)):
                return self._stop.is_set()

    def _once(self, harvester: Harvester) -> float:
        """How long the repository wants to be left alone."""
        try:
            report = harvester.harvest()
        except UnreachableError as error:
            self._failed(error.message, unreachable=True)
        except HarvestError as error:
            self._failed(error.message)
            return error.retry_after_s or 0.0
        except AgentError as error:
            self._failed(error.message)
        except Exception as error:
            log.exception("the harvest failed; the agent goes on without")
            self._failed(f"{type(error).__name__}: {error}")
        else:
            self._failures, self._error = 0, None
            if report.complete:
                log.info("harvest: %d added, %d updated, %d removed", report.added, report.updated, report.removed)
        return 0.0

    def _failed(self, message: str, *, unreachable: bool = False) -> None:
        self._failures += 1
        if message != self._error:  # said once: a device may be without a network for months
            log.warning("the harvest failed and is tried again: %s", message)
        self._error, self._unreachable = message, unreachable
