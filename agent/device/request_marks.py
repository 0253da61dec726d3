"""Which requests are being worked on, in memory that outlives the process but not the boot: a mapped file on a tmpfs.

A request that kills the process is delivered again to the next one, and would kill it too. What was being worked on at
a death is tried once more, by itself; what was so at two deaths is not tried again. Marking writes nothing to the card.
"""

import fcntl
import hashlib
import logging
import mmap
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

FATAL_DEATHS: Final = 2
WORKING: Final = 64
"""Places for requests being worked on; more than there are ever workers."""
REMEMBERED: Final = 64
KEY_BYTES: Final = 32
_ENTRY: Final = 1 + KEY_BYTES  # a count, 0 where the place is free, and the key
_SIZE: Final = (WORKING + REMEMBERED) * _ENTRY


def marks_file(data_dir: Path, environment: Mapping[str, str] = os.environ) -> Path | None:
    """In the runtime folder that systemd made, else in the user's, else in shared memory; None where there is none."""
    runtime = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if runtime:
        return Path(runtime) / "requests"
    name = hashlib.sha256(os.path.realpath(data_dir).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    folders = [folder for folder in (environment.get("XDG_RUNTIME_DIR", ""), "/dev/shm") if folder]  # noqa: S108
    usable = (Path(folder) for folder in folders if os.access(folder, os.W_OK))
    folder = next(usable, None)
    return folder / f"arxplorer-agent-{os.getuid()}-{name}.requests" if folder else None


class RequestMarks:
    """Usable from any thread. Where the file cannot be had, nothing is marked, and nothing is held against anybody."""

    def __init__(self, path: Path | None) -> None:
        self._turn: Final = threading.Condition()
        self._free: Final = list(range(WORKING))
        self._running = 0
        self._alone = False  # one runs, or waits to run, by itself
        self._deaths: dict[bytes, int] = {}
        self._path: Final = path
        self._file: int | None = None
        self._map: mmap.mmap | bytearray = bytearray(_SIZE)
        try:
            if path:
                self._open(path)
        except OSError as error:
            log.warning("requests that end the process cannot be told from others: %s", error)

    def _open(self, path: Path) -> None:
        # In a folder where anybody may write, only a file of our own is believed.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _check_owner(path, file)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, _SIZE)
            os.posix_fallocate(file, 0, _SIZE)  # in a full folder, writing to the map would end the process (SIGBUS)
            self._map = mmap.mmap(file, _SIZE)
        except BaseException:
            os.close(file)
            raise
        self._file = file  # open for as long as the lock is to be held
        for count, key in self._entries(WORKING, REMEMBERED):
            self._deaths[key] = count
        found = {key for _, key in self._entries(0, WORKING)}  # copies of one request died one death
        for key in found:
            self._deaths[key] = min(255, self._deaths.pop(key, 0) + 1)
        if found:
            log.warning("the last run ended while it worked on %d requests; each is tried by itself", len(found))
        for place in range(WORKING):
            self._put(place, 0, b"")
        self._write_deaths()  # after: killed in between, a request is tried once more rather than once less

    def fatal(self, key: bytes) -> bool:
        """Whether this request was being worked on at two deaths."""
        return self._deaths.get(key, 0) >= FATAL_DEATHS

    @contextmanager
    def working(self, key: bytes) -> Iterator[None]:
        """While a request is being worked on. One that was so at a death waits until it can run by itself."""
        suspect = key in self._deaths
        with self._turn:
            while self._alone:
                self._turn.wait()
            self._alone = suspect
            while suspect and self._running:
                self._turn.wait()
            self._running += 1
            place = self._free.pop() if self._free else None
            if place is not None:
                self._put(place, 1, key)
        try:
            yield
        finally:
            with self._turn:
                self._running -= 1
                if place is not None:
                    self._put(place, 0, b"")
                    self._free.append(place)
                if suspect:
                    self._alone = False
                    self._deaths.pop(key, None)
                    self._write_deaths()
                self._turn.notify_all()

    def close(self) -> None:
        """An orderly end is no death: what is worked on now is not held against anybody."""
        if self._file is None:
            return
        with self._turn:
            for place in range(WORKING):
                self._put(place, 0, b"")
            if self._path and not self._deaths:
                with suppress(OSError):
                    self._path.unlink()
            held, self._map = self._map, bytearray(_SIZE)
        if isinstance(held, mmap.mmap):
            held.close()
        os.close(self._file)
        self._file = None

    def _entries(self, first: int, count: int) -> list[tuple[int, bytes]]:
        places = range(first * _ENTRY, (first + count) * _ENTRY, _ENTRY)
        entries = [(self._map[at], bytes(self._map[at + 1 : at + _ENTRY])) for at in places]
        return [entry for entry in entries if entry[0]]

    def _put(self, place: int, count: int, key: bytes) -> None:
        at = place * _ENTRY
        self._map[at + 1 : at + _ENTRY] = key.ljust(KEY_BYTES, b"\0")
        self._map[at] = count  # last: what is killed in between has marked nothing

    def _write_deaths(self) -> None:
        while len(self._deaths) > REMEMBERED:
            self._deaths.pop(next(iter(self._deaths)))
        entries = list(self._deaths.items())
        for number in range(REMEMBERED):
            key, count = entries[number] if number < len(entries) else (b"", 0)
            self._put(WORKING + number, count, key)


def _check_owner(path: Path, file: int) -> None:
    if os.fstat(file).st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to somebody else")
