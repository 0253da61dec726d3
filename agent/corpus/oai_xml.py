"""One answer of an OAI-PMH 2.0 interface, read as it arrives: its records, its resumption token, its error. Pure.

The XML comes from outside and is not trusted. It is read by expat itself: nothing in it is resolved, fetched or
expanded, since a document type is refused at its first word, and entities can be declared nowhere else. A tree is never
built: of a page only the wanted texts stay in memory. (defusedxml would forbid the same and then build the tree.)
"""

import codecs
import datetime as dt
from collections.abc import Iterable
from typing import Any, Final, NamedTuple
from xml.parsers import expat

from msgspec import Struct, field

OAI: Final = "http://www.openarchives.org/OAI/2.0/"
RAW: Final = "http://arxiv.org/OAI/arXivRaw/"
MAX_PAGE_BYTES: Final = 48 * 1024 * 1024
"""arXiv's pages hold at most 3,500 records of about 3 KB."""
MAX_TOKEN_BYTES: Final = 256 * 1024
"""Of one tag or comment, which older expats read again and again until its end is there."""
MAX_RECORDS: Final = 20_000
MAX_RECORD_CHARS: Final = 256 * 1024
MAX_DEPTH: Final = 32
# XML 1.0 knows these not even as references, and a single one would make its page unreadable for ever.
_FORBIDDEN: Final = dict.fromkeys([*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0xFFFE, 0xFFFF], " ")

_RECORD: Final = ("OAI-PMH", "ListRecords", "record")
_HEADER: Final = (*_RECORD, "header")
_PAPER: Final = (*_RECORD, "metadata", "raw:arXivRaw")
_TOKEN: Final = ("OAI-PMH", "ListRecords", "resumptionToken")
_VERSION: Final = (*_PAPER, "raw:version")
_FIELDS: Final = {(*_PAPER, f"raw:{name}"): name for name in ("id", "title", "abstract", "authors", "categories")}
_TEXTS: Final = {
    *_FIELDS,
    ("OAI-PMH", "responseDate"),
    ("OAI-PMH", "error"),
    ("OAI-PMH", "Identify", "protocolVersion"),
    (*_HEADER, "identifier"),
    (*_HEADER, "datestamp"),
    (*_HEADER, "setSpec"),
    (*_VERSION, "raw:date"),
    _TOKEN,
}


class PageError(ValueError):
    """What came is no whole page: cut off, not well-formed, or something else altogether. Asking again may help."""


class UnsafePageError(PageError):
    """What came could harm its reader, and asking again would not help."""


class OaiRecord(Struct):
    """One record: its header, and of arXivRaw what a paper needs. `versions` are (`v1`, its date), oldest first."""

    identifier: str = ""
    datestamp: str = ""
    sets: list[str] = field(default_factory=list)
    deleted: bool = False
    fields: dict[str, str] = field(default_factory=dict)
    versions: list[list[str]] = field(default_factory=list)
    chars: int = 0

    @property
    def too_long(self) -> bool:
        return self.chars > MAX_RECORD_CHARS


class OaiError(NamedTuple):
    """`code` is one of the protocol's, such as `noRecordsMatch`."""

    code: str
    message: str


class Page(Struct):
    """`day` is the repository's date, by its own clock; `token` asks for the next page, "" where this is the last."""

    day: dt.date = dt.date.min
    protocol: str = ""
    records: list[OaiRecord] = field(default_factory=list)
    token: str = ""
    error: OaiError | None = None


def read_page(chunks: Iterable[bytes]) -> Page:
    """Read an answer in UTF-8, as the protocol wants it. Raises PageError."""
    reader = _Reader()
    decode = codecs.getincrementaldecoder("utf-8")("replace")  # one bad byte must not cost the page
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_PAGE_BYTES:
            raise UnsafePageError(f"more than {MAX_PAGE_BYTES >> 20} MiB in one answer")
        reader.feed(decode.decode(chunk))
    reader.feed(decode.decode(b"", final=True))
    return reader.close()


