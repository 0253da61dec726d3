"""Bytes of a repository, from a web server or from a folder: bounded in time, not to be trusted.

Nothing that comes through here counts before a signature or a hash vouches for it, so plain http:// is as safe against
forgery as https://; it only lets others see what is fetched.
"""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, Self
from urllib.parse import quote, unquote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError, SSLError

from agent import __version__
from agent.errors import CorpusError, RepositoryError, UnreachableError
from agent.store.moment import PLAUSIBLE_S

SILENCE_S: Final = 30.0
"""A server that has sent nothing for so long will not; a satellite's link is silent for a few seconds."""
ANSWER_S: Final = 60.0
"""From the request to the last line of the answer's head, which is a few hundred bytes."""
WINDOW_S: Final = 60.0
WINDOW_BYTES: Final = 4096
"""What has to come in a minute of waiting. Even the slowest link of a boat (2.4 kbit/s) brings 18 KB; with less, an
update would take longer than its signatures hold. What came is kept, so that giving up costs nothing."""
BLOCK_BYTES: Final = 64 * 1024
REDIRECTS: Final = 5
MISSING: Final = (403, 404, 410)
"""Object stores answer 403 for what is not there."""


class LostError(RepositoryError):
    """The connection ended too early, or none came about: asking again may help at once."""


class MissingError(RepositoryError):
    """The repository has no such file."""


class Stream(Protocol):
    """The contents of a file, or what is left of it from `start`, which is 0 where the server cannot do otherwise."""

    start: int
    length: int | None

    def read(self, limit: int) -> bytes:
        """At most so many of the next bytes, none at the end. Raises RepositoryError, UnreachableError."""

    def close(self) -> None: ...


