"""SQLite connections, one a thread."""

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.crash_points import crash_point

BUSY_TIMEOUT_S: Final = 30.0
CACHE_KIB: Final = 1_024


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


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
        mode = "ro" if self._read_only else "rwc"
        if self._read_only and not os.access(self._path.parent, os.W_OK) and not _log_of(self._path).exists():
            # Reading beside a writer needs files that we may not make here; without a log there is no writer.
            mode = "ro&immutable=1"
        if not self._read_only:
            # SQLite itself gives a group no right to write, and its log gets the rights of the file. Only a new file
            # may be touched: closing one that is open elsewhere in this process would drop its locks.
            with suppress(OSError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
                crash_point("connection.open:empty-file")
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
