"""A generation is one corpus in one folder; `current` points at the one in use.

    DATA_DIR/generations/0007/        papers.db, vectors/, keywords/; manifest.json of the pack that it was made from
                         .../previous   the name of the one it took the place of, which is kept for going back
                         .../on-trial   until it has proved itself: how often it was opened without
    DATA_DIR/generations/.incoming/   one that is being made; it gets its number when it is complete
    DATA_DIR/current -> generations/0007

Advisory locks live in it: `caches.lock` (who holds it may write the vector and keyword caches: the running
agent, or a command when no agent runs), `embedding.lock` (one process embeds at a time, so that no paper is embedded
twice) and, for a moment, `schema.lock` (one process makes the tables). Beside `current` there are `update.lock` (one
update at a time makes a generation) and, for a moment, `current.lock` (one process sets the link).
"""

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from agent.crash_points import crash_point
from agent.errors import CorpusError, NotReadyError, PackError, ShortageError, SupersededError
from agent.paths import shut_out, sync_folder
from agent.protocol.pack_manifest import MANIFEST, MAX_MANIFEST_BYTES, PackManifest, parse_pack_manifest
from agent.store.faults import SHORTAGES

log = logging.getLogger(__name__)

FIRST: Final = "0001"
CACHES_LOCK: Final = "caches.lock"
EMBEDDING_LOCK: Final = "embedding.lock"
SCHEMA_LOCK: Final = "schema.lock"
UPDATE_LOCK: Final = "update.lock"
CURRENT_LOCK: Final = ".current.lock"
INCOMING: Final = ".incoming"
DROPPED: Final = ".dropped"
PREVIOUS: Final = "previous"
ON_TRIAL: Final = "on-trial"
REPLACES: Final = "replaces"
"""Of which damaged generation a salvaged one takes the place (healing.py), until that one is gone."""
IN_USE: Final = "caches.in-use"
"""There while the caches have an owner: found by the next one, it tells of a crash."""
UNCHECKED: Final = "papers.unchecked"
"""There from a crash until papers.db was read through."""


def current_generation(data_dir: Path) -> Path | None:
    """The folder of the corpus in use, or None before the first import."""
    link = data_dir / "current"
    return link.resolve() if (link / "papers.db").is_file() else None


def current_folder(data_dir: Path) -> Path | None:
    """The same, whether or not it holds papers."""
    link = data_dir / "current"
    return link.resolve() if link.is_dir() else None


def no_corpus(data_dir: Path) -> NotReadyError:
    hint = shut_out(data_dir) or "arxplorer-agent corpus import FILE, or --sample"
    return NotReadyError(f"no corpus in {data_dir}", hint=hint)


def ensure_generation(data_dir: Path) -> Path:
    """The folder of the corpus in use; makes an empty first generation where there is none."""
    link = data_dir / "current"
    if link.is_dir():
        return link.resolve()
    try:
        first = data_dir / "generations" / FIRST
        first.mkdir(parents=True, exist_ok=True)
        sync_folder(first.parent)
        crash_point("generations.ensure:no-link")
        with suppress(SupersededError):  # another process was first
            activate(data_dir, first, instead_of=None)
    except OSError as error:
        kind = ShortageError if error.errno in SHORTAGES else CorpusError
        raise kind(
            f"{data_dir} cannot hold a corpus: {error.strerror}",
            hint="name a writable folder with --data-dir",
        ) from error
    return link.resolve()


def activate(data_dir: Path, folder: Path, *, instead_of: Path | None) -> None:
    """Make a generation the one in use, durably and in one step, where that is still `instead_of` (or `folder`).

    Raises SupersededError where it is another one by now, and OSError.
    """
    with FolderLock(data_dir / CURRENT_LOCK) as lock:
        lock.acquire(wait=True)
        found = current_folder(data_dir)
        if found not in (instead_of and instead_of.resolve(), folder.resolve()):
            raise SupersededError(f"{found} has become the current generation meanwhile")
        beside = data_dir / ".current.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(Path("generations") / folder.name)
        crash_point("generations.activate:before-rename")
        beside.replace(data_dir / "current")
        crash_point("generations.activate:after-rename")
        sync_folder(data_dir)


