"""arXiv's OAI-PMH interface on 127.0.0.1: the same XML from papers of one's own, and trouble on demand.

Laid out as the interface of 2025 does it: format arXivRaw, sets such as `cs:cs:LG`, dates as granularity, tokens that
hold the request they continue, errors with status 200.
"""

import gzip
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlencode, urlsplit
from xml.sax.saxutils import escape

HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"
         xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
         xsi:schemaLocation="http://www.openarchives.org/OAI/2.0/ http://www.openarchives.org/OAI/2.0/OAI-PMH.xsd">
    <responseDate>{date}</responseDate>
"""
RAW_HEAD = (
    '<arXivRaw xmlns="http://arxiv.org/OAI/arXivRaw/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
    'xsi:schemaLocation="http://arxiv.org/OAI/arXivRaw/ http://arxiv.org/OAI/arXivRaw.xsd">'
)


@dataclass
class OaiPaper:
    arxiv_id: str
    datestamp: str
    title: str = "A title"
    abstract: str = "An abstract"
    authors: str = "Ada Bee, C. Dee"
    categories: str = "cs.LG stat.ML"
    sets: tuple[str, ...] = ("cs:cs:LG", "stat:stat:ML")
    versions: tuple[str, ...] = ("Mon, 2 Apr 2007 19:18:42 GMT",)
    deleted: bool = False

    def xml(self) -> str:
        sets = "".join(f"            <setSpec>{one}</setSpec>\n" for one in self.sets)
        status = ' status="deleted"' if self.deleted else ""
        header = (
            f"        <header{status}>\n            <identifier>oai:arXiv.org:{self.arxiv_id}</identifier>\n"
            f"            <datestamp>{self.datestamp}</datestamp>\n{sets}        </header>\n"
        )
        if self.deleted:
            return f"    <record>\n{header}    </record>\n"
        versions = "".join(
            f'        <version version="v{number}">\n            <date>{date}</date>\n            <size>12kb</size>\n'
            f"            <source_type>D</source_type>\n        </version>\n"
            for number, date in enumerate(self.versions, 1)
        )
        texts = "".join(
            f"        <{name}>{escape(text)}</{name}>\n"
            for name, text in (
                ("title", self.title),
                ("authors", self.authors),
                ("categories", self.categories),
                ("comments", "12 pages, 3 figures"),
                ("license", "http://creativecommons.org/licenses/by/4.0/"),
                ("abstract", self.abstract),
            )
        )
        raw = f"{RAW_HEAD}\n        <id>{self.arxiv_id}</id>\n        <submitter>Ada Bee</submitter>\n{versions}{texts}    </arXivRaw>"
        return f"    <record>\n{header}        <metadata>\n    {raw}\n        </metadata>\n    </record>\n"


def papers(count: int, *, first: int = 1, datestamp: str = "2026-11-20") -> list[OaiPaper]:
    """Papers that differ, in cs.LG."""
    return [
        OaiPaper(
            f"2611.{number:05d}",
            datestamp,
            title=f"On word{number}\n  and its neighbours",
            abstract=f"  We study word{number} & show that a < b.\n",
        )
        for number in range(first, first + count)
    ]


Trouble = Callable[["_Handler"], None]
"""Answers a request in another way."""


def busy(retry_after: str | None = "0", status: int = 503) -> Trouble:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return lambda handler: handler.send(b"busy", status=status, **headers)


def cut(handler: "_Handler") -> None:
    """End the connection in the middle of the page."""
    handler.send(handler.page(), keep=0.6)


def body(content: bytes, status: int = 200, **headers: str) -> Trouble:
    return lambda handler: handler.send(content, status=status, **headers)


def shortened(handler: "_Handler") -> None:
    """Half a page, which claims to be all of it."""
    page = handler.page()
    handler.send(page[: len(page) // 2])


@dataclass
class OaiServer:
    """`trouble` holds what is done with the next requests for records, None for a good answer."""

    records: list[OaiPaper]
    page_size: int = 100
    today: str = "2026-11-26"
    spacing_s: float = 0.0  # between the end of an answer and the next request
    gzipped: bool = False
    trouble: deque[Trouble | None] = field(default_factory=deque)
    requests: list[dict[str, str]] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    impolite: list[float] = field(default_factory=list)
    delivered: int = 0
    epoch: int = 0  # tokens of an earlier one have expired

    def __enter__(self) -> Self:
        self._scheme = "http"
        self._last: float | None = None
        self._open = 0
        self._guard = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.oai = self  # type: ignore[attr-defined]
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/oai"

    def use_tls(self, certificate: Path) -> None:
        """From the next connection on; the file holds the certificate and its key."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._scheme = "https"

    def began(self, parameters: dict[str, str], agent: str) -> None:
        with self._guard:
            self._open += 1
            gap = time.monotonic() - self._last if self._last is not None else self.spacing_s
            # Half of it, and nothing where it is next to none: a thread here may hear late that its answer has arrived.
            if self.spacing_s and (gap < self.spacing_s / 2 or self._open > 1):
                self.impolite.append(gap)
            self.requests.append(parameters)
            self.agents.add(agent)

    def ended(self) -> None:
        with self._guard:
            self._open -= 1
            self._last = time.monotonic()

    # -- answers --------------------------------------------------------------------------------------------------

    def answer(self, parameters: dict[str, str]) -> bytes:
        head = HEAD.format(date=f"{self.today}T09:30:00Z")
        return f"{head}{self._inside(parameters)}</OAI-PMH>\n".encode()

    def _inside(self, parameters: dict[str, str]) -> str:
        verb = parameters.get("verb")
        if verb == "Identify":
            return (
                '    <request verb="Identify">https://oaipmh.arxiv.org/oai</request>\n    <Identify>\n'
                "        <repositoryName>arXiv</repositoryName>\n        <protocolVersion>2.0</protocolVersion>\n"
                "        <deletedRecord>persistent</deletedRecord>\n        <granularity>YYYY-MM-DD</granularity>\n    </Identify>\n"
            )
        if verb != "ListRecords":
            return "    <request/>\n    <error code='badVerb'>Invalid verb provided</error>\n"
        query, skip = dict(parameters), 0
        if "resumptionToken" in query:
            if set(query) != {"verb", "resumptionToken"}:
                return "    <error code='badArgument'>No other parameters allowed</error>\n"
            query = dict(parse_qsl(unquote(query["resumptionToken"])))
            if query.pop("epoch", None) != str(self.epoch):
                return "    <request/>\n    <error code='badResumptionToken'>The value is invalid or expired.</error>\n"
            skip = int(query.pop("skip"))
        elif query.get("metadataPrefix") != "arXivRaw":
            return "    <error code='cannotDisseminateFormat'>Did not recognize requested format</error>\n"
        return self.listed(query, skip)

    def listed(self, query: dict[str, str], skip: int) -> str:
        spec = query["set"]
        if spec == "cs:cs:XX":
            return "    <error code='badArgument'>Invalid set value</error>\n"
        found = [one for one in self.records if any(f"{name}:".startswith(f"{spec}:") for name in one.sets)]
        found = sorted(
            (one for one in found if one.datestamp >= query["from"]), key=lambda one: (one.datestamp, one.arxiv_id)
        )
        page = found[skip : skip + self.page_size]
        if not page:
            return (
                "    <request/>\n    <error code='noRecordsMatch'>The combination results in an empty list.</error>\n"
            )
        token = "        <resumptionToken/>\n" if skip else ""
        if len(found) > skip + len(page):
            rest = quote(urlencode({**query, "skip": skip + len(page), "epoch": self.epoch}))
            token = f"        <resumptionToken expires='{self.today}T23:59:59Z'>{escape(rest)}</resumptionToken>\n"
        return f'    <request verb="ListRecords"/>\n    <ListRecords>\n{"".join(one.xml() for one in page)}{token}    </ListRecords>\n'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def oai(self) -> OaiServer:
        return self.server.oai  # type: ignore[attr-defined,no-any-return]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.parameters = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        self.oai.began(self.parameters, self.headers.get("User-Agent", ""))
        trouble = None
        if self.parameters.get("verb") == "ListRecords" and self.oai.trouble:
            trouble = self.oai.trouble.popleft()
        if trouble:
            trouble(self)
        else:
            page = self.page()
            self.oai.delivered += page.count(b"<record>")
            if self.oai.gzipped:
                self.send(gzip.compress(page), Content_Encoding="gzip")
            else:
                self.send(page)

    def page(self) -> bytes:
        return self.oai.answer(self.parameters)

    def send(self, content: bytes, *, status: int = 200, keep: float = 1.0, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/xml", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.oai.ended()  # before the last byte: the next request may come at once
        self.wfile.write(content[: int(len(content) * keep)])
        self.close_connection = keep < 1
