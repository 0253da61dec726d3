"""Damage under a running agent, or found at its start: said, healed from what is whole, and answered all the while."""

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import AgentProcess, Client, run_command, wait_until
from test_crash_points import POINTS

from agent.crash_points import VARIABLE
from agent.errors import CorpusError
from agent.local_cloud.mosquitto import Mosquitto
from agent.store.generations import IN_USE
from agent.store.healing import KEPT_DAMAGED, heal, sweep
from agent.store.inspection import salvage
from agent.store.papers import PaperStore

ANSWER = "1603.04246"
QUESTION = {"query": "how tightly can equal spheres be packed"}
PAPERS = 149


def overwrite(path: Path, at: int, content: bytes) -> None:
    """In place, as a card does it."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def head(path: Path) -> None:
    overwrite(path, 0, random.Random(1).randbytes(100))


def pages(path: Path) -> None:
    overwrite(path, 60_000, random.Random(2).randbytes(16_000))


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zeroes(path: Path) -> None:
    overwrite(path, 0, bytes(path.stat().st_size))


def nothing(path: Path) -> None:
    os.truncate(path, 0)


def gone(path: Path) -> None:
    path.unlink()


def row(path: Path) -> None:
    """Of the paper that QUESTION asks for, which SQLite does not notice."""
    overwrite(path, path.read_bytes().index(b"sphere packing problem"), b"sqhere")


Damage = Callable[[Path], None]


class Watched:
    """An agent that reports every second, and what it reports."""

    def __init__(self, agent: AgentProcess) -> None:
        self.agent = agent
        self.client = Client(agent.port)
        self._reports = Client(agent.port)
        self._reports.subscribe("arxplorer/status/test-agent")
        self.papers = agent.data_dir / "current" / "papers.db"

    def report(self) -> dict[str, Any]:
        """The next report."""
        read: dict[str, Any] = json.loads(self._reports.next(60).payload)
        return read

    def status(self, *words: str) -> dict[str, Any]:
        """The first report whose problems hold these words; online where there are none."""

        def found() -> dict[str, Any] | None:
            report = self.report()
            said = "; ".join(report["details"].get("problems", ["offline"]))
            self.said = said  # for whoever reads of a test that failed
            fits = all(word in said for word in words) if words else report["status"] == "online"
            return report if fits else None

        report: dict[str, Any] = wait_until(found, 60)
        return report

    def first(self, request: dict[str, Any] = QUESTION) -> str | None:
        results = self.client.ask(request)["results"]
        return results[0]["arxiv_id"] if results else None

    def close(self) -> None:
        self.client.close()
        self._reports.close()


@pytest.fixture
def watch(start_agent: Any, broker: Mosquitto) -> Iterator[Callable[..., Watched]]:
    watched: list[Watched] = []

    def start(data_dir: Path, **environment: str) -> Watched:
        agent = start_agent(data_dir, broker.port, ARXPLORER__HEALTH__HEARTBEAT_S="1", **environment)
        watched.append(Watched(agent))
        return watched[-1]

    yield start
    for one in watched:
        one.close()


def generations(data_dir: Path) -> list[str]:
    return sorted(path.name for path in (data_dir / "generations").iterdir())


def is_whole(data_dir: Path) -> bool:
    return run_command("corpus", "verify", data_dir=data_dir).returncode == 0


# -- papers.db --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("damage", "saved"), [(head, PAPERS), (row, PAPERS - 1), (pages, 117), (half, 76)])
def test_papers_damaged_before_the_start_are_healed_from_what_is_whole(
    watch, sample_data_dir: Path, damage: Damage, saved: int
) -> None:
    damage(sample_data_dir / "current" / "papers.db")
    (sample_data_dir / "current" / IN_USE).touch()  # nobody needs to ask for what is damaged after a crash
    watched = watch(sample_data_dir)
    report = watched.status(
        "papers.db was damaged", f"{saved} papers saved, {PAPERS - saved} lost", "papers.db.damaged-1"
    )
    assert report["status"] == "degraded"
    wait_until(lambda: watched.report()["details"]["corpus"]["papers"] == saved)
    assert watched.client.ask(QUESTION)["results"]
    assert watched.agent.stop() == 0
    assert (generations(sample_data_dir), is_whole(sample_data_dir)) == (["0002"], True)
    log = watched.agent.log.read_text()
    assert log.count("papers.db is damaged and is being healed") == 1
    assert "Traceback" not in log
    restarted = watch(sample_data_dir)
    assert restarted.status()["details"]["corpus"]["papers"] == saved


@pytest.mark.parametrize("damage", [zeroes, nothing, gone])
def test_of_papers_that_cannot_be_read_at_all_an_agent_says_what_to_do_and_takes_new_ones(
    watch, sample_data_dir: Path, damage: Damage
) -> None:
    damage(sample_data_dir / "current" / "papers.db")
    watched = watch(sample_data_dir)
    watched.status("nothing of it could be read: import the papers again")
    assert watched.client.ask(QUESTION)["error"]["code"] == "not_ready"
    assert run_command("corpus", "import", "--sample", data_dir=sample_data_dir).returncode == 0
    watched.status()
    wait_until(lambda: watched.first() == ANSWER)
    assert "Traceback" not in watched.agent.log.read_text()


@pytest.mark.parametrize(("damage", "saved"), [(row, PAPERS - 1), (pages, 117), (gone, PAPERS)])
def test_papers_damaged_under_a_running_agent_are_healed_while_it_answers(
    watch, sample_data_dir: Path, damage: Damage, saved: int
) -> None:
    watched = watch(sample_data_dir)
    assert watched.first() == ANSWER
    process = watched.agent.process.pid
    damage(watched.papers)
    answers: list[dict[str, Any]] = []

    def healed() -> bool:
        answers.append(watched.client.ask({**QUESTION, "filters": {"max_results": 100}}))
        return generations(sample_data_dir) == ["0002"]

    wait_until(healed)
    assert {answer["error"]["code"] for answer in answers if "error" in answer} <= {"not_ready"}
    assert all(answer["results"] for answer in answers if "error" not in answer)
    watched.status("papers.db was damaged", f"{saved} papers saved, {PAPERS - saved} lost")
    assert (watched.first() == ANSWER) == (damage is not row), "a damaged paper is never an answer"
    assert watched.agent.process.pid == process
    assert watched.agent.stop() == 0
    assert is_whole(sample_data_dir)
    assert "Traceback" not in watched.agent.log.read_text()


def test_what_was_lost_is_said_until_papers_come_in_again(watch, sample_data_dir: Path) -> None:
    watched = watch(sample_data_dir)
    row(watched.papers)
    assert watched.first() != ANSWER
    watched.status("148 papers saved, 1 lost")
    assert run_command("corpus", "import", "--sample", data_dir=sample_data_dir).returncode == 0
    watched.status()
    wait_until(lambda: watched.first() == ANSWER)


def test_after_a_crash_damage_is_found_that_nobody_asks_for(watch, sample_data_dir: Path) -> None:
    watched = watch(sample_data_dir)
    watched.agent.stop(signal.SIGKILL)
    row(watched.papers)
    watched.agent.start()
    watched.status("148 papers saved, 1 lost")
    assert watched.agent.stop() == 0
    assert not (watched.papers.parent / "papers.unchecked").exists()


SLOW = """
import time
from pathlib import Path
from agent.store import {module}
before = {module}.{name}
def slow(*arguments):
    Path("{marker}").touch()
    while Path("{marker}").exists():
        time.sleep(0.02)
    return before(*arguments)
{module}.{name} = slow
"""


def test_a_change_is_refused_while_papers_are_being_healed(watch, sample_data_dir: Path, tmp_path: Path) -> None:
    marker = tmp_path / "at-work"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLOW.format(module="inspection", name="_copy", marker=marker))
    head(sample_data_dir / "current" / "papers.db")
    watched = watch(sample_data_dir, PYTHONPATH=str(tmp_path / "site"))
    wait_until(marker.exists)
    update = {"add": [{"arxiv_id": "2401.00001", "title": "x", "abstract": "y"}]}
    refused = watched.client.ask(update, "arxplorer/corpus/updates")["error"]
    assert (refused["code"], "damaged" in refused["message"]) == ("not_ready", True)
    assert watched.client.ask(QUESTION)["error"]["code"] == "not_ready"


@pytest.mark.parametrize("point", [point for point, scenarios in POINTS.items() if "heal" in scenarios])
def test_a_healing_that_is_killed_is_finished_or_begun_anew_at_the_next_start(
    watch, start_agent, broker: Mosquitto, sample_data_dir: Path, point: str
) -> None:
    head(sample_data_dir / "current" / "papers.db")
    killed = start_agent(sample_data_dir, broker.port, wait=False, **{VARIABLE: point})
    assert killed.process.wait(60) == -signal.SIGKILL
    watched = watch(sample_data_dir)
    wait_until(lambda: watched.first() == ANSWER)
    assert watched.agent.stop() == 0
    assert len(generations(sample_data_dir)) == 1
    assert is_whole(sample_data_dir)
    assert (sample_data_dir / "current" / "papers.db.damaged-1").exists()


def test_damaged_files_are_kept_but_never_many(sample_data_dir: Path) -> None:
    for number in range(KEPT_DAMAGED + 3):
        papers = (sample_data_dir / "current").resolve() / "papers.db"
        overwrite(papers, 0, bytes([number]) * 100)
        healed = heal(sample_data_dir, papers)
        assert (healed.saved.papers, healed.saved.vectors, healed.saved.lost) == (PAPERS, PAPERS, 0)
        sweep(sample_data_dir)
        assert healed.kept.read_bytes()[:100] == bytes([number]) * 100
    kept = [path.name for path in (sample_data_dir / "current").glob("papers.db.damaged-*")]
    assert sorted(kept) == [f"papers.db.damaged-{number}" for number in (KEPT_DAMAGED + 2, KEPT_DAMAGED + 3)]
    assert len(generations(sample_data_dir)) == 1


def test_a_writer_of_another_process_finds_out_that_its_file_was_replaced(sample_data_dir: Path) -> None:
    with closing(PaperStore((sample_data_dir / "current").resolve() / "papers.db")) as store:
        row(store.path)
        heal(sample_data_dir, store.path)
        sweep(sample_data_dir)
        with pytest.raises(CorpusError, match="was replaced by another one"):
            store.remove([ANSWER])


@pytest.mark.parametrize("lost_bytes", [100, 4_096])
def test_a_lost_head_costs_no_paper(sample_data_dir: Path, tmp_path: Path, lost_bytes: int) -> None:
    papers = sample_data_dir / "current" / "papers.db"
    overwrite(papers, 0, bytes(lost_bytes))
    done = salvage(papers, tmp_path / "new.db")
    assert (done.papers, done.vectors, done.lost, done.missing) == (PAPERS, PAPERS, 0, 0)


# -- indexes ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    size = path.stat().st_size
    overwrite(path, size // 3, bytes(byte ^ 0xFF for byte in path.read_bytes()[size // 3 : size // 3 + 64]))


# Segments of vectors, which so few papers make none of, are damaged in test_wholeness.py.
INDEX_FILES = ["keywords/*.idx", "keywords/*.term", "keywords/*.fast", "keywords/meta.json"]


@pytest.mark.parametrize("damage", [flip, half, gone], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("pattern", INDEX_FILES)
def test_an_index_damaged_before_the_start_is_made_again(watch, sample_data_dir, pattern: str, damage: Damage) -> None:
    damage(next((sample_data_dir / "current").glob(pattern)))
    (sample_data_dir / "current" / IN_USE).touch()
    watched = watch(sample_data_dir)
    wait_until(lambda: watched.first({**QUESTION, "filters": {"mode": "keyword"}}) == ANSWER)
    assert watched.status()["details"]["corpus"]["papers"] == PAPERS
    assert watched.agent.stop() == 0
    assert is_whole(sample_data_dir)


def blank(path: Path) -> None:
    """All but tantivy's footer, so that whatever is asked for meets it."""
    overwrite(path, 0, bytes(path.stat().st_size - 200))


@pytest.mark.parametrize("damage", [blank, half, gone], ids=lambda damage: damage.__name__)
def test_an_index_damaged_under_a_running_agent_is_made_again(watch, sample_data_dir: Path, damage: Damage) -> None:
    watched = watch(sample_data_dir)
    assert watched.first() == ANSWER
    for path in (sample_data_dir / "current" / "keywords").glob("*.idx"):
        damage(path)

    def answers() -> bool:
        request = json.dumps({**QUESTION, "filters": {"mode": "keyword"}}).encode()
        watched.client.publish("arxplorer/search/requests", request, response_topic=watched.client.answers)
        wait_until(answered)
        results = json.loads(watched.client.next().payload)["results"]
        return bool(results) and results[0]["arxiv_id"] == ANSWER

    def answered() -> bool:
        if watched.agent.process.poll() is not None:
            watched.agent.start()  # a file that shrinks under a mapping kills the process; systemd starts it again
        return not watched.client.received.empty()

    wait_until(answers)
    watched.status()
    assert watched.agent.stop() == 0
    watched.agent.start()  # what no question met under the running agent is found now
    wait_until(answers)
    assert watched.agent.stop() == 0
    assert is_whole(sample_data_dir)
