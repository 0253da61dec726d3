"""The OAI-PMH client against a real server: what arXiv answers, what goes wrong on the way, and what is refused."""

import datetime as dt
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trustme
from oai_server import OaiServer, body, busy, cut, papers, shortened

from agent import __version__
from agent.corpus.oai import MAX_TRIES, SPACING_S, OaiClient, retry_after_s
from agent.corpus.oai_xml import Page
from agent.errors import ConfigError, HarvestError, StoppedError, UnreachableError

CONTACT = "mailto:ada@example.org"


@pytest.fixture
def server() -> Iterator[OaiServer]:
    with OaiServer(papers(3)) as running:
        yield running


def listed(server: OaiServer, client: OaiClient | None = None) -> Page:
    with closing(client or client_of(server)) as asking:
        return asking.list_records("arXivRaw", "cs:cs:LG", "2005-09-16")


def client_of(server: OaiServer, **options) -> OaiClient:
    return OaiClient(server.url, CONTACT, **{"wait": threading.Event().wait, "spacing_s": 0.001, **options})


# -- etiquette ---------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        self.waits.append(seconds)
        return False


def test_three_seconds_lie_between_any_two_requests_also_between_tries_and_redirects(server: OaiServer) -> None:
    clock = Clock()
    asked: list[float] = []
    there = "?verb=ListRecords&metadataPrefix=arXivRaw&set=cs:cs:LG&from=2026-11-01"
    server.trouble.extend([busy("0"), busy("7"), cut, body(b"", 302, Location=there)])
    began = server.began
    server.began = lambda *told: (asked.append(clock.now), began(*told))  # type: ignore[method-assign]
    client = OaiClient(server.url, CONTACT, wait=clock.wait, clock=clock)
    assert client.identify().day == dt.date(2026, 11, 26)
    assert len(listed(server, client).records) == 3
    gaps = [after - before for before, after in zip([1000.0, *asked], asked, strict=False)]
    assert SPACING_S == 3.0
    assert len(gaps) == 6
    assert min(gaps) >= 3.0, "the first one as well: another process may just have asked"
    assert gaps[3] >= 7.0, "as the server had asked for"
    assert client.waited_s >= 7.0


def test_the_user_agent_says_who_is_there_and_whom_to_write_to(server: OaiServer) -> None:
    listed(server)
    assert server.agents == {f"arxplorer-agent/{__version__} ({CONTACT})"}


@pytest.mark.parametrize("contact", ["", "  ", "ada@example.org\r\nX-Evil: 1", "ädä@example.org"])
def test_without_a_usable_contact_nothing_is_sent(contact: str, server: OaiServer) -> None:
    with pytest.raises(ConfigError) as caught:
        OaiClient(server.url, contact, wait=threading.Event().wait)
    assert caught.value.path == "corpus.harvest.contact"
    assert server.requests == []


@pytest.mark.parametrize(
    "url", ["http://oaipmh.arxiv.org/oai", "file:///etc/passwd", "oaipmh.arxiv.org", "https://", "https://[", ""]
)
def test_an_address_that_does_not_prove_who_it_is_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OaiClient(url, CONTACT, wait=threading.Event().wait)
    assert caught.value.path == "corpus.harvest.url"


# -- what passes by itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        busy("0"),
        busy("0", 429),
        busy(None),
        busy("soon"),
        busy("0", 500),
        busy("0", 502),
        cut,
        shortened,
        body(b""),
        body(b"<html>busy</html>"),
    ],
    ids="503 429 503-without 503-odd 500 502 cut shortened empty html".split(),  # noqa: SIM905
)
def test_what_passes_by_itself_is_asked_for_again(trouble, server: OaiServer) -> None:
    server.trouble.extend([trouble, trouble])
    told: list[str] = []
    assert [record.identifier for record in listed(server, client_of(server, say=told.append)).records] == [
        f"oai:arXiv.org:2611.0000{n}" for n in (1, 2, 3)
    ]
    assert len(server.requests) == 3
    assert [why.rpartition("; ")[2][:15] for why in told] == ["asking again in"] * 2
    assert server.impolite == []


def test_a_page_that_never_comes_whole_is_an_error_after_so_many_tries(server: OaiServer) -> None:
    server.trouble.extend([shortened] * 10)
    with pytest.raises(HarvestError, match="damaged or breaks off"):
        listed(server)
    assert len(server.requests) == MAX_TRIES


