"""Harvest: what is new on arXiv in chosen categories, page by page into the corpus, and how far that came.

A page is applied first and its position written afterwards: a process killed in between is given the page again, which
changes nothing. All dates are the repository's own; the clock of this device is not asked.
"""

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct, field

from agent.config import HarvestConfig
from agent.corpus.arxiv_oai import FORMAT, arxiv_id_of_record, belongs, import_record, set_of
from agent.corpus.oai import SPACING_S, OaiClient
from agent.corpus.oai_xml import OaiRecord, Page
from agent.corpus.records import RecordError
from agent.crash_points import crash_point
from agent.domain import CorpusUpdate, is_date
from agent.errors import ConfigError, HarvestError, StoppedError
from agent.search.api import SearchAPI
from agent.search.text import arxiv_id_forms, category_query_term
from agent.store.agent_db import AgentDatabase
from agent.store.generations import FolderLock
from agent.store.journal import Journal
from agent.store.remembered import Remembered

log = logging.getLogger(__name__)

POSITION: Final = "harvest"
"""The name under which it is remembered."""
LOCK: Final = "harvest.lock"
"""In the data folder: two harvests at a time would ask twice as often as is polite."""
FIRST_DAYS: Final = 7
"""How far back the first harvest of a category goes; older papers come by import or in a pack."""
OVERLAP: Final = dt.timedelta(days=1)
"""Datestamps are days, and what was changed early on a day may be shown late on it, or after midnight."""
SLICE: Final = 500
"""Records applied at a time: a page may hold thousands, and others want to write papers.db, too."""
MAX_RESTARTS: Final = 2
"""Of one list, when its tokens are refused."""
KEPT_PROBLEMS: Final = 100
COUNTS: Final = ("added", "updated", "unchanged", "older", "removed")

Apply = Callable[[CorpusUpdate], Mapping[str, int]]
"""Carries an update out, durably when it returns, and tells how many papers were `added`, `updated`, `removed` .."""
Progress = Callable[[int], None]
Day = Annotated[str, Meta(pattern=r"^(\d{4}-\d\d-\d\d)?$")]


class Listing(Struct, forbid_unknown_fields=True):
    """A list that is under way: `day` is the repository's at its beginning, `token` asks for its next page."""

    url: str
    since: Day
    day: Day
    token: str


class Place(Struct, forbid_unknown_fields=True):
    """How far one category came: everything that changed before the day `through` is here."""

    through: Day = ""
    listing: Listing | None = None


class Position(Struct, forbid_unknown_fields=True):
    """`finished_s` is when all categories were last complete, by the clock of this device."""

    categories: dict[str, Place] = field(default_factory=dict)
    finished_s: float = 0.0


