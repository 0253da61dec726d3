"""What the running agent does for its corpus: opens it, follows it, embeds, looks for damage, and heals.

Nothing of this ends the agent. While the disk is full or read-only it answers from what it has and tries again; while
papers.db is damaged it answers from what can still be read, copies what is whole into a new generation, and goes over
to that once its indexes are made. It goes over to a generation that an update or a command has made the current one in
the same way, and gives one back that does not prove itself.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from weakref import ReferenceType, ref

from agent.corpus.embedding import embed_missing
from agent.corpus.self_test import failures_of
from agent.corpus.switching import roll_back, sweep_quietly
from agent.corpus.trials import HeldBackPacks, Trial, TrialError, end_trial
from agent.domain import SearchRequest
from agent.errors import AgentError, CorpusError, DamagedPapersError, ShortageError, SupersededError
from agent.paths import scratch_folder
from agent.search.api import SearchAPI
from agent.search.corpus_index import CorpusIndex
from agent.search.engine import SearchEngine
from agent.store.faults import lack_of
from agent.store.generations import current_folder, ensure_generation
from agent.store.healing import PAPERS, Healed, heal, lost, sweep
from agent.store.inspection import scrub
from agent.store.journal import Journal

log = logging.getLogger(__name__)

RETRY_S: Final = 5.0
"""Between attempts at what the disk has refused."""
SCRUB_S: Final = 0.1
"""Of each turn of about a second is spent looking for damage, so that questions hardly notice."""
SCRUB_INTERVAL_S: Final = 30 * 86_400.0
"""An agent that runs for long reads papers.db through so often: cards lose bits that nobody asks for."""
HEAL_AGAIN_S: Final = 60.0
"""Damage found sooner after healing waits: a disk that damages what is written is not healed by writing."""


class CorpusKeeper:
    """Keeps the corpus of `api`. `open` and `turn` are called by one thread, the rest from any."""

    def __init__(
        self,
        api: SearchAPI,
        journal: Journal,
        held_back: HeldBackPacks,
        *,
        stop: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        """`stop` says whether to hurry; `changed` is called when the status should be reported."""
        self._api: Final = api
        self._journal: Final = journal
        self._held_back: Final = held_back
        self._data_dir: Final = api.config.data_dir
        self._stop: Final = stop
        self._changed: Final = changed
        self._lack: str | None = None  # of the machine, as it was last met
        self._rest_until = 0.0
        self._scrub: Iterator[str | None] | None = None
        self._scrub_at = time.monotonic() + SCRUB_INTERVAL_S
        self._scratch: TemporaryDirectory[str] | None = None  # of what stands in for a corpus that cannot be had
        self._waiting: str | None = None  # why healing waits
        self._healed: Healed | None = None
        self._healed_at = -HEAL_AGAIN_S
        self._fresh: Path | None = None  # the generation that was salvaged, until its indexes are made
        self._healed_change = 0
        self._at: Path | None = None  # the generation that answers, or that something stands in for
        self._next: CorpusIndex | None = None  # of the generation that is to answer next
        self._left: list[tuple[ReferenceType[SearchEngine], CorpusIndex]] = []  # until no search uses them any more
        self._trial: Final = Trial()
        self._given_back: str | None = None  # what was, and why
        self._embedded = -1  # change number up to which everything has a vector

    # -- opening ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the corpus: to write, else to read, else an empty one in its place, until it can be had.

        Raises AgentError for what only a person can mend, such as a folder of another user.
        """
        self._sweep()
        if folder := current_folder(self._data_dir):
            try:
                self._trial.begin(folder)
            except TrialError as error:
                self._give_back(folder, error.message)
            except ShortageError as error:
                self._lacks(error.message)
        self._open_current()
        if self._trial.folder and (failures := failures_of(self._api.engine)):
            self._give_back(self._trial.folder, "; ".join(failures))  # the first turn goes over

    def _open_current(self) -> None:
        folder = self._at = current_folder(self._data_dir)
        reason = lost(folder) if folder else None
        try:
            if reason:
                raise DamagedPapersError(reason)
            self._api.open(owner=True)
        except ShortageError as error:
            self._lacks(error.message)
            try:
                self._api.open()
            except AgentError as worse:
                self._stand_in(worse)
            self._index.papers.held = f"nothing can be stored: {error.message}"
        except CorpusError as error:
            if folder and self._trial.folder == folder and self._give_back(folder, error.message):
                self._open_current()
                return
            if not isinstance(error, DamagedPapersError):
                raise
            self._stand_in(error)
        self._at = self._at or self._index.folder
        if self._index.unchecked:
            self._scrub_at = 0.0

    def proven(self) -> None:
        """A question was answered."""
        self._trial.proven()

    def end_trial(self) -> None:
        """The agent stops in order: a generation that has answered by now has proved itself. Never raises."""
        with suppress(OSError):
            self._trial.end()

    def close(self) -> None:
        """Close what was left, once no turn is under way any more."""
        self._close_left()

    def _stand_in(self, error: AgentError) -> None:
        """Nothing can be read yet: be there all the same, and say why."""
        log.error("%s", error.message)
        self._scratch = scratch_folder()
        index = self._api.index_of(Path(self._scratch.name), owner=True)
        index.papers.held = error.message
        if isinstance(error, DamagedPapersError):
            index.papers.damage = str(error.__cause__ or error.message)
        self._leave(self._api.use(self._api.engine_of(index)))

    def _sweep(self) -> None:
        try:
            sweep(self._data_dir)
            sweep_quietly(self._data_dir)
        except (OSError, ShortageError) as error:
            log.warning("what an update or healing has left cannot be cleared away: %s", error)

    # -- a turn -------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Follow the papers, embed what has no vector, and mend what is to be mended. Never raises."""
        if time.monotonic() < self._rest_until:
            return
        try:
            self._mend()
            self._follow()
            self._look()
        except ShortageError as error:
            self._lacks(lack_of(self._data_dir) or error.message)
        except SupersededError:
            pass  # the next turn goes over
        except AgentError as error:
            log.error("following the corpus failed: %s", error.message)  # noqa: TRY400  the message says it all
        except Exception:
            lack = lack_of(self._data_dir)
            if lack:
                self._lacks(lack)
            else:
                log.exception("following the corpus failed; search goes on with what it has")
        else:
            if self._lack:
                log.info("following the corpus works again")
                self._lack = None
                self._changed()

    def _lacks(self, message: str) -> None:
        self._rest_until = time.monotonic() + RETRY_S
        if not self._lack:  # said once: a log must not fill what little is left
            log.error("nothing can be stored until this changes: %s", message)
            self._changed()
        self._lack = message

    def _follow(self) -> None:
        engine = self._api.engine
        index = engine.index
        if index.is_behind():
            index.catch_up()
        change = index.papers.last_change()
        if engine.embedder and self._api.config.corpus.embed_in_background and change != self._embedded:
            if index.papers.held:
                return

            def stop() -> bool:
                return self._stop() or index.papers.is_superseded()

            done = embed_missing(index, engine.embedder, workers=1, stop=stop)
            if done is not None and not stop():
                self._embedded = change
            if done:
                log.info("embedded %d papers", done)
                self._changed()

    def _look(self) -> None:
        """Read on in papers.db for a moment, where that is due."""
        index = self._api.engine.index
        if time.monotonic() < self._scrub_at or index.papers.damage:
            return
        self._scrub = self._scrub or scrub(index.papers.path)
        until = time.monotonic() + SCRUB_S
        for problem in self._scrub:
            if problem:
                index.papers.note_damage(problem)
                break
            if time.monotonic() > until:
                return
        self._scrub, self._scrub_at = None, time.monotonic() + SCRUB_INTERVAL_S
        if not index.papers.damage:
            with suppress(OSError):
                index.checked()

    # -- mending ------------------------------------------------------------------------------------------------------

    @property
    def _index(self) -> CorpusIndex:
        return self._api.engine.index

    def _mend(self) -> None:
        if self._close_left():
            self._sweep()
        with suppress(OSError):
            self._trial.turn()
        current = current_folder(self._data_dir)
        if current and current != self._at:
            self._go_over(current)
            return
        papers = self._index.papers
        if not self._scratch and papers.is_replaced():
            papers.note_damage("it was deleted or replaced")
        if papers.damage:
            self._heal()
        elif papers.refused and not papers.held:
            papers.prove_writable()
        elif papers.read_only or self._scratch:
            folder = ensure_generation(self._data_dir)
            self._use(self._api.engine_of(self._api.index_of(folder, owner=True)), folder)
            log.info("the corpus is opened to write again")

    def _heal(self) -> None:
        if time.monotonic() < self._healed_at + HEAL_AGAIN_S:
            return
        papers = self._index.papers
        log.error("papers.db is damaged and is being healed: %s", papers.damage)
        self._changed()
        started = time.monotonic()
        damaged = self._damaged_file()
        papers.hold("papers.db is damaged and is being healed; send it again later")
        try:
            self._healed = heal(self._data_dir, damaged)
        except BaseException as error:
            papers.release(writable=not (papers.read_only or self._scratch))
            self._waiting = error.message if isinstance(error, ShortageError) else None
            raise
        self._waiting = None
        self._fresh = self._healed.folder
        self._healed_at = time.monotonic()
        log.warning("%s (%.1f s)", self._outcome(), time.monotonic() - started)
        self._go_over(self._fresh)

    def _damaged_file(self) -> Path:
        """What there is to save papers from."""
        folder = current_folder(self._data_dir) or self._index.folder
        damaged = folder / PAPERS
        if not damaged.exists() and not self._scratch:
            damaged = damaged.with_name(f"{PAPERS}.rescued")
            damaged.unlink(missing_ok=True)
            self._index.papers.rescue(damaged)
        return damaged

    def _go_over(self, folder: Path) -> None:
        """Search in another generation, once its indexes are made; the one before answers until then."""
        try:
            if self._next is None or self._next.folder != folder:
                self._forget_next()
                self._trial.begin(folder)
                self._next = self._api.index_of(folder, owner=True)
            self._next.catch_up()
            engine = self._api.engine_of(self._next)
            if self._trial.folder and (failures := failures_of(engine)):
                raise TrialError("; ".join(failures))
            with suppress(AgentError):  # what the first question loads, those of clients find in memory
                engine.search(SearchRequest(query="the first question"))
        except ShortageError:
            raise
        except CorpusError as error:
            self._forget_next()
            if self._trial.folder == folder or isinstance(error, TrialError):
                self._give_back(folder, error.message)
            elif isinstance(error, DamagedPapersError):
                self._at = folder
                self._stand_in(error)
            else:
                self._rest_until = time.monotonic() + RETRY_S
                raise
            return
        if self._trial.folder:
            self._given_back = None  # that was another one
        if folder == self._fresh:
            self._healed_change = self._next.papers.last_change()
        else:
            self._healed = None
        self.proven()
        before = self._index.papers
        self._next = None
        log.info("searching in generation %s now: %s", folder.name, engine.corpus_version)
        self._use(engine, folder)
        before.release(writable=False)
        self._sweep()

    def _give_back(self, folder: Path, reason: str) -> bool:
        """Go back to the generation that one on trial took the place of; whether there is one that can be had."""
        log.error("generation %s does not prove itself: %s", folder.name, reason)
        self._close_left()
        try:
            done = roll_back(self._api, self._journal, self._held_back, reason=reason, on_trial=False, patience_s=0.0)
        except ShortageError as error:
            self._lacks(error.message)  # that may pass: still marked, it is given back by a later start
            self._trial.drop()
            return False
        except AgentError as error:
            log.error("and there is no going back: %s", error.message)  # noqa: TRY400  the message says it all
            with suppress(OSError):  # there is no other one to answer from
                end_trial(folder)
            self._trial.drop()
            return False
        self._trial.drop()
        self._given_back = f"corpus {done.before} was given back for {done.after}: {reason}"
        log.warning("%s", self._given_back)
        return True

    def _forget_next(self) -> None:
        if self._next:
            self._next.close()
            self._next = None

    def _use(self, engine: SearchEngine, folder: Path) -> None:
        self._leave(self._api.use(engine))
        self._at = folder
        self._scrub = self._fresh = None
        self._embedded = -1
        if self._scratch:
            self._scratch.cleanup()
            self._scratch = None
        self._changed()

    def _leave(self, engine: SearchEngine | None) -> None:
        if engine:
            self._left.append((ref(engine), engine.index))

    def _close_left(self) -> bool:
        """Close what no question is under way in any more; whether there was something."""
        done = [index for engine, index in self._left if engine() is None]
        self._left = [one for one in self._left if one[0]() is not None]
        for index in done:
            index.close()
        return bool(done)

    def _outcome(self) -> str:
        if not self._healed:
            return ""
        kept = f"; the damaged file is kept as {self._healed.kept.name}" if self._healed.kept else ""
        saved = self._healed.saved
        if saved is None:
            return f"papers.db was damaged and nothing of it could be read: import the papers again{kept}"
        return (
            f"papers.db was damaged: {saved.papers} papers saved, {max(saved.lost, saved.missing)} lost, "
            f"{saved.papers - saved.vectors} without vector{kept}"
        )

    # -- status -------------------------------------------------------------------------------------------------------

    @property
    def problems(self) -> list[str]:
        """What a person should know, in words. What was lost is said until papers come in again, or the next start."""
        lack = lack_of(self._data_dir) or self._lack or self._index.papers.refused
        found = [problem for problem in (lack, self._waiting) if problem]
        if self._fresh:
            found.append("papers.db was healed; its indexes are being made")
        if self._given_back:
            found.append(self._given_back)
        if self._healed and (self._fresh or self._index.papers.last_change() == self._healed_change):
            found.append(self._outcome())
        return found
