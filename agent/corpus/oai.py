"""An OAI-PMH 2.0 client as arXiv wants its visitors: one connection, a request every three seconds, and a name.

Whatever may pass by itself is waited for, within bounds: a 503 or 429 with Retry-After, a cut connection, a page that
breaks off. The rest is an error that says what to do.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError

from agent import __version__
from agent.corpus.oai_xml import Page, PageError, UnsafePageError, read_page
from agent.errors import ConfigError, CorpusError, HarvestError, StoppedError, UnreachableError

log = logging.getLogger(__name__)

SPACING_S: Final = 3.0
"""arXiv's terms: no more than one request every three seconds."""
MAX_TRIES: Final = 6
"""Of one page. With pauses that double, a repository has a good minute and a half to recover."""
UNREACHABLE_TRIES: Final = 3
"""Where nobody answers at all: a person is waiting, or the timer comes again."""
MAX_WAIT_S: Final = 600.0
"""Longest wait for one page that a repository may ask for; beyond it the harvest ends, and goes on another time."""
MAX_ASKED_S: Final = 7 * 86_400.0
"""What a Retry-After is taken for at most."""
MAX_REDIRECTS: Final = 5
CONNECT_TIMEOUT_S: Final = 30.0
READ_TIMEOUT_S: Final = 120.0
"""Of silence: arXiv takes its time to put a page of thousands together."""
PAGE_TIMEOUT_S: Final = 900.0
"""Of a whole page: one that trickles in must not hold the connection for ever."""
CHUNK_BYTES: Final = 64 * 1024
LOOPBACK: Final = frozenset(("127.0.0.1", "::1", "localhost"))
REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
FLOW_CONTROL: Final = frozenset((429, 503))
STOPPED: Final = "the harvest was stopped; it goes on from there"

Wait = Callable[[float], bool]
"""Wait so many seconds; true, at once, when it is time to stop, as `threading.Event.wait` does it."""