class HarvestReport(Struct):
    """What a harvest did; `complete` unless it was stopped.

    `unwanted` are papers that were removed on this device before. `problems` names the first malformed records.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    older: int = 0
    removed: int = 0
    unwanted: int = 0
    malformed: int = 0
    pages: int = 0
    waited_s: float = 0.0
    complete: bool = False
    problems: list[str] = field(default_factory=list)


class Harvester:
    """Harvests with one configuration. One thread at a time."""

    def __init__(
        self,
        config: HarvestConfig,
        apply: Apply,
        position: Remembered,
        *,
        lock: Path,
        stop: threading.Event | None = None,
        holds: Callable[[str], bool] = lambda _: True,
        removed: Callable[[Sequence[str]], Collection[str]] = lambda _: (),
        progress: Progress = lambda _: None,
        say: Callable[[str], None] = log.info,
        spacing_s: float = SPACING_S,
    ) -> None:
        """`lock` is a file, and `stop` ends a harvest between two steps or in a wait.

        `holds` says whether a paper is in the corpus: others need not be removed. `removed` says which of some papers
        were removed on this device: they do not come back with the next page that names them. `progress` takes the
        number of records so far, `say` is told why it is waiting.
        """
        self._config: Final = config
        self._apply: Final = apply
        self._position: Final = position
        self._lock: Final = lock
        self._stop: Final = stop or threading.Event()
        self._holds: Final = holds
        self._removed: Final = removed
        self._progress: Final = progress
        self._spacing_s: Final = spacing_s
        self._say: Final = say

    def finished_s(self) -> float:
        """When a harvest was last complete, in seconds since 1970 by the clock of this device; 0: never."""
        return self._load().finished_s

    def harvest(
        self, categories: Sequence[str] = (), *, since: str = "", report: HarvestReport | None = None
    ) -> HarvestReport:
        """Take in what is new in `categories`, else in the configured ones, since the last time or since a day.

        Stopped, it ends early, and the next one goes on from there. Raises ConfigError for categories and settings that
        cannot be used, HarvestError, UnreachableError, and what `apply` raises; `report` says what was done before.
        """
        report = HarvestReport() if report is None else report
        chosen = _checked(categories or self._config.categories)
        if since and not (is_date(since) and len(since) == len("YYYY-MM-DD")):
            raise ConfigError(f"expected YYYY-MM-DD, got {since!r}", path="--since")
        client = OaiClient(
            self._config.url, self._config.contact, wait=self._stop.wait, spacing_s=self._spacing_s, say=self._say
        )
        with closing(client), FolderLock(self._lock) as lock:
            if not lock.acquire():
                raise HarvestError("another process is harvesting", hint="wait until it is done")
            try:
                for category in chosen:
                    _List(self, client, category, report).run(since)
                self._finish(chosen)
                report.complete = True
            except StoppedError:
                log.info("harvest stopped; it goes on another time from where it was")
            finally:
                report.waited_s = round(client.waited_s, 1)
        return report

    def _finish(self, chosen: Iterable[str]) -> None:
        if set(chosen) >= set(map(category_query_term, self._config.categories)):
            position = self._load()
            position.finished_s = time.time()
            self._save(position)

    # -- for the lists ------------------------------------------------------------------------------------------------

    def _load(self) -> Position:
        try:
            return msgspec.convert(self._position.load() or {}, Position)
        except msgspec.ValidationError:
            return Position()  # of another version of this program: the last days come again

    def _save(self, position: Position) -> None:
        self._position.save(msgspec.to_builtins(position))

    def place(self, category: str) -> Place:
        return self._load().categories.get(category, Place())

    def keep(self, category: str, place: Place) -> None:
        position = self._load()
        position.categories[category] = place
        self._save(position)

    @property
    def url(self) -> str:
        return self._config.url

    def take(self, records: list[OaiRecord], category: str, report: HarvestReport) -> None:
        """Apply what a page holds."""
        for start in range(0, len(records), SLICE):
            if start:
                crash_point("harvest.take:half-a-page")
            add, remove = _read(records[start : start + SLICE], category, report)
            unwanted = set(self._removed([record["id"] for record in add])) if add else set()
            wanted = tuple(record for record in add if record["id"] not in unwanted)
            gone = tuple(arxiv_id for arxiv_id in remove if self._holds(arxiv_id))
            report.unwanted += len(add) - len(wanted)
            if wanted or gone:
                counts = self._apply(CorpusUpdate(add=wanted, remove=gone))
                for name in COUNTS:
                    setattr(report, name, getattr(report, name) + counts.get(name, 0))
            self._progress(report.malformed + report.unwanted + sum(getattr(report, name) for name in COUNTS))


def harvester_of(api: SearchAPI, apply: Apply, database: AgentDatabase, **options: Any) -> Harvester:
    """The harvester of an opened corpus, as its configuration wants it; `options` are those of Harvester."""
    config = api.config

    def holds(arxiv_id: str) -> bool:
        engine = api.engine  # kept while its index is used, or it might be closed
        return any(engine.index.papers.find(form) for form in arxiv_id_forms(arxiv_id))

    return Harvester(
        config.corpus.harvest,
        apply,
        Remembered(database, POSITION),
        lock=config.data_dir / LOCK,
        holds=holds,
        removed=Journal(database).removed,
        **options,
    )


class _List:
    """One category, from its position to the present."""

    def __init__(self, harvester: Harvester, client: OaiClient, category: str, report: HarvestReport) -> None:
        self._harvester: Final = harvester
        self._client: Final = client
        self._category: Final = category
        self._report: Final = report
        self._spec: Final = set_of(category) or ""
        self._restarts = 0

    def run(self, since: str) -> None:
        place = self._harvester.place(self._category)
        listing = self._begin(place, since)
        tokens: set[str] = set()
        while True:
            page = self._page(listing)
            restart = self._restart(page, listing, chosen=bool(since))
            if restart:
                listing = restart
                tokens.clear()
                continue
            listing.day = listing.day or page.day.isoformat()
            self._report.pages += 1
            self._harvester.take(page.records, self._category, self._report)
            crash_point("harvest.run:applied")
            if not page.token:
                break
            if page.token in tokens:
                raise HarvestError(f"{self._harvester.url} gives the same page again and again")
            tokens.add(page.token)
            listing.token = page.token
            self._harvester.keep(self._category, Place(place.through, listing))
            crash_point("harvest.run:position-kept")
        # A list that began later than what was known leaves a hole, and the next one must begin before it.
        whole = not place.through or listing.since <= place.through
        self._harvester.keep(self._category, Place(listing.day if whole else place.through))
        crash_point("harvest.run:list-done")
        log.info("harvested %s up to %s", self._category, listing.day)

    def _begin(self, place: Place, since: str) -> Listing:
        under_way = place.listing
        if under_way and under_way.url == self._harvester.url and since in ("", under_way.since):
            return under_way
        if not since and under_way:
            since = under_way.since
        if not since and place.through:
            since = (dt.date.fromisoformat(place.through) - OVERLAP).isoformat()
        return Listing(self._harvester.url, since or self._first_day(), "", "")

    def _first_day(self) -> str:
        return _days_before(self._client.identify())

    def _page(self, listing: Listing) -> Page:
        if listing.token:
            return self._client.resume(listing.token)
        return self._client.list_records(FORMAT, self._spec, listing.since)

    def _restart(self, page: Page, listing: Listing, *, chosen: bool) -> Listing | None:
        """The list to begin instead, where this one cannot go on. Raises HarvestError for errors that stay."""
        url = self._harvester.url
        if page.day.isoformat() < listing.since and not chosen:
            log.warning("the harvest's position, %s, lies in the future of %s: begun anew", listing.since, url)
            return Listing(url, _days_before(page), "", "")
        if page.error is None or page.error.code == "noRecordsMatch":
            return None
        if page.error.code == "badResumptionToken" and listing.token and self._restarts < MAX_RESTARTS:
            self._restarts += 1
            log.info("the token of %s is no longer good; its list begins again at %s", self._category, listing.since)
            return Listing(url, listing.since, "", "")
        code, message = page.error
        raise HarvestError(
            f"{url} refuses {self._category}: {code}: {message}",
            hint="is it a category of arXiv, and the day one on which arXiv was there?"
            if code == "badArgument"
            else "see corpus.harvest.url",
        )


def _days_before(page: Page) -> str:
    return (page.day - dt.timedelta(days=FIRST_DAYS)).isoformat()


def _checked(categories: Sequence[str]) -> tuple[str, ...]:
    if not categories:
        raise ConfigError("names no category", path="corpus.harvest.categories", hint="or give --category cs.LG")
    for category in categories:
        if set_of(category) is None:
            raise ConfigError(
                f"{category!r} is no category of arXiv",
                path="corpus.harvest.categories",
                hint="such as cs.LG, hep-th, math.*",
            )
    return tuple(dict.fromkeys(map(category_query_term, categories)))


def _read(
    records: Iterable[OaiRecord], category: str, report: HarvestReport
) -> tuple[tuple[dict[str, Any], ...], list[str]]:
    """The records to add and the ids to remove; malformed ones are counted and named."""
    add: list[dict[str, Any]] = []
    remove: list[str] = []
    for record in records:
        try:
            if record.deleted:
                arxiv_id = arxiv_id_of_record(record)
                if not arxiv_id:
                    raise RecordError("identifier: expected oai:arXiv.org:..")  # noqa: TRY301  one place reports
                remove.append(arxiv_id)
            elif belongs(record, category):
                add.append(import_record(record))
        except RecordError as error:
            report.malformed += 1
            problem = f"{record.identifier[:80] or 'a record'}: {error}"
            log.warning("harvest: malformed: %s", problem)
            if len(report.problems) < KEPT_PROBLEMS:
                report.problems.append(problem)
    return tuple(add), remove
