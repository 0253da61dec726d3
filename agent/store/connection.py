"""SQLite connections, one a thread."""

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.crash_points import crash_point
from agent.store.faults import is_damage

BUSY_TIMEOUT_S: Final = 30.0
CACHE_KIB: Final = 1_024


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _is_empty(path: Path) -> bool:
    return not path.exists() or not path.stat().st_size


def unmapped(_file_bytes: int) -> int:
    """Read through SQLite's own cache alone."""
    return 0


class ThreadConnections:
    """Connections to one database file. `get` opens one for a thread that has none."""

    def __init__(self, path: Path, *, read_only: bool, mapped_bytes: Callable[[int], int] = unmapped) -> None:
        """`mapped_bytes` says how much of a file of so many bytes to read through a memory map."""
        self._path: Final = path
        self._mapped_bytes = mapped_bytes
        self._read_only: Final = read_only
        self._makes = not read_only  # only the first connection may make the file: it may have been deleted since
        self._local = threading.local()
        self._opened: list[tuple[threading.Thread, sqlite3.Connection]] = []
        self._guard: Final = threading.Lock()

    def get(self) -> sqlite3.Connection:
        """This thread's connection. Raises sqlite3.Error."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._open()
        return connection

    def _open(self) -> sqlite3.Connection:
        if self._read_only:
            return self._open_to_read()
        mode = "rwc" if self._makes else "rw"
        if self._makes:
            # SQLite itself gives a group no right to write, and its log gets the rights of the file. Only a new file
            # may be touched: closing one that is open elsewhere in this process would drop its locks.
            with suppress(OSError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
                crash_point("connection.open:empty-file")
        connection = self._open_as(mode)
        self._makes = False
        return connection

    def _open_to_read(self) -> sqlite3.Connection:
        """Beside a writer, for which SQLite needs two more files.

        Where those cannot be made, for want of space or of rights, and are not there, there is no writer: then the file
        alone is read.
        """
        try:
            connection = self._open_as("ro")
            connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1")
        except sqlite3.OperationalError as error:
            if is_damage(error) or not _is_empty(_log_of(self._path)):
                raise
            return self._open_as("ro&immutable=1")
        return connection

    def _open_as(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,  # transactions begin where the code says so
            check_same_thread=False,  # `close` is called by one thread for all
        )
        with self._guard:
            for thread, left in self._opened:
                if not thread.is_alive():
                    left.close()
            self._opened = [(thread, held) for thread, held in self._opened if thread.is_alive()]
            self._opened.append((threading.current_thread(), connection))  # first: what fails below is closed as well
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute(f"PRAGMA mmap_size = {self._mapped_bytes(self._path.stat().st_size)}")
        if not self._read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            # What was reported as done survives a power cut.
            connection.execute("PRAGMA synchronous = FULL")
        return connection

    def close(self) -> None:
        """Close every thread's connection; no other thread may be using one any more."""
        with self._guard:
            for _, connection in self._opened:
                connection.close()
            self._opened.clear()
        self._local = threading.local()
