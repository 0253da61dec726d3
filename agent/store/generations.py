"""A generation is one corpus in one folder; `current` points at the one in use.

    DATA_DIR/generations/0001/   papers.db, vectors/, keywords/
    DATA_DIR/current -> generations/0001

Advisory locks live in it: `caches.lock` (who holds it may write the vector and keyword caches: the running
agent, or a command when no agent runs), `embedding.lock` (one process embeds at a time, so that no paper is embedded
twice) and, for a moment, `schema.lock` (one process makes the tables).
"""

import fcntl
from pathlib import Path
from typing import Final, Self

from agent.crash_points import crash_point
from agent.errors import CorpusError, NotReadyError, ShortageError
from agent.paths import shut_out, sync_folder
from agent.store.faults import SHORTAGES

FIRST: Final = "0001"
CACHES_LOCK: Final = "caches.lock"
EMBEDDING_LOCK: Final = "embedding.lock"
SCHEMA_LOCK: Final = "schema.lock"
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
        activate(data_dir, first)
    except OSError as error:
        kind = ShortageError if error.errno in SHORTAGES else CorpusError
        raise kind(
            f"{data_dir} cannot hold a corpus: {error.strerror}",
            hint="name a writable folder with --data-dir",
        ) from error
    return link.resolve()


def activate(data_dir: Path, folder: Path) -> None:
    """Make a generation the one in use, durably and in one step. Raises OSError."""
    beside = data_dir / ".current.new"
    beside.unlink(missing_ok=True)
    beside.symlink_to(Path("generations") / folder.name)
    crash_point("generations.activate:before-rename")
    beside.replace(data_dir / "current")
    crash_point("generations.activate:after-rename")
    sync_folder(data_dir)


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