def pack_of(folder: Path) -> PackManifest | None:
    """The manifest of the pack that a generation was made from; None for a corpus of this device's own."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            return parse_pack_manifest(file.read(MAX_MANIFEST_BYTES + 1), where=str(path))
    except FileNotFoundError:
        return None
    except (OSError, PackError) as error:
        log.warning("%s cannot be read, so this is taken for a corpus of its own: %s", path, error)
        return None


def previous_of(folder: Path) -> Path | None:
    """The generation that this one took the place of, if it is still there."""
    try:
        name = (folder / PREVIOUS).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    previous = folder.with_name(name) if name.isdigit() else folder
    return previous if previous != folder and (previous / "papers.db").is_file() else None


def new_folder(generations: Path) -> Path:
    """Make the folder of the next number. Raises OSError."""
    while True:
        numbers = [int(path.name) for path in generations.iterdir() if path.name.isdigit()]
        folder = generations / f"{1 + max(numbers, default=0):04d}"
        with suppress(FileExistsError):  # two are made at a time
            folder.mkdir()
            return folder


def numbered(incoming: Path) -> Path:
    """Give a generation that is complete and synced its number; where it is then. Raises OSError."""
    folder = new_folder(incoming.parent)
    crash_point("generations.numbered:empty-folder")
    incoming.rename(folder)
    crash_point("generations.numbered:renamed")
    sync_folder(folder.parent)
    return folder


@contextmanager
def update_lock(data_dir: Path) -> Iterator[None]:
    """Be the only one who makes a generation, or clears one away. Raises CorpusError where another is at it."""
    with FolderLock(data_dir / UPDATE_LOCK) as lock:
        if not lock.acquire():
            raise CorpusError("another update of the corpus is going on", hint="try again when it is done")
        yield


def sweep(data_dir: Path) -> None:
    """Delete all generations but the current one and its previous, and what was being made.

    For whoever holds the update lock. One that is still open somewhere, or belongs to healing, stays. Raises OSError.
    """
    generations, current = data_dir / "generations", current_folder(data_dir)
    for folder in sorted(generations.iterdir()) if generations.is_dir() else ():
        if folder.name == INCOMING or folder.name.endswith(DROPPED):
            shutil.rmtree(folder)
            crash_point("generations.sweep:unfinished-gone")
        elif current and _is_of_no_use(folder, current):
            with FolderLock(folder / CACHES_LOCK) as lock:
                if not lock.acquire():
                    continue
                # Under another name first: half a generation must not look like one.
                aside = folder.with_name(f".{folder.name}{DROPPED}")
                folder.rename(aside)
                crash_point("generations.sweep:renamed")
            shutil.rmtree(aside)
            crash_point("generations.sweep:one-gone")


def _is_of_no_use(folder: Path, current: Path) -> bool:
    healed = (current / REPLACES).read_text("utf-8") if (current / REPLACES).exists() else ""
    if folder.resolve() in (current, previous_of(current)) or folder.name == healed:
        return False
    return folder.name.isdigit() and (folder / "papers.db").exists() and not (folder / REPLACES).exists()


class FolderLock:
    """An advisory lock on a file of a generation, released when closed or when the process ends."""

    def __init__(self, path: Path) -> None:
        """Raises CorpusError where the file may not be written."""
        try:
            self._file = path.open("ab")
        except OSError as error:
            kind = ShortageError if error.errno in SHORTAGES else CorpusError
            raise kind(
                f"{path} cannot be written: {error.strerror}",
                hint="run as the user that owns the data folder, or name another one with --data-dir",
            ) from error
        self.held = False

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock if nobody else holds it; with `wait`, once nobody does."""
        if not self.held:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.held = True
        return True

    def close(self) -> None:
        self._file.close()
        self.held = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
