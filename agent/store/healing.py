"""A generation whose papers.db is damaged is replaced by a new one that holds what is whole.

    generations/0001/    papers.db, damaged; read to the last moment by whoever has it open
    generations/0002/    papers.db, salvaged; `replaces` says of which generation, until that one is gone
    current -> generations/0002

In a folder of its own nothing of the new corpus can be taken for the old one's: SQLite deletes a log by its name, not
knowing that another file stands there by now. Killed at any moment, `sweep` finishes or forgets it at the next start.
"""

import shutil
from pathlib import Path
from typing import Final, NamedTuple

from agent.crash_points import crash_point
from agent.errors import ShortageError
from agent.paths import sync_folder, write_file
from agent.protocol.pack_manifest import MANIFEST, MODEL
from agent.store.faults import FULL_BYTES, shortage_of
from agent.store.generations import ON_TRIAL, PREVIOUS, REPLACES, activate, new_folder, previous_of
from agent.store.inspection import NothingReadableError, Salvaged, files_of, salvage
from agent.store.papers import PaperStore

PAPERS: Final = "papers.db"
KEPT_MARKS: Final = (MANIFEST, PREVIOUS, ON_TRIAL)
"""What says of a generation where it comes from, and holds for what is salvaged of it too."""
KEPT_DAMAGED: Final = 2
"""Damaged files that are kept for whoever wants to look; a card has no room for more."""


def lost(folder: Path) -> str | None:
    """Whether a generation has lost its papers.db, in words: what is made from it is still there."""
    papers = folder / PAPERS
    if (papers.exists() and papers.stat().st_size) or not (folder / "keywords" / "reached.json").exists():
        return None
    return f"{papers} is {'empty' if papers.exists() else 'gone'}"


class Healed(NamedTuple):
    """The generation that is in use now, what was saved and where the damaged file is kept, where there is any."""

    folder: Path
    saved: Salvaged | None
    kept: Path | None


def heal(data_dir: Path, damaged: Path) -> Healed:
    """Put a new generation, of all that is whole, in the place of the one in use, whose papers.db is `damaged`.

    The old one stays until `sweep`. Raises ShortageError where the disk has no room for it; then nothing has changed.
    """
    folder = damaged.parent
    _require_room(damaged)
    with shortage_of(str(folder)):
        new = new_folder(folder.parent)
        try:
            crash_point("healing.heal:empty-folder")
            write_file(new / REPLACES, folder.name.encode())
            crash_point("healing.heal:marked")
            _keep_marks(folder, new)
            saved = _salvaged(damaged, new / PAPERS)
            crash_point("healing.heal:salvaged")
            kept = new / names_of_damaged(folder)[-1].name if (folder / PAPERS).exists() else None
            sync_folder(new)
            sync_folder(new.parent)
            activate(data_dir, new, instead_of=folder)
        except BaseException:
            if (data_dir / "current").resolve() != new.resolve():
                shutil.rmtree(new, ignore_errors=True)
            raise
    return Healed(new, saved, kept)


def sweep(data_dir: Path) -> None:
    """Finish what healing has left: keep the damaged file, delete the rest of its generation.

    A new generation that was not finished is forgotten. Raises OSError.
    """
    current = (data_dir / "current").resolve()
    if not current.is_dir():
        return
    for folder in (data_dir / "generations").iterdir():
        if folder.name.isdigit() and folder.resolve() != current and not any(folder.iterdir()):
            folder.rmdir()  # killed before it was marked
    for marker in sorted((data_dir / "generations").glob(f"*/{REPLACES}")):
        new = marker.parent.resolve()
        if new == previous_of(current):
            continue  # another one has taken its place before it was cleared up after, and may go back to it
        if new != current:
            shutil.rmtree(new)
            continue
        old = new.with_name(marker.read_text("utf-8") or new.name)
        if old.is_dir() and old != new:
            _keep_damaged(old, new)
            crash_point("healing.sweep:damaged-moved")
            shutil.rmtree(old)
            crash_point("healing.sweep:old-gone")
        marker.unlink()


def _salvaged(damaged: Path, target: Path) -> Salvaged | None:
    try:
        if damaged.exists():
            return salvage(damaged, target)
        raise NothingReadableError(f"{damaged} is gone")  # noqa: TRY301  one place begins anew
    except NothingReadableError:
        for path in files_of(target):
            path.unlink(missing_ok=True)
        PaperStore(target).close()
        return None


def _keep_marks(folder: Path, new: Path) -> None:
    for name in KEPT_MARKS:
        if (folder / name).exists():
            write_file(new / name, (folder / name).read_bytes())
    if (folder / MODEL).is_dir():  # of the pack: its files never change, and two links take the room of one
        (new / MODEL).mkdir()
        for path in (folder / MODEL).iterdir():
            (new / MODEL / path.name).hardlink_to(path)
        sync_folder(new / MODEL)


def _keep_damaged(old: Path, new: Path) -> None:
    names = names_of_damaged(old)
    for name in names[-KEPT_DAMAGED:]:
        source = old / PAPERS if name == names[-1] else name
        for path, aside in zip(files_of(source)[:2], files_of(new / name.name)[:2], strict=True):
            if path.exists():
                path.rename(aside)
                crash_point("healing.keep:log-left")
    sync_folder(new)


def names_of_damaged(folder: Path) -> list[Path]:
    """The damaged files kept in a folder, oldest first, and the name that the next one gets."""
    endings = (path.name.removeprefix(f"{PAPERS}.damaged-") for path in folder.glob(f"{PAPERS}.damaged-*"))
    numbers = sorted(int(ending) for ending in endings if ending.isdigit())
    return [folder / f"{PAPERS}.damaged-{number}" for number in [*numbers, 1 + max(numbers, default=0)]]


def _require_room(damaged: Path) -> None:
    """The new file is no larger than the old one, but for what a transaction takes."""
    needed = FULL_BYTES + sum(path.stat().st_size for path in files_of(damaged)[:2] if path.exists())
    free = shutil.disk_usage(damaged.parent).free
    if free < needed:
        mib = 1024 * 1024
        raise ShortageError(f"healing {PAPERS} takes {needed / mib:.1f} MB of disk, and {free / mib:.1f} MB are free")
