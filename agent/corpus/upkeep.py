"""Looking a corpus over, and making whole what is damaged."""

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from agent.crash_points import crash_point
from agent.errors import CorpusError
from agent.footprint import Footprint
from agent.paths import sync_folder
from agent.search import keywords, segments
from agent.search.corpus_index import CorpusIndex
from agent.store.generations import CACHES_LOCK, FolderLock
from agent.store.healing import KEPT_DAMAGED, PAPERS, names_of_damaged
from agent.store.inspection import Salvaged, files_of, problems_of, salvage
from agent.store.papers import PaperStore


class Rebuilt(NamedTuple):
    """What a rebuild did: `salvaged` tells of papers.db, where that was damaged and had to be made anew."""

    papers: int
    vectors: int
    salvaged: Salvaged | None


def verify(folder: Path) -> list[str]:
    """What is wrong with the files of a generation, in words; nothing for a whole one. Reads all of them."""
    problems = problems_of(folder / PAPERS)
    if problems:
        return problems  # what is made from it cannot be judged by it
    with closing(PaperStore(folder / PAPERS, read_only=True)) as papers:
        corpus = papers.corpus_id()
        problems += segments.problems_of(folder / "vectors", corpus, papers.last_vector())
        problems += keywords.problems_of(folder / "keywords", corpus, papers.last_change(), papers.count())
    return problems


def rebuild(folder: Path, model: str, dimensions: int, *, fits: Footprint | None = None) -> Rebuilt:
    """Make both indexes again from the papers; nothing is embedded again.

    A damaged papers.db is set aside as papers.db.damaged-N first, and a new one is made of its whole rows. Raises
    CorpusError when an agent runs on this corpus, or nothing of papers.db can be read.
    """
    with FolderLock(folder / CACHES_LOCK) as lock:
        if not lock.acquire():
            raise CorpusError(
                "an agent runs on this corpus and owns its indexes", hint="stop it first; it heals its indexes itself"
            )
        salvaged = _salvage(folder) if problems_of(folder / PAPERS) else None
    with CorpusIndex(folder, model, dimensions, owner=True, fits=fits) as index:
        if not index.rebuild():
            raise CorpusError("another process has just taken this corpus over", hint="try again")
        return Rebuilt(index.papers.count(), len(index.vectors), salvaged)


def _salvage(folder: Path) -> Salvaged:
    fresh = folder / f".{PAPERS}.new"
    for path in files_of(fresh):
        path.unlink(missing_ok=True)
    saved = salvage(folder / PAPERS, fresh)
    # Killed at any moment, papers.db is there: the damaged one, or the new one. The log belongs to the damaged file: it
    # has been read, and must not be taken for the new one's.
    *kept, aside = names_of_damaged(folder)
    crash_point("upkeep.salvage:before-link")
    aside.hardlink_to(folder / PAPERS)
    crash_point("upkeep.salvage:linked")
    for path in files_of(folder / PAPERS)[1:]:
        if path.exists():
            path.rename(path.with_name(path.name.replace(PAPERS, aside.name)))
            crash_point("upkeep.salvage:log-renamed")
    crash_point("upkeep.salvage:before-rename")
    fresh.replace(folder / PAPERS)
    crash_point("upkeep.salvage:after-rename")
    for former in kept[: 1 - KEPT_DAMAGED]:
        for path in files_of(former):
            path.unlink(missing_ok=True)
    sync_folder(folder)
    return saved
