"""`corpus harvest` as a command, and the harvests of the running agent."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conftest import WAIT_S, run_command, wait_until
from harvest_worker import CONTACT, SPACING_S, config_of
from oai_server import OaiServer, body, papers

from agent.corpus.harvest_timer import HarvestTimer, left_s, pause_s
from agent.corpus.updates import LiveUpdates
from agent.search import SearchAPI
from agent.store import agent_db
from agent.store.agent_db import AgentDatabase
from agent.store.journal import Journal


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def server() -> Iterator[OaiServer]:
    with OaiServer(papers(30), spacing_s=2.9) as running:
        yield running
    assert running.impolite == []


def harvest_environment(server: OaiServer, **more: str) -> dict[str, str]:
    prefix = "ARXPLORER__CORPUS__HARVEST__"
    return {
        f"{prefix}URL": server.url,
        f"{prefix}CONTACT": CONTACT,
        **{f"{prefix}{name}": value for name, value in more.items()},
    }


def test_the_command_makes_new_papers_searchable_and_reports_in_json(server: OaiServer, data_dir: Path) -> None:
    environment = harvest_environment(server)
    done = run_command("corpus", "harvest", "--category", "cs.LG", "--json", data_dir=data_dir, **environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["added"], report["malformed"], report["pages"], report["complete"]) == (30, 0, 1, True)
    found = run_command("search", "word17", "--mode", "semantic", "--json", data_dir=data_dir, **environment)
    assert json.loads(found.stdout)["results"][0]["arxiv_id"] == "2611.00017"


def test_the_command_fails_with_a_hint_where_nobody_answers_and_says_what_it_has(
    server: OaiServer, data_dir: Path
) -> None:
    server.trouble.extend([body(b"", 404)])
    done = run_command(
        "corpus",
        "harvest",
        "--category",
        "cs.LG",
        "--since",
        "2026-11-01",
        "--json",
        data_dir=data_dir,
        **harvest_environment(server),
    )
    assert done.returncode == 1
    assert b"Hint:" in done.stderr
    assert "404" in json.loads(done.stdout)["error"]
    done = run_command("corpus", "harvest", data_dir=data_dir, **harvest_environment(server))
    assert (done.returncode, b"corpus.harvest.categories" in done.stderr) == (1, True)


def test_the_running_agent_harvests_by_itself_and_answers_from_what_came(
    server: OaiServer, start_agent, sample_data_dir, broker, client
) -> None:
    agent = start_agent(
        sample_data_dir, broker.port, **harvest_environment(server, CATEGORIES="[cs.LG]", INTERVAL_S="1")
    )

    def found() -> bool:
        answer = client.ask({"query": "2611.00017"})
        return bool(answer["results"]) and answer["results"][0]["arxiv_id"] == "2611.00017"

    wait_until(found)
    wait_until(lambda: len(server.requests) >= 3)  # the next one, an interval later
    started = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - started < 15


def problems_after_an_attempt(url: str, data_dir: Path) -> list[str]:
    api = SearchAPI(config_of(url, data_dir, interval_s="1")).open(owner=True, model=False)
    with closing(AgentDatabase(data_dir / agent_db.NAME)) as database, api:
        attempted = threading.Event()
        timer = HarvestTimer(
            api, LiveUpdates(api, Journal(database)).apply, database, done=attempted.set, spacing_s=SPACING_S
        )
        timer.start()
        assert attempted.wait(WAIT_S)
        problems = timer.problems
        assert timer.stop(WAIT_S), "it stops at once, whatever it waits for"
    return problems


def test_the_timer_tells_what_is_wrong_and_stops_at_once(data_dir: Path) -> None:
    with OaiServer([]) as server:
        server.trouble.extend([body(b"", 404)] * 3)
        problems = problems_after_an_attempt(server.url, data_dir)
    assert len(problems) == 1
    assert "answers 404" in problems[0]


def test_a_device_that_is_offline_has_no_problem_for_that(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with OaiServer([]) as gone:
        pass
    assert problems_after_an_attempt(gone.url, data_dir) == []
    assert "cannot be reached" in caplog.text


@pytest.mark.parametrize(
    ("failures", "chance", "expected"),
    [(0, 0.0, 0.0), (0, 1.0, 600.0), (1, 0.0, 300.0), (3, 0.0, 1200.0), (1000, 0.5, 86_700.0)],
)
def test_after_failures_the_timer_waits_longer_and_longer_up_to_the_interval(failures, chance, expected) -> None:
    assert pause_s(86_400.0, failures, chance) == expected


@pytest.mark.parametrize(
    ("ago_s", "here_s", "expected"),
    [
        (None, 0.0, 0.0),
        (3600.0, 0.0, 82_800.0),
        (1e9, 0.0, 0.0),
        (-1e9, 0.0, 86_400.0),
        (-1e9, 86_000.0, 400.0),
        (90_000.0, 5.0, 0.0),
    ],
)
def test_a_clock_that_was_set_holds_a_harvest_back_for_an_interval_at_most(ago_s, here_s, expected) -> None:
    assert left_s(86_400.0, ago_s, here_s) == expected