class _AgainError(Exception):
    """What may pass by itself in so many `tries`; `wait_s` is how long the other side has asked for."""

    tries = MAX_TRIES

    def __init__(self, reason: str, *, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s: Final = wait_s


class _NobodyError(_AgainError):
    """Nobody answers at all."""

    tries = UNREACHABLE_TRIES


class OaiClient:
    """One interface, asked by one thread. Close it after use."""

    def __init__(
        self,
        url: str,
        contact: str,
        *,
        wait: Wait,
        spacing_s: float = SPACING_S,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = log.info,
    ) -> None:
        """`contact` goes into the User-Agent; `say` is told why it waits.

        Raises ConfigError for an address or a contact that cannot be used.
        """
        self._url: Final = _checked_url(url)
        self._wait: Final = wait
        self._spacing_s: Final = spacing_s
        self._clock: Final = clock
        self._say: Final = say
        # Another process, killed or finished, may have asked a moment ago: the first request waits as well.
        self._quiet_since = clock()
        self.waited_s = 0.0
        """Because the other side had asked for it, or something had gone wrong."""
        headers = {
            "User-Agent": user_agent(contact),
            "Accept": "application/xml, text/xml, */*;q=0.1",
            "Accept-Encoding": "gzip",
        }
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
        self._pool: Final = urllib3.PoolManager(
            num_pools=1,
            retries=False,
            headers=headers,
            timeout=timeout,
            cert_reqs="CERT_REQUIRED",
        )

    def close(self) -> None:
        self._pool.clear()

    def identify(self) -> Page:
        """Who is there, and what day it is there. Raises HarvestError and StoppedError."""
        page = self._page({"verb": "Identify"})
        if page.error or page.protocol != "2.0":
            raise HarvestError(f"{self._url} is no OAI-PMH 2.0 interface", hint="see corpus.harvest.url")
        return page

    def list_records(self, metadata_prefix: str, set_spec: str, since: str) -> Page:
        """The first page of what has changed since a day, in a set. Raises HarvestError and StoppedError."""
        return self._page({"verb": "ListRecords", "metadataPrefix": metadata_prefix, "set": set_spec, "from": since})

    def resume(self, token: str) -> Page:
        """The page that a resumption token asks for. Raises HarvestError and StoppedError."""
        return self._page({"verb": "ListRecords", "resumptionToken": token})

    # -- one page -------------------------------------------------------------------------------------------------

    def _page(self, fields: Mapping[str, str]) -> Page:
        waited_s = 0.0
        for attempt in range(1, MAX_TRIES + 1):
            try:
                return self._follow(fields)
            except _AgainError as failure:
                wait_s = self._spacing_s * 2**attempt if failure.wait_s is None else failure.wait_s
                if attempt >= failure.tries or waited_s + wait_s > MAX_WAIT_S:
                    raise self._given_up(failure) from failure
                self._say(f"{failure}; asking again in {wait_s:.0f} s")
                self._pause(wait_s)
                waited_s += wait_s
                self.waited_s += wait_s
        raise AssertionError  # the last attempt returns or raises

    def _given_up(self, failure: _AgainError) -> CorpusError:
        message = f"{self._url}: {failure}"
        later = f"in {failure.wait_s:.0f} s" if failure.wait_s else "later"
        hint = f"try again {later}: it goes on from where it was"
        if isinstance(failure, _NobodyError):
            return UnreachableError(message, hint=hint)
        return HarvestError(message, retry_after_s=failure.wait_s, hint=hint)

    def _follow(self, fields: Mapping[str, str]) -> Page:
        """One attempt, with its redirects."""
        url, query = self._url, dict(fields)
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._ask(url, query)
            if isinstance(answer, Page):
                return answer
            url, query = self._redirected(url, answer), {}
        raise HarvestError(f"{self._url} redirects more than {MAX_REDIRECTS} times", hint="see corpus.harvest.url")

    def _redirected(self, url: str, location: str) -> str:
        target = urljoin(url, location)
        if not target.startswith("https://") and urlsplit(target)[:2] != urlsplit(self._url)[:2]:
            raise HarvestError(f"{self._url} redirects to {target[:200]}, where nobody proves who they are")
        return target

    def _ask(self, url: str, query: dict[str, str]) -> Page | str:
        """Send one request, no sooner than is polite: the page, or the address to go to instead."""
        self._pause(self._quiet_since + self._spacing_s - self._clock())
        options: dict[str, Any] = {"redirect": False, "preload_content": False}
        try:
            with closing(self._pool.request("GET", url, fields=query, **options)) as response:
                return self._read(response)
        except SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                raise _AgainError(f"the connection broke off ({error})") from error
            raise HarvestError(
                f"{self._url}: its certificate is refused: {error}", hint="is the clock of this device right?"
            ) from error
        except (NewConnectionError, ConnectTimeoutError) as error:
            raise _NobodyError(f"it cannot be reached ({error})") from error
        except (HTTPError, OSError) as error:
            raise _AgainError(f"the connection broke off ({error})") from error
        finally:
            self._quiet_since = self._clock()

    def _read(self, response: Any) -> Page | str:
        status, headers = response.status, response.headers
        if status in REDIRECTS and headers.get("Location"):
            return str(headers["Location"])
        if status in FLOW_CONTROL:
            wait_s = retry_after_s(headers.get("Retry-After"), headers.get("Date"))
            raise _AgainError(f"it answers {status}: come back later", wait_s=wait_s)
        if status >= 500:  # noqa: PLR2004
            raise _AgainError(f"it answers {status}")
        if status != 200:  # noqa: PLR2004
            raise HarvestError(
                f"{self._url} answers {status}",
                hint="arXiv may have shut this device out: wait a day, and see corpus.harvest.contact"
                if status == 403  # noqa: PLR2004
                else "see corpus.harvest.url",
            )
        try:
            return read_page(self._chunks(response))
        except UnsafePageError as error:
            raise HarvestError(f"{self._url} sends what is not read: {error}", hint="see corpus.harvest.url") from error
        except PageError as error:
            raise _AgainError(f"its answer is damaged or breaks off ({error})") from error

    def _chunks(self, response: Any) -> Iterator[bytes]:
        until = self._clock() + PAGE_TIMEOUT_S
        for chunk in response.stream(CHUNK_BYTES, decode_content=True):
            if self._wait(0.0):
                raise StoppedError(STOPPED)
            if self._clock() > until:
                raise _AgainError(f"one page takes longer than {PAGE_TIMEOUT_S:.0f} s")
            yield chunk

    def _pause(self, seconds: float) -> None:
        if self._wait(max(seconds, 0.0)):
            raise StoppedError(STOPPED)


def user_agent(contact: str) -> str:
    """Raises ConfigError without a contact: arXiv wants to know whom to write to before it shuts somebody out."""
    if not contact.strip():
        raise ConfigError(
            "is empty, and arXiv asks its visitors for one",
            path="corpus.harvest.contact",
            hint="a mail address or web page of yours; it goes into the User-Agent and nowhere else",
        )
    if not (contact.isascii() and contact.isprintable()):
        raise ConfigError("expected printable ASCII only: it goes into a header", path="corpus.harvest.contact")
    return f"arxplorer-agent/{__version__} ({contact.strip()})"


def retry_after_s(value: str | None, date: str | None) -> float | None:
    """Seconds that a Retry-After header asks for; None where it says nothing that can be read.

    One that names a moment is measured against the answer's own Date: the clock here may be wrong.
    """
    try:
        if value is None or value.strip().isdecimal():
            return None if value is None else min(float(value), MAX_ASKED_S)
        moment, now = parsedate_to_datetime(value), parsedate_to_datetime(date or "")
        return min(max((moment - now).total_seconds(), 0.0), MAX_ASKED_S)
    except (ValueError, TypeError, OverflowError):
        return None


def _checked_url(url: str) -> str:
    """Only what proves who it is, or is this machine itself. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK)):
        raise ConfigError("expected an https:// address", path="corpus.harvest.url")
    return url