def test_a_server_that_wants_to_be_left_alone_for_hours_is_left_alone(server: OaiServer) -> None:
    server.trouble.extend([busy("7200")])
    with pytest.raises(HarvestError) as caught:
        listed(server)
    assert caught.value.retry_after_s == 7200
    assert len(server.requests) == 1


def test_nobody_at_the_address_is_an_error_that_says_what_to_do() -> None:
    with OaiServer([]) as gone:
        pass
    with pytest.raises(UnreachableError) as caught:
        listed(gone)
    assert "cannot be reached" in caught.value.message
    assert "later" in (caught.value.hint or "")


def test_a_wait_ends_at_once_when_it_is_time_to_stop(server: OaiServer) -> None:
    stop = threading.Event()
    server.trouble.extend([lambda handler: (stop.set(), busy("300")(handler))])
    with pytest.raises(StoppedError):
        listed(server, client_of(server, wait=stop.wait))


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("120", None, 120.0),
        (" 5 ", None, 5.0),
        ("Thu, 26 Nov 2026 10:00:30 GMT", "Thu, 26 Nov 2026 10:00:00 GMT", 30.0),
        ("Thu, 26 Nov 2026 09:00:00 GMT", "Thu, 26 Nov 2026 10:00:00 GMT", 0.0),
        ("Thu, 26 Nov 2026 10:00:30 GMT", None, None),
        ("Thu, 26 Nov 2026 10:00:30 -0000", "Thu, 26 Nov 2026 10:00:00 GMT", None),
        ("9" * 400, None, 604_800.0),
        ("Sun, 26 Nov 2090 10:00:00 GMT", "Thu, 26 Nov 2026 10:00:00 GMT", 604_800.0),
        ("-3", None, None),
        ("later", None, None),
        (None, None, None),
    ],
)
def test_retry_after_is_seconds_or_a_moment_by_the_servers_own_clock(value, date, seconds) -> None:
    assert retry_after_s(value, date) == seconds


def test_a_compressed_page_is_read(server: OaiServer) -> None:
    server.gzipped = True
    assert len(listed(server).records) == 3


# -- redirects and certificates ----------------------------------------------------------------------------------------


def test_redirects_are_followed_but_not_for_ever(server: OaiServer) -> None:
    server.trouble.extend(
        [body(b"", 301, Location="/oai?verb=ListRecords&metadataPrefix=arXivRaw&set=cs:cs:LG&from=2026-11-01")]
    )
    assert len(listed(server).records) == 3
    server.trouble.extend([body(b"", 302, Location="/oai?verb=ListRecords")] * 50)
    with pytest.raises(HarvestError, match="redirects more than"):
        listed(server)


@pytest.mark.parametrize(
    "target", ["http://export.arxiv.org/oai2", "file:///etc/passwd", "ftp://127.0.0.1/", "http://127.0.0.1:1/oai"]
)
def test_no_redirect_is_followed_to_where_nobody_proves_who_they_are(target: str, server: OaiServer) -> None:
    server.trouble.extend([body(b"", 302, Location=target)])
    with pytest.raises(HarvestError, match="nobody proves"):
        listed(server)
    assert len(server.requests) == 1


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 with its key, and the authority that vouches for it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    return tmp_path / "server.pem", tmp_path / "authority.pem"


def test_a_certificate_is_verified_and_https_is_not_left(certificates, server: OaiServer, monkeypatch) -> None:
    server.use_tls(certificates[0])
    with pytest.raises(HarvestError, match="certificate is refused") as caught:
        listed(server)
    assert "clock" in (caught.value.hint or "")
    assert server.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates[1]))  # as if the system knew it
    assert len(listed(server).records) == 3
    server.trouble.extend([body(b"", 302, Location=server.url.replace("https", "http"))])
    with pytest.raises(HarvestError, match="nobody proves"):
        listed(server)


@pytest.mark.parametrize(("status", "word"), [(403, "shut this device out"), (404, "corpus.harvest.url")])
def test_other_answers_are_errors_with_a_hint_and_are_not_asked_for_again(
    status: int, word: str, server: OaiServer
) -> None:
    server.trouble.extend([body(b"no", status)])
    with pytest.raises(HarvestError) as caught:
        listed(server)
    assert str(status) in caught.value.message
    assert word in (caught.value.hint or "")
    assert len(server.requests) == 1


def test_hostile_xml_ends_a_harvest_and_is_not_asked_for_again(server: OaiServer) -> None:
    server.trouble.extend([body(b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>')])
    with pytest.raises(HarvestError, match="document type"):
        listed(server)
    assert len(server.requests) == 1