class Transport:
    """Where a repository is: an https://, http:// or file:// URL, or a folder. Not for several threads at once."""

    def __init__(self, url: str, *, ca_cert: str = "", rate_kib_s: int = 0) -> None:
        """Raises RepositoryError for an address of another kind. Connects to nothing."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise RepositoryError(f"{url} is no repository: {error}") from error
        self.url: Final = url
        self._pool: Final = _pool(ca_cert) if parts.scheme in ("https", "http") else None
        self._rate: Final = Rate(rate_kib_s * 1024)
        if self._pool is None and parts.netloc in ("", "localhost") and (parts.scheme == "file" or "://" not in url):
            self._folder: Final = Path(unquote(parts.path) if parts.scheme == "file" else url)
        elif self._pool is None or not parts.netloc:
            raise RepositoryError(f"{url} is no repository: expected an https:// or file:// URL, or a folder")

    def open(self, path: str, start: int = 0) -> "closing[Stream]":
        """Open a file of the repository by its path, from byte `start` on. Raises RepositoryError, UnreachableError."""
        if self._pool is None:
            return closing(_FileStream(self._folder / path, start))
        return closing(_HttpStream(self._pool, f"{self.url.rstrip('/')}/{quote(path)}", start, self._rate))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Rate:
    """Holds a number of bytes a second on average; of what was not used, a second's worth is saved up."""

    def __init__(
        self, bytes_s: int, *, now: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """0: no limit."""
        self._bytes_s: Final = bytes_s
        self._now: Final = now
        self._sleep: Final = sleep
        self._free_at = 0.0

    @property
    def block(self) -> int:
        """How much to read at a time, so that no wait is longer than a second."""
        return min(BLOCK_BYTES, self._bytes_s) if self._bytes_s else BLOCK_BYTES

    def take(self, read: int) -> None:
        """Wait until that much may have been read."""
        if self._bytes_s:
            now = self._now()
            self._free_at = max(now - 1.0, self._free_at) + read / self._bytes_s
            self._sleep(max(0.0, self._free_at - now))


class _FileStream:
    def __init__(self, path: Path, start: int) -> None:
        self._path: Final = path
        try:
            if not path.is_file():  # a pipe would keep us waiting
                raise MissingError(f"{path} is not there", hint="is the stick in, and the copy complete?")
            self._file: BinaryIO = path.open("rb")
            self.length: int | None = max(0, path.stat().st_size - start)
            self.start = self._file.seek(start)
        except OSError as error:
            raise RepositoryError(f"{path} cannot be read: {error.strerror}") from error

    def read(self, limit: int) -> bytes:
        try:
            return self._file.read(min(limit, BLOCK_BYTES))
        except OSError as error:
            raise RepositoryError(f"{self._path} cannot be read: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()


class _HttpStream:
    def __init__(self, pool: urllib3.PoolManager, url: str, start: int, rate: Rate) -> None:
        self._url: Final = url
        self._rate: Final = rate
        self._waited_s = 0.0
        self._got = 0
        self._response: Final = self._ask(pool, start)
        try:
            self.start = self._begin(start)
        except BaseException:
            self.close()
            raise
        self.length = self._length()

    def _ask(self, pool: urllib3.PoolManager, start: int) -> urllib3.BaseHTTPResponse:
        headers = {"Accept-Encoding": "identity", "User-Agent": f"arxplorer-agent/{__version__}"}
        if start:
            headers["Range"] = f"bytes={start}-"
        url = self._url
        for _ in range(REDIRECTS + 1):
            try:
                response = pool.request(
                    "GET",
                    url,
                    headers=headers,
                    preload_content=False,
                    decode_content=False,
                    timeout=urllib3.Timeout(connect=SILENCE_S, read=SILENCE_S),
                    retries=False,
                    redirect=False,  # urllib3 would read the body of each, however long
                )
            except (HTTPError, OSError) as error:
                raise _reason(error, url) from error
            onward = response.get_redirect_location()
            if not onward:
                return response
            response.close()
            with suppress(ValueError):
                url = urljoin(url, onward)
            if not url.startswith(("https://", "http://")):
                break
        raise RepositoryError(f"{self._url} leads on and on, at last to {url}")

    def _begin(self, start: int) -> int:
        """Where the answer begins; raises RepositoryError where it is none."""
        status = self._response.status
        if status == http.client.PARTIAL_CONTENT and start:
            unit_and_first = self._response.headers.get("Content-Range", "").partition("-")[0]
            if unit_and_first.strip() == f"bytes {start}":
                return start
            raise RepositoryError(f"{self._url}: asked for what follows byte {start}, got {unit_and_first!r}")
        if status == http.client.OK:
            return 0
        if status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise MissingError(f"{self._url} has no more than {start} bytes")
        if status in MISSING:
            raise MissingError(f"{self._url} is not there (HTTP {status})")
        raise RepositoryError(f"{self._url}: the server answers HTTP {status} {self._response.reason or ''}".rstrip())

    def _length(self) -> int | None:
        with suppress(ValueError):
            return int(self._response.headers.get("Content-Length", ""))
        return None

    def read(self, limit: int) -> bytes:
        began = time.monotonic()
        try:
            with self._bounded():
                block = self._response.read1(min(limit, self._rate.block))
        except (HTTPError, OSError) as error:
            raise _reason(error, self._url) from error
        self._waited_s += time.monotonic() - began
        self._got += len(block)
        if self._waited_s >= WINDOW_S:
            if self._got < WINDOW_BYTES and block:
                raise RepositoryError(
                    f"{self._url}: {self._got} bytes in {self._waited_s:.0f} s; {WINDOW_BYTES} would be enough",
                    attack="slow retrieval",
                    hint="what came is kept, and the next attempt goes on from there",
                )
            self._waited_s, self._got = 0.0, 0
        self._rate.take(len(block))
        return block

    def _bounded(self) -> AbstractContextManager[None]:
        """Without a length the body comes in chunks, whose heads could drip within one read."""
        return nullcontext() if self.length is not None else _within(WINDOW_S, self._response.shutdown)

    def close(self) -> None:
        self._response.close()
        self._response.release_conn()


def _reason(error: Exception, url: str) -> CorpusError:
    """What urllib3 says, in our words."""
    if isinstance(error, ReadTimeoutError | TimeoutError):
        return RepositoryError(f"{url}: the server sent nothing for {SILENCE_S:.0f} s", attack="slow retrieval")
    if isinstance(error, SSLError):
        now = datetime.fromtimestamp(time.time(), UTC)
        wrong = f"the clock says {now:%Y-%m-%d}, and certificates need the right time" if _unset() else None
        return RepositoryError(f"{url}: no safe connection: {error}", hint=wrong or "see corpus.ca_cert")
    if isinstance(error, ProtocolError):
        return LostError(f"{url}: the connection broke off: {error}")
    return UnreachableError(f"{url} cannot be reached: {error}")


def _unset() -> bool:
    return time.time() < PLAUSIBLE_S


@contextmanager
def _within(seconds: float, shut: Callable[[], object]) -> Iterator[None]:
    """Shut the connection when the time is over, however steadily the other side drips; raises TimeoutError then."""
    expired = threading.Event()

    def give_up() -> None:
        expired.set()
        with suppress(OSError, RuntimeError, ValueError):  # it may be gone by then
            shut()

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException, HTTPError) as error:
        if expired.is_set():
            raise TimeoutError("not in time") from error
        raise
    finally:
        timer.cancel()
    if expired.is_set():
        raise TimeoutError("not in time")


class _Impatient:
    """A connection on which the head of an answer must come in time."""

    sock: socket.socket

    def getresponse(self) -> Any:
        with _within(ANSWER_S, lambda: socket.socket.shutdown(self.sock, socket.SHUT_RDWR)):
            return super().getresponse()  # type: ignore[misc]


class _Http(_Impatient, HTTPConnection):
    pass


class _Https(_Impatient, HTTPSConnection):
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


def _pool(ca_cert: str) -> urllib3.PoolManager:
    try:
        context = ssl.create_default_context(cafile=ca_cert or None)
    except OSError as error:  # ssl.SSLError is one
        raise RepositoryError(f"{ca_cert} is no CA certificate that can be read: {error}") from error
    manager = urllib3.PoolManager(num_pools=4, maxsize=1, ssl_context=context)
    manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return manager
