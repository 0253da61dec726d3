"""One corpus, opened: papers.db and the two caches that follow it.

The caches have one owner at a time: whoever holds `caches.lock`, the running agent or else a command. Without the
lock everything is opened to read. Opening reads what vectors are newer than the segments into memory; keywords
that are newer than the keyword index wait for the owner.
"""

from pathlib import Path
from typing import Final, Self

from agent.paths import sync_folder
from agent.search.keywords import KeywordIndex
from agent.search.vectors import VectorIndex
from agent.store.generations import CACHES_LOCK, FolderLock
from agent.store.papers import PaperStore

CHANGES_A_COMMIT: Final = 10_000
VECTORS_A_READ: Final = 100_000


class CorpusIndex:
    """Papers, vectors and keywords of one generation folder."""

    def __init__(self, folder: Path, model: str, dimensions: int, *, owner: bool) -> None:
        """Open `folder`; as `owner` papers.db to write, and the caches too if their lock is free.

        Raises CorpusError.
        """
        self.folder: Final = folder
        self._model = model
        self._seen_version = -1
        self._dimensions = dimensions
        self._lock: Final = FolderLock(folder / CACHES_LOCK) if owner else None
        self.papers: Final = PaperStore(folder / "papers.db", read_only=not owner)
        self._open_caches(writable=self._lock is not None and self._lock.acquire())
        if owner:
            sync_folder(folder)
        self._load_vectors()

    def _open_caches(self, *, writable: bool) -> None:
        self.writable = writable
        self.vectors = VectorIndex(self.folder / "vectors", self._model, self._dimensions, writable=writable)
        self.keywords = KeywordIndex(self.folder / "keywords", writable=writable)

    def is_behind(self) -> bool:
        """Whether another connection has written to papers.db since this thread last caught up.

        Always true while another process owns the caches, whose commits do not show there.
        """
        return not self.writable or self.papers.data_version() != self._seen_version

    def catch_up(self) -> None:
        """Follow the papers: new changes into the keyword index, new vectors into the vector index.

        Without the lock this takes it if it has become free, and else picks up what its owner has committed.
        """
        version = self.papers.data_version()  # before reading: what is written meanwhile is followed next time
        if not self.writable and self._lock and self._lock.acquire():
            self._open_caches(writable=True)
        if self.writable:
            self._follow_changes()
        else:
            self.keywords.reload()
            self.vectors.reload()
        self._load_vectors()
        self._seen_version = version

    def catch_up_keywords(self) -> None:
        """Follow the papers into the keyword index alone, if it is ours."""
        if self.writable:
            self._follow_changes()

    def _follow_changes(self) -> None:
        while True:
            changes = self.papers.changes_since(self.keywords.reached, CHANGES_A_COMMIT)
            if not changes:
                return
            self.keywords.apply(changes, changes[-1].number)

    def _load_vectors(self) -> None:
        while True:
            run = self.papers.vectors_since(self.vectors.reached, self._model, self._dimensions, VECTORS_A_READ)
            if not len(run.keys):
                break
            self.vectors.extend(run)
            if self.writable and self.vectors.tail_is_long():
                self.vectors.flush()

    def close(self) -> None:
        self.papers.close()
        if self._lock:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
