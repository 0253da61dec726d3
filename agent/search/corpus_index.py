"""One corpus, opened: papers.db and the two caches that follow it.

The caches have one owner at a time: whoever holds `caches.lock`, the running agent or else a command. Without the
lock everything is opened to read. Opening reads what vectors are newer than the segments into memory; keywords
that are newer than the keyword index wait for the owner.
"""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from agent.crash_points import crash_point
from agent.errors import DamagedIndexError
from agent.footprint import Footprint, footprint
from agent.paths import sync_folder
from agent.search.keywords import KeywordIndex
from agent.search.state import files_used
from agent.search.vectors import STALE_SHARE, TAIL_ROWS, VectorIndex
from agent.store.faults import shortage_of
from agent.store.generations import CACHES_LOCK, IN_USE, UNCHECKED, FolderLock
from agent.store.papers import PaperStore

log = logging.getLogger(__name__)

CHANGES_A_COMMIT: Final = 10_000
READ_AT_ONCE: Final = 4 * TAIL_ROWS
LOCAL: Final = "local"
"""The version of a corpus that was not made from a pack."""
LAG_WORTH_SAYING: Final = 1_000
"""Below that an index that is behind has simply not followed yet."""


class CorpusIndex:
    """Papers, vectors and keywords of one generation folder."""

    @files_used()
    def __init__(
        self,
        folder: Path,
        model: str,
        dimensions: int,
        *,
        owner: bool,
        fits: Footprint | None = None,
        version: str = LOCAL,
    ) -> None:
        """Open `folder`; as `owner` papers.db to write, and the caches too if their lock is free.

        `fits`: what may be taken of the machine, by default what suits it. `version`: of the pack that the corpus was
        made from. Raises CorpusError.
        """
        self.folder: Final = folder
        self.version: Final = version
        self.model: Final = model
        self._fits: Final = fits or footprint()
        self._seen_version = -1
        self._damaged: set[str] = set()
        self.dimensions: Final = dimensions
        self._lock: Final = FolderLock(folder / CACHES_LOCK) if owner else None
        self.writable = False
        try:
            mapped = self._fits.mapped_bytes
            self.papers: Final = PaperStore(folder / "papers.db", read_only=not owner, mapped_bytes=mapped)
            with shortage_of(str(folder)):
                self._open_caches(writable=self._lock is not None and self._lock.acquire())
                if owner:
                    sync_folder(folder)
            # What a lost cache lacks is made again in the background; a reader has no background.
            if not owner or self.papers.last_vector() - self.vectors.reached <= READ_AT_ONCE:
                self._load_vectors()
        except BaseException:
            self._release()
            raise

    def _open_caches(self, *, writable: bool) -> None:
        corpus = self.papers.corpus_id()
        crashed = writable and (self.folder / IN_USE).exists()
        if writable:
            if crashed:
                (self.folder / UNCHECKED).touch()
            (self.folder / IN_USE).touch()
            crash_point("corpus_index.open:marked")
        self.vectors = VectorIndex(
            self.folder / "vectors",
            corpus,
            self.model,
            self.dimensions,
            self.papers.last_vector,
            segment_rows=self._fits.segment_rows,
            writable=writable,
            check=crashed,
        )
        self.keywords = KeywordIndex(
            self.folder / "keywords", corpus, self.papers.last_change, writable=writable, check=crashed
        )
        self.writable = writable

    @property
    def unchecked(self) -> bool:
        """Whether papers.db was not read through since an owner did not end in order."""
        return (self.folder / UNCHECKED).exists()

    def checked(self) -> None:
        """papers.db was read through. Raises OSError."""
        (self.folder / UNCHECKED).unlink(missing_ok=True)

    def problems(self) -> list[str]:
        """What is wrong with the caches, or still missing in them, in words."""
        found = [f"papers.db is damaged: {self.papers.damage}"] if self.papers.damage else []
        found += [f"the index of {part} is damaged and is made again" for part in sorted(self._damaged)]
        for name, reached, last in (
            ("keyword", self.keywords.reached, self.papers.last_change()),
            ("vector", self.vectors.reached, self.papers.last_vector()),
        ):
            if last - reached > LAG_WORTH_SAYING or (last and not reached):
                found.append(
                    f"the {name} index lacks the latest {last - reached} changes; an agent or corpus rebuild adds them"
                )
        return found

    def report_damage(self, part: str) -> None:
        """A search has found an index damaged: the next catching up makes it again."""
        self._damaged.add(part)

    def is_behind(self) -> bool:
        """Whether there may be something to catch up with.

        Always true while another process owns the caches, whose commits do not show in papers.db.
        """
        return bool(self._damaged) or not self.writable or self.papers.data_version() != self._seen_version

    @files_used()
    def catch_up(self) -> None:
        """Follow the papers: new changes into the keyword index, new vectors into the vector index.

        Without the lock this takes it if it has become free, and else picks up what its owner has committed.
        """
        version = self.papers.data_version()  # before reading: what is written meanwhile is followed next time
        if not self.writable and self._lock and self._lock.acquire():
            self._open_caches(writable=True)
        if self.writable:
            self._drop_damaged()
            self._follow_changes()
        else:
            self.keywords.reload()
            self.vectors.reload()
        self._load_vectors()
        self._seen_version = version

    @files_used()
    def catch_up_keywords(self) -> None:
        """Follow the papers into the keyword index alone, if it is ours."""
        if self.writable:
            self._follow_changes()

    def rebuild(self) -> bool:
        """Make both caches again from the papers; False where another process owns them."""
        if not self.writable:
            return False
        self._damaged |= {"keywords", "vectors"}
        self.catch_up()
        return True

    def _drop_damaged(self) -> None:
        for part in sorted(self._damaged):
            (self.keywords if part == "keywords" else self.vectors).drop()
            self._damaged.discard(part)

    def _follow_changes(self) -> None:
        while True:
            changes = self.papers.changes_since(self.keywords.reached, CHANGES_A_COMMIT)
            if not changes:
                return
            try:
                self.keywords.apply(changes, changes[-1].number)
            except DamagedIndexError as error:
                problem = next(self.keywords.problems(), None)
                if problem is None:
                    raise  # what failed was writing: what is there is whole, and it may work the next time
                log.error("%s; it is made again", error.message)  # noqa: TRY400  a library's traceback tells nothing
                self.keywords.drop()

    def _load_vectors(self) -> None:
        last = self.papers.last_vector()
        rows = self._fits.segment_rows
        while True:
            run = self.papers.vectors_since(self.vectors.reached, self.model, self.dimensions, rows)
            if not len(run.keys):
                self.vectors.reached = max(self.vectors.reached, last)  # vectors of removed papers are not missing
                break
            self.vectors.extend(run)
            # Of a paper that changes again and again only the latest vector is kept, or it would crowd out others.
            self.vectors.keep_of_tail(self.papers.existing(self.vectors.tail_keys))
            if self.writable and self.vectors.tail_is_long():
                self.vectors.flush()
                current = self.papers.count_embedded(self.model)
                if len(self.vectors) - current > current // STALE_SHARE:
                    self.vectors.compact(self.papers.keys())

    @files_used()
    def close(self) -> None:
        if self.writable:
            crash_point("corpus_index.close:still-marked")
            with suppress(OSError):  # a disk that is read-only by now: the next owner looks everything over
                if self.papers.damage:
                    (self.folder / UNCHECKED).touch()
                (self.folder / IN_USE).unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if papers := getattr(self, "papers", None):  # also of an index that could not be opened
            papers.close()
        if self._lock:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
