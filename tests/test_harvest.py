"""`corpus harvest` over real HTTP into a real corpus: all of it once, from where it was, whatever happens on the way."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_command
from crash_cases import cases, killed_at
from harvest_worker import CONTACT, harvest
from oai_server import OaiPaper, OaiServer, body, busy, cut, papers, shortened

from agent.config import load_config
from agent.corpus.harvest import FIRST_DAYS, LOCK, POSITION
from agent.domain import Paper
from agent.errors import ConfigError, HarvestError
from agent.search import SearchAPI
from agent.store import agent_db
from agent.store.agent_db import AgentDatabase
from agent.store.generations import FolderLock
from agent.store.remembered import Remembered

WORKER = str(ROOT / "tests" / "harvest_worker.py")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def server() -> Iterator[OaiServer]:
    with OaiServer(papers(30), page_size=10) as running:
        yield running
    assert running.impolite == []


def stored(data_dir: Path) -> list[Paper]:
    with SearchAPI(load_config(environment={}, data_dir=data_dir)) as api:
        return [paper for _, paper in api.open(owner=True, model=False).engine.index.papers.papers()]


def ids(data_dir: Path) -> list[str]:
    return sorted(paper.arxiv_id for paper in stored(data_dir))


def position(data_dir: Path) -> dict[str, Any]:
    with closing(AgentDatabase(data_dir / agent_db.NAME)) as database:
        return Remembered(database, POSITION).load()["categories"]


def listings(server: OaiServer) -> list[str]:
    """Of each request for records the day it begins with, or `token`."""
    return [one.get("from", "token") for one in server.requests if one["verb"] == "ListRecords"]


# -- all of it once ----------------------------------------------------------------------------------------------------


def test_a_thousand_records_through_two_503_and_a_cut_connection_are_all_there_once(data_dir: Path) -> None:
    with OaiServer(papers(1000), page_size=130, spacing_s=0.05) as server:
        server.trouble.extend([None, busy("1"), None, cut, None, busy("0"), None])
        report = harvest(server.url, data_dir, spacing_s=0.05)
    assert (report.added, report.updated, report.unchanged, report.pages, report.complete) == (1000, 0, 0, 8, True)
    assert ids(data_dir) == [f"2611.{number:05d}" for number in range(1, 1001)]
    assert report.waited_s >= 1.0, "as the server had asked for"
    assert server.impolite == []
    assert {agent.partition(" ")[2] for agent in server.agents} == {f"({CONTACT})"}


def test_the_next_harvest_fetches_only_what_is_new_and_a_day_before(server: OaiServer, data_dir: Path) -> None:
    harvest(server.url, data_dir)
    server.records += papers(5, first=31, datestamp="2026-11-27")
    server.records[0] = OaiPaper(
        "2611.00001", "2026-11-27", title="A second version", versions=("Mon, 2 Apr 2007 19:18:42 GMT",) * 2
    )
    server.today, server.delivered = "2026-11-28", 0
    report = harvest(server.url, data_dir)
    assert (report.added, report.updated, report.unchanged) == (5, 1, 0)
    assert server.delivered == 6
    assert listings(server) == ["2026-11-19", "token", "token", "2026-11-25"]
    assert position(data_dir) == {"cs.LG": {"through": "2026-11-28", "listing": None}}


def test_nothing_new_is_no_error_and_moves_the_position(server: OaiServer, data_dir: Path) -> None:
    server.records.clear()
    report = harvest(server.url, data_dir)
    assert (report.added, report.complete) == (0, True)
    assert position(data_dir)["cs.LG"]["through"] == "2026-11-26"


def test_harvested_again_the_same_days_change_nothing(server: OaiServer, data_dir: Path) -> None:
    harvest(server.url, data_dir)
    before = stored(data_dir)
    report = harvest(server.url, data_dir, since="2026-11-01")
    assert (report.added, report.updated, report.unchanged) == (0, 0, 30)
    assert stored(data_dir) == before


def test_a_paper_in_two_categories_is_there_once(server: OaiServer, data_dir: Path) -> None:
    report = harvest(server.url, data_dir, categories="[cs.LG, stat.*]")
    assert (report.added, report.unchanged) == (30, 30)
    assert set(position(data_dir)) == {"cs.LG", "stat"}


def test_of_a_set_that_is_broader_only_the_category_is_kept(data_dir: Path) -> None:
    others = [
        OaiPaper(f"2611.9{number:04d}", "2026-11-20", categories="cs.CL", sets=("cs:cs:CL",)) for number in range(5)
    ]
    coarse = OaiServer(papers(4) + others)
    coarse.records = [OaiPaper(**{**vars(one), "sets": ("cs",)}) for one in coarse.records]
    listed = coarse.listed
    coarse.listed = lambda query, skip: listed({**query, "set": "cs"}, skip)  # type: ignore[method-assign]
    with coarse:
        assert harvest(coarse.url, data_dir).added == 4


def test_deleted_records_remove_the_papers_that_are_there(server: OaiServer, data_dir: Path) -> None:
    harvest(server.url, data_dir)
    server.today = "2026-11-27"
    gone = [OaiPaper(name, "2026-11-27", deleted=True) for name in ("2611.00003", "2611.00004", "hep-th/9901001")]
    server.records = [one for one in server.records if one.arxiv_id not in ("2611.00003", "2611.00004")] + gone
    report = harvest(server.url, data_dir)
    assert (report.removed, report.malformed) == (2, 0)
    assert len(ids(data_dir)) == 28
    assert not {"2611.00003", "2611.00004"} & set(ids(data_dir))


def test_papers_that_were_removed_here_do_not_come_back(server: OaiServer, data_dir: Path) -> None:
    harvest(server.url, data_dir)
    here = {"2611.00002", "2611.00025"}
    assert run_command("corpus", "remove", *here, data_dir=data_dir).returncode == 0
    report = harvest(server.url, data_dir, since="2026-11-01")
    assert (report.added, report.unchanged, report.unwanted) == (0, 28, 2)
    assert not here & set(ids(data_dir))
    assert (
        run_command("corpus", "add", '{"arxiv_id": "2611.00002", "title": "Again"}', data_dir=data_dir).returncode == 0
    )
    assert harvest(server.url, data_dir, since="2026-11-01").unwanted == 1, "a person has changed their mind"


def test_malformed_records_are_counted_and_named_and_the_others_are_taken(server: OaiServer, data_dir: Path) -> None:
    server.records[3].title = "  "
    server.records[17].datestamp = "2026-11-99"
    report = harvest(server.url, data_dir)
    assert (report.added, report.malformed, report.complete) == (28, 2, True)
    assert sorted(problem.partition(": ")[0] for problem in report.problems) == [
        "oai:arXiv.org:2611.00004",
        "oai:arXiv.org:2611.00018",
    ]


# -- from where it was -------------------------------------------------------------------------------------------------


def test_a_harvest_that_was_cut_off_goes_on_with_its_token(server: OaiServer, data_dir: Path) -> None:
    server.trouble.extend([None, body(b"", 404)])
    with pytest.raises(HarvestError):
        harvest(server.url, data_dir)
    assert len(ids(data_dir)) == 10
    report = harvest(server.url, data_dir)
    assert (report.added, report.unchanged) == (20, 0)
    assert listings(server) == ["2026-11-19", "token", "token", "token"]


def test_a_stopped_harvest_ends_soon_and_goes_on_with_its_token(server: OaiServer, data_dir: Path) -> None:
    stop = threading.Event()
    server.trouble.extend([None, lambda handler: (stop.set(), busy("300")(handler))])
    report = harvest(server.url, data_dir, stop=stop)
    assert (report.added, report.complete) == (10, False)
    assert harvest(server.url, data_dir).added == 20


def test_a_token_that_has_expired_begins_the_list_again(server: OaiServer, data_dir: Path) -> None:
    def expire(handler) -> None:
        server.epoch += 1
        handler.send(handler.page())

    server.trouble.extend([None, expire])
    report = harvest(server.url, data_dir)
    assert (report.added, report.unchanged, report.complete) == (30, 0 + 10, True)
    assert listings(server) == ["2026-11-19", "token", "2026-11-19", "token", "token"]
    assert len(ids(data_dir)) == 30


def test_tokens_that_are_always_refused_are_an_error_and_not_a_loop(server: OaiServer, data_dir: Path) -> None:
    answer = server.answer

    def forgetful(parameters: dict[str, str]) -> bytes:
        server.epoch += 1
        return answer(parameters)

    server.answer = forgetful  # type: ignore[method-assign]
    with pytest.raises(HarvestError, match="badResumptionToken"):
        harvest(server.url, data_dir)


def test_a_server_that_gives_the_same_token_for_ever_is_left(server: OaiServer, data_dir: Path) -> None:
    answer = server.answer
    server.answer = lambda parameters: answer(
        {**parameters, **({"resumptionToken": first} if "resumptionToken" in parameters else {})}
    )  # type: ignore[method-assign]
    page = answer(
        {"verb": "ListRecords", "metadataPrefix": "arXivRaw", "set": "cs:cs:LG", "from": "2026-11-19"}
    ).decode()
    first = page.partition("23:59:59Z'>")[2].partition("<")[0]
    with pytest.raises(HarvestError, match="again and again"):
        harvest(server.url, data_dir)


def test_the_dates_are_the_repositorys_own_whatever_the_clock_here_says(server: OaiServer, data_dir: Path) -> None:
    server.today = "2031-03-05"
    harvest(server.url, data_dir)
    assert listings(server)[0] == "2031-02-26"
    assert FIRST_DAYS == 7
    assert position(data_dir)["cs.LG"]["through"] == "2031-03-05"


def test_a_position_in_the_future_of_the_repository_is_given_up(server: OaiServer, data_dir: Path) -> None:
    server.today = "2099-01-01"  # for once
    harvest(server.url, data_dir)
    server.today = "2026-11-26"
    assert harvest(server.url, data_dir).added == 30
    assert position(data_dir)["cs.LG"]["through"] == "2026-11-26"


def test_a_harvest_since_a_later_day_leaves_no_hole_behind(server: OaiServer, data_dir: Path) -> None:
    later, server.records = server.records, []
    server.today = "2026-11-10"
    harvest(server.url, data_dir)
    server.records, server.today = later, "2026-11-26"
    assert harvest(server.url, data_dir, since="2026-11-25").added == 0
    assert position(data_dir)["cs.LG"]["through"] == "2026-11-10"
    assert harvest(server.url, data_dir).added == 30


def test_a_position_that_cannot_be_read_counts_as_none(server: OaiServer, data_dir: Path) -> None:
    with closing(AgentDatabase(data_dir / agent_db.NAME)) as database:
        Remembered(database, POSITION).save({"categories": {"cs.LG": {"through": "soon"}}})
    assert harvest(server.url, data_dir).added == 30


@pytest.mark.parametrize(("scenario", "point"), cases("harvest"))
def test_killed_at_any_step_the_next_harvest_completes_it_and_nothing_is_there_twice(
    scenario: str, point: str, data_dir: Path
) -> None:
    with OaiServer(papers(1100), page_size=600) as server:
        killed_at(point, WORKER, server.url, str(data_dir))
        before = ids(data_dir)
        assert len(before) == len(set(before))
        assert harvest(server.url, data_dir).complete
        assert ids(data_dir) == [f"2611.{number:05d}" for number in range(1, 1101)]
        assert position(data_dir) == {"cs.LG": {"through": "2026-11-26", "listing": None}}
        if point.startswith("harvest.run:position-kept"):
            assert listings(server) == ["2026-11-19", "token"], "the first page was not asked for again"


def test_killed_by_surprise_in_mid_harvest_it_goes_on(data_dir: Path) -> None:
    with OaiServer(papers(1000), page_size=20, spacing_s=0.002) as server:
        process = subprocess.Popen([sys.executable, WORKER, server.url, str(data_dir)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(7):
            process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        asked = len(server.requests)
        report = harvest(server.url, data_dir)
        assert report.complete
        assert ids(data_dir) == [f"2611.{number:05d}" for number in range(1, 1001)]
        assert listings(server)[asked - 1] == "token"
        assert server.impolite == []


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("categories", "words"),
    [("[]", "categories"), ("[cs.LG, quantum]", "'quantum' is no category"), ("['cs.LG&set=x']", "no category")],
)
def test_categories_that_arxiv_has_not_are_refused_before_anything_is_sent(
    categories: str, words: str, server: OaiServer, data_dir: Path
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        harvest(server.url, data_dir, categories=categories)
    assert caught.value.path == "corpus.harvest.categories"
    assert server.requests == []


def test_an_error_of_the_interface_is_told_by_its_name(server: OaiServer, data_dir: Path) -> None:
    with pytest.raises(HarvestError, match="badArgument: Invalid set value") as caught:
        harvest(server.url, data_dir, categories="[cs.XX]")
    assert "category" in (caught.value.hint or "")


def test_what_is_no_oai_pmh_interface_is_said_to_be_none(server: OaiServer, data_dir: Path) -> None:
    server.answer = lambda _: b"<html/>"  # type: ignore[method-assign]
    with pytest.raises(HarvestError, match="no answer of an OAI-PMH interface"):
        harvest(server.url, data_dir)


def test_two_harvests_do_not_go_on_at_a_time(server: OaiServer, data_dir: Path) -> None:
    with FolderLock(data_dir / LOCK) as lock:
        lock.acquire()
        with pytest.raises(HarvestError, match="another process"):
            harvest(server.url, data_dir)
    assert server.requests == []


def test_what_came_before_a_damaged_page_stays(server: OaiServer, data_dir: Path) -> None:
    server.trouble.extend([None, *[shortened] * 10])
    with pytest.raises(HarvestError, match="damaged"):
        harvest(server.url, data_dir)
    assert len(ids(data_dir)) == 10
    assert position(data_dir)["cs.LG"]["listing"]["token"]
