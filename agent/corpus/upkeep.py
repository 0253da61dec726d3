"""Looking a corpus over, and making whole what is damaged."""

import time
from pathlib import Path
from typing import NamedTuple

from agent.errors import CorpusError
from agent.paths import sync_folder
from agent.search import keywords, segments
from agent.search.corpus_index import CorpusIndex
from agent.store.generations import CACHES_LOCK, FolderLock
from agent.store.inspection import Salvaged, problems_of, salvage

PAPERS = "papers.db"


class Rebuilt(NamedTuple):
    """What a rebuild did: `salvaged` tells of papers.db, where that was damaged and had to be made anew."""

    papers: int
    vectors: int
    salvaged: Salvaged | None


def verify(folder: Path) -> list[str]:
    """What is wrong with the files of a generation, in words; nothing for a whole one. Reads all of them."""
    return [
        *problems_of(folder / PAPERS),
        *segments.problems_of(folder / "vectors"),
        *keywords.problems_of(folder / "keywords"),
    ]


def rebuild(folder: Path, model: str, dimensions: int) -> Rebuilt:
    """Make both indexes again from the papers; nothing is embedded again.

    A damaged papers.db is set aside as papers.db.damaged-TIME first, and a new one is made of its whole rows. Raises
    CorpusError when an agent runs on this corpus, or nothing of papers.db can be read.
    """
    with FolderLock(folder / CACHES_LOCK) as lock:
        if not lock.acquire():
            raise CorpusError(
                "an agent runs on this corpus and owns its indexes", hint="stop it first; it heals its indexes itself"
            )
        salvaged = _salvage(folder) if problems_of(folder / PAPERS) else None
    with CorpusIndex(folder, model, dimensions, owner=True) as index:
        if not index.rebuild():
            raise CorpusError("another process has just taken this corpus over", hint="try again")
        return Rebuilt(index.papers.count(), len(index.vectors), salvaged)


def _salvage(folder: Path) -> Salvaged:
    fresh = folder / f".{PAPERS}.new"
    for path in (fresh, *_logs_of(fresh)):
        path.unlink(missing_ok=True)
    saved = salvage(folder / PAPERS, fresh)
    # The log belongs to the damaged file: it has been read, and must not be taken for the new one's.
    aside = folder / f"{PAPERS}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    (folder / PAPERS).rename(aside)
    for path in _logs_of(folder / PAPERS):
        if path.exists():
            path.rename(path.with_name(path.name.replace(PAPERS, aside.name)))
    fresh.rename(folder / PAPERS)
    sync_folder(folder)
    return saved


def _logs_of(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]
