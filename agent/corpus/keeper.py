"""What the running agent does for its corpus: opens it, follows it, embeds, looks for damage, and heals.

Nothing of this ends the agent. While the disk is full or read-only it answers from what it has and tries again; while
papers.db is damaged it answers from what can still be read, copies what is whole into a new generation, and goes over
to that once its indexes are made.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from agent.corpus.embedding import embed_missing
from agent.errors import AgentError, DamagedPapersError, ShortageError
from agent.paths import scratch_folder
from agent.search.api import SearchAPI
from agent.search.corpus_index import CorpusIndex
from agent.store.faults import lack_of
from agent.store.generations import current_folder, ensure_generation
from agent.store.healing import PAPERS, Healed, heal, lost, sweep
from agent.store.inspection import scrub

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

    def __init__(self, api: SearchAPI, *, stop: Callable[[], bool], changed: Callable[[], None]) -> None:
        """`stop` says whether to hurry; `changed` is called when the status should be reported."""
        self._api: Final = api
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
        self._next: CorpusIndex | None = None  # and what is made of it
        self._healed_change = 0
        self._embedded = -1  # change number up to which everything has a vector

    # -- opening ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the corpus: to write, else to read, else an empty one in its place, until it can be had.

        Raises AgentError for what only a person can mend, such as a folder of another user.
        """
        self._sweep()
        folder = current_folder(self._data_dir)
        reason = lost(folder) if folder else None
        try:
            if reason:
                raise DamagedPapersError(reason)  # noqa: TRY301  as if opening had found it
            self._api.open(owner=True)
        except DamagedPapersError as error:
            self._stand_in(error)
        except ShortageError as error:
            self._lacks(error.message)
            try:
                self._api.open()
            except AgentError as worse:
                self._stand_in(worse)
            self._index.papers.held = f"nothing can be stored: {error.message}"
        if self._index.unchecked:
            self._scrub_at = 0.0

    def _stand_in(self, error: AgentError) -> None:
        """Nothing can be read yet: be there all the same, and say why."""
        log.error("%s", error.message)
        self._scratch = scratch_folder()
        index = self._api.index_of(Path(self._scratch.name), owner=True)
        index.papers.held = error.message
        if isinstance(error, DamagedPapersError):
            index.papers.damage = str(error.__cause__ or error.message)
        self._api.use(index)

    def _sweep(self) -> None:
        try:
            sweep(self._data_dir)
        except OSError as error:
            log.warning("what healing has left cannot be cleared away: %s", error)

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
            done = embed_missing(index, engine.embedder, workers=1, stop=self._stop)
            if done is not None and not self._stop():
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
        papers = self._index.papers
        if not self._scratch and papers.is_replaced():
            papers.note_damage("it was deleted or replaced")
        if self._fresh:
            self._go_over(self._fresh)
        elif papers.damage:
            self._heal()
        elif papers.refused and not papers.held:
            papers.prove_writable()
        elif papers.read_only or self._scratch:
            self._use(self._api.index_of(ensure_generation(self._data_dir), owner=True))
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

    def _go_over(self, fresh: Path) -> None:
        """Search in what was salvaged, once its indexes are made; those before answer until then."""
        self._next = self._next or self._api.index_of(fresh, owner=True)
        self._next.catch_up()
        before = self._index.papers
        self._healed_change = self._next.papers.last_change()
        self._use(self._next)
        self._next = self._fresh = None
        self._sweep()
        before.release(writable=False)

    def _use(self, index: CorpusIndex) -> None:
        self._api.use(index)
        self._scrub = None
        self._embedded = -1
        if self._scratch:
            self._scratch.cleanup()
            self._scratch = None
        self._changed()

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
        if self._healed and (self._fresh or self._index.papers.last_change() == self._healed_change):
            found.append(self._outcome())
        return found