class _Reader:
    def __init__(self) -> None:
        self._page: Final = Page()
        self._path: tuple[str, ...] = ()
        self._record: OaiRecord | None = None
        self._text: list[str] | None = None  # of the element that is being read, where it is wanted
        self._fed = 0
        self._parser: Final = expat.ParserCreate("utf-8", " ")
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters

    def feed(self, text: str) -> None:
        data = text.translate(_FORBIDDEN).encode("utf-8", "replace")
        self._parse(data, final=False)
        self._fed += len(data)
        if self._fed - max(self._parser.CurrentByteIndex, 0) > MAX_TOKEN_BYTES:
            raise UnsafePageError(f"a tag of more than {MAX_TOKEN_BYTES >> 10} KiB")

    def close(self) -> Page:
        self._parse(b"", final=True)
        if self._page.day == dt.date.min:
            raise PageError("no answer of an OAI-PMH interface: it has no responseDate")
        return self._page

    def _parse(self, data: bytes, *, final: bool) -> None:
        try:
            self._parser.Parse(data, final)
        except expat.ExpatError as error:
            raise PageError(f"not well-formed XML: {error}") from error

    def _doctype(self, *_: Any) -> None:
        raise UnsafePageError("it declares a document type, which may hold entities and is never needed here")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        space, _, name = tag.rpartition(" ")
        short = name if space == OAI else f"raw:{name}" if space == RAW else f"other:{name}"
        self._path = (*self._path, short)
        if len(self._path) > MAX_DEPTH:
            raise UnsafePageError(f"elements nested deeper than {MAX_DEPTH}")
        if self._path == ("OAI-PMH", "error"):
            self._page.error = OaiError(attributes.get("code", ""), "")
        elif self._path == _RECORD:
            self._record = OaiRecord()
        elif self._record and self._path == _HEADER:
            self._record.deleted = attributes.get("status") == "deleted"
        elif self._record and self._path == _VERSION:
            self._record.versions.append([attributes.get("version", ""), ""])
        if len(self._path) == 1 and short != "OAI-PMH":
            raise PageError(f"no answer of an OAI-PMH interface: it begins with <{name[:40]}>")
        self._text = [] if self._path in _TEXTS else None

    def _characters(self, text: str) -> None:
        if self._text is None:
            return
        if self._record:
            self._record.chars += len(text)
            if self._record.too_long:
                return  # what there is of it will not be used
        self._text.append(text)

    def _end(self, _: str) -> None:
        path, text = self._path, "".join(self._text or ())
        self._path, self._text = path[:-1], None
        if path == _RECORD and self._record:
            self._page.records.append(self._record)
            self._record = None
            if len(self._page.records) > MAX_RECORDS:
                raise UnsafePageError(f"more than {MAX_RECORDS} records in one answer")
        elif path in _TEXTS:
            self._take(path, text)

    def _take(self, path: tuple[str, ...], text: str) -> None:
        if self._record:
            _take_of_record(self._record, path, text)
        elif path == _TOKEN:
            self._page.token = text.strip()
        elif path[-1] == "responseDate":
            self._page.day = _day(text)
        elif path[-1] == "protocolVersion":
            self._page.protocol = text.strip()
        elif self._page.error:
            self._page.error = OaiError(self._page.error.code, " ".join(text.split())[:300])


def _take_of_record(record: OaiRecord, path: tuple[str, ...], text: str) -> None:
    if path in _FIELDS:
        record.fields[_FIELDS[path]] = text
    elif path[-1] == "setSpec":
        record.sets.append(text.strip())
    elif path[-1] == "raw:date":
        record.versions[-1][1] = text.strip()
    elif path[-1] == "identifier":
        record.identifier = text.strip()
    elif path[-1] == "datestamp":
        record.datestamp = text.strip()[: len("YYYY-MM-DD")]


def _day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text.strip()[: len("YYYY-MM-DD")])
    except ValueError as error:
        raise PageError(f"no answer of an OAI-PMH interface: responseDate is {text[:40]!r}") from error
