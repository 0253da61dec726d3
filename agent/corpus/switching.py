"""From one generation to another, forward or back: one step, after which the corpus is wholly the one or the other.

The incoming generation is given the device's own changes, catches up its indexes and answers questions of its own
while the outgoing one is still the current one. The last stretch of the journal follows under the write lock of the
outgoing papers.db, and under the same lock `current` is swapped: whoever waited to write finds that another generation
has taken the place, and goes there. Killed anywhere before the swap, the outgoing generation is in use and the other
one is forgotten by `sweep`; killed after it, the incoming one.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from agent.corpus.replay import NOTHING, Replayed, replay
from agent.corpus.self_test import failures_of
from agent.corpus.trials import BY_HAND, HeldBackPacks, TrialError, end_trial, put_on_trial
from agent.crash_points import crash_point
from agent.errors import CorpusError, DamagedPapersError, NotReadyError, StateError, SupersededError
from agent.paths import sync_folder, write_file
from agent.search.api import SearchAPI
from agent.search.corpus_index import LOCAL
from agent.search.engine import SearchEngine
from agent.store.faults import shortage_of
from agent.store.generations import (
    INCOMING,
    PREVIOUS,
    current_folder,
    numbered,
    pack_of,
    previous_of,
    sweep,
    update_lock,
)
from agent.store.generations import (
    activate as set_current,
)
from agent.store.journal import Journal
from agent.store.papers import PaperStore

log = logging.getLogger(__name__)

ATTEMPTS: Final = 5
"""So often another switch or a healing may come in between."""
CACHES_S: Final = 10.0
"""So long the agent may take to let go of the indexes of a generation that it has just left."""


class Switched(NamedTuple):
    """From which version to which (`before` is None where there was none), and what was carried over.

    `folder` is that of the generation which is in use now.
    """

    before: str | None
    after: str
    folder: Path
    replayed: Replayed


def activate(
    api: SearchAPI, folder: Path, journal: Journal, *, on_trial: bool = True, patience_s: float = CACHES_S
) -> Switched:
    """Make a finished generation the current one, with all changes that were made on this device.

    `folder` is a numbered one or `generations/.incoming`, complete and synced, which gets its number here. `api` is
    that of the running agent, or one of the same configuration that need not be open; its own corpus is not touched:
    the agent goes over by itself. The caller holds the update lock, if the folder is new. Raises TrialError where the
    generation answers badly, CorpusError where it cannot be used, ShortageError; then nothing has changed.
    """
    data_dir = api.config.data_dir
    with shortage_of(str(folder)):
        if folder.name == INCOMING:
            folder = numbered(folder)
        folder = folder.resolve()
        engine = api.engine_of(api.index_of(folder, owner=True))
        try:
            switched = _switched(data_dir, engine, journal, on_trial=on_trial, patience_s=patience_s)
        finally:
            engine.close()
    log.info("the corpus is %s now, in the place of %s", switched.after, switched.before or "none")
    return switched


def roll_back(
    api: SearchAPI,
    journal: Journal,
    held_back: HeldBackPacks,
    *,
    reason: str = BY_HAND,
    on_trial: bool = True,
    patience_s: float = CACHES_S,
) -> Switched:
    """Go back to the generation that the current one took the place of; once more, and it is forward again.

    The pack that is left is held back with `reason`, the one that is taken is held back no more. Raises as `activate`,
    and NotReadyError where there is nothing to go back to.
    """
    current = current_folder(api.config.data_dir)
    previous = previous_of(current) if current else None
    if current is None or previous is None:
        raise NotReadyError(
            "there is no generation to go back to", hint="one is kept when a pack takes its place: corpus install"
        )
    # First: an agent that is killed after going back must not take the same pack again.
    if left := pack_of(current):
        try:
            held_back.add(left, reason)
        except StateError as error:
            if reason == BY_HAND:
                raise
            # One that does not work has to go all the same, on a full disk too.
            log.warning("that %s failed will not be remembered: %s", left.version, error.message)
        crash_point("switching.roll_back:held-back")
    try:
        switched = activate(api, previous, journal, on_trial=on_trial, patience_s=patience_s)
    except BaseException:
        if left and reason == BY_HAND:  # it is still in use
            held_back.forget(left.version, left.contents)
        raise
    crash_point("switching.roll_back:switched")
    if (taken := pack_of(previous)) and reason == BY_HAND:
        held_back.forget(taken.version, taken.contents)
    return switched


def _switched(data_dir: Path, engine: SearchEngine, journal: Journal, *, on_trial: bool, patience_s: float) -> Switched:
    index, replayed = engine.index, NOTHING
    folder = index.folder
    _own_caches(engine, patience_s)
    for attempt in range(ATTEMPTS):
        before = current_folder(data_dir)
        if before == folder:
            raise CorpusError(f"{folder.name} is the current generation already")
        with _outgoing(data_dir, before) as outgoing:
            replayed = replay(journal, index.papers, index.model, after=replayed, outgoing=outgoing)
            index.catch_up()
            if attempt == 0:
                _test(engine)
            crash_point("switching.activate:tested")
            _mark(folder, before, on_trial=on_trial)
            try:
                with _nobody_writes(outgoing):
                    replayed = replay(journal, index.papers, index.model, after=replayed, outgoing=outgoing)
                    crash_point("switching.activate:before-swap")
                    set_current(data_dir, folder, instead_of=before)
                    crash_point("switching.activate:swapped")
            except SupersededError:
                continue
            version = _version(before) if before else None
            return Switched(version, index.version, folder, replayed)
    raise CorpusError("the corpus changes hands all the time", hint="try again")


def _own_caches(engine: SearchEngine, patience_s: float) -> None:
    """Wait for an agent that has just left this generation; it may also stay the owner, and follow by itself."""
    until = time.monotonic() + patience_s
    engine.index.catch_up()
    while not engine.index.writable and time.monotonic() < until:
        time.sleep(0.05)
        engine.index.catch_up()


def _test(engine: SearchEngine) -> None:
    if failures := failures_of(engine):
        raise TrialError(f"generation {engine.index.folder.name} is not taken: {'; '.join(failures)}")


def _mark(folder: Path, before: Path | None, *, on_trial: bool) -> None:
    if before:
        write_file(folder / PREVIOUS, before.name.encode())
    else:
        (folder / PREVIOUS).unlink(missing_ok=True)
    crash_point("switching.mark:previous")
    if on_trial:
        put_on_trial(folder)
    else:
        end_trial(folder)
    crash_point("switching.mark:trial")
    sync_folder(folder)


@contextmanager
def _outgoing(data_dir: Path, folder: Path | None) -> Iterator[PaperStore | None]:
    """The papers that are in use until now; None where there are none, or they are too damaged to be written to."""
    if folder is None or not (folder / "papers.db").is_file():
        yield None
        return
    try:
        papers = PaperStore(folder / "papers.db")
    except DamagedPapersError as error:
        log.warning("%s; nothing is taken over from it", error.message)
        yield None
        return
    papers.bind(data_dir / "current")
    try:
        yield papers
    finally:
        papers.close()


@contextmanager
def _nobody_writes(outgoing: PaperStore | None) -> Iterator[None]:
    """Hold the write lock of the outgoing papers; where they are too damaged for that nobody else can write either."""
    with ExitStack() as stack:
        if outgoing:
            with suppress(DamagedPapersError):
                stack.enter_context(outgoing.transaction())
        yield


def _version(folder: Path) -> str:
    pack = pack_of(folder)
    return pack.version if pack else LOCAL


def sweep_quietly(data_dir: Path) -> None:
    """`sweep`, where nobody makes a generation at the moment; what cannot be cleared away is left for the next time."""
    with suppress(CorpusError), update_lock(data_dir):
        try:
            sweep(data_dir)
        except OSError as error:
            log.warning("former generations cannot be cleared away: %s", error)
