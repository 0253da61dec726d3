"""Whether a file is damaged or the machine lacks something: judged by what SQLite and the system say."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from agent.errors import CorpusError, DamagedPapersError, ShortageError

SHORTAGES: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENOMEM))
"""What the machine lacks is no damage: nothing is made again because of it."""
FULL_BYTES: Final = 2 * 1024 * 1024
"""A disk with less is full: a commit of the keyword index may need that much."""

_LACKS: Final = frozenset(
    (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOMEM,
    )
)
_UNREADABLE: Final = frozenset(
    (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
)
_NOT_THE_FILES_FAULT: Final = _LACKS | {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_MISUSE,
    sqlite3.SQLITE_CONSTRAINT,
}


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite complains about the file itself. Our statements never change, so "no such table" is damage too."""
    if isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError):
        return False
    # An error of Python's own, such as of text that is no UTF-8, has no code.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code in _UNREADABLE or code & 0xFF not in _NOT_THE_FILES_FAULT


def corpus_error(path: Path, error: sqlite3.Error) -> CorpusError:
    """The error of ours that tells what SQLite said about a papers.db."""
    if is_damage(error):
        return DamagedPapersError(f"{path} is damaged: {error}", hint="arxplorer-agent corpus verify")
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _LACKS:
        lack = lack_of(path.parent)
        return ShortageError(f"{path}: {lack or error}", hint="make room, or make the folder writable")
    return CorpusError(f"{path}: {error}", hint="arxplorer-agent corpus verify")


def lack_of(folder: Path) -> str | None:
    """What keeps a folder from being written to, in words."""
    try:
        system = os.statvfs(folder)
    except OSError as error:
        return f"the disk cannot be read: {error.strerror}"
    if system.f_flag & os.ST_RDONLY:
        return "the disk is read-only"
    free = system.f_bavail * system.f_frsize
    return f"the disk is full: {free / 1024 / 1024:.1f} MB free" if free < FULL_BYTES else None


def identity(path: Path) -> tuple[int, int] | None:
    """Tells a file from another one that took its place; None where there is none."""
    with suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


@contextmanager
def shortage_of(name: str) -> Iterator[None]:
    """Let an error of the system that is no damage reach the caller as a ShortageError."""
    try:
        yield
    except OSError as error:
        if error.errno in SHORTAGES:
            raise ShortageError(f"{name}: {error.strerror}") from error
        raise
