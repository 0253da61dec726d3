"""The journal of this device's own changes, and the updates that are written into it."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from agent.corpus.importer import import_papers
from agent.corpus.updates import apply_update
from agent.domain import CorpusUpdate, Paper
from agent.errors import NotReadyError, RequestError, ShortageError
from agent.search import SearchAPI
from agent.store.agent_db import NAME
from agent.store.journal import Journal, OwnChange, journal_of

ID = "2401.00001"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return journal_of(tmp_path)


def paper(version: int = 1, title: str = "A title", arxiv_id: str = ID) -> Paper:
    return Paper(arxiv_id, title, version=version)


def said(journal: Journal) -> list[OwnChange]:
    return [entry.change for entry in journal.since(0, 1_000)]


def test_of_each_paper_the_newest_word_is_kept_and_it_takes_the_next_number(journal: Journal) -> None:
    assert said(journal) == []
    journal.record([OwnChange(ID, paper()), OwnChange("2401.00002", None)])
    journal.record([OwnChange(ID, paper(2))])
    assert said(journal) == [OwnChange("2401.00002", None), OwnChange(ID, paper(2))]
    assert [entry.seq for entry in journal.since(2, 10)] == [3]
    journal.record([OwnChange(ID, None)])
    assert said(journal) == [OwnChange("2401.00002", None), OwnChange(ID, None)]
    journal.record([OwnChange(ID, paper())])
    assert said(journal)[-1] == OwnChange(ID, paper()), "what was removed may come back"


def test_an_older_version_and_the_same_again_are_no_news(journal: Journal) -> None:
    journal.record([OwnChange(ID, paper(3))])
    journal.record([OwnChange(ID, paper(2)), OwnChange(ID, paper(3))])
    assert [entry.seq for entry in journal.since(0, 9)] == [1]
    assert said(journal) == [OwnChange(ID, paper(3))]
    journal.record([OwnChange("2401.00002", None)])
    journal.record([OwnChange("2401.00002", None)])
    assert [entry.seq for entry in journal.since(0, 9)] == [1, 2]


def test_a_vector_is_kept_with_its_text_and_for_its_model(journal: Journal) -> None:
    vector = np.arange(1, 5, dtype=np.int8)
    journal.record([OwnChange(ID, paper(), "m", vector)])
    journal.record([OwnChange(ID, paper(2))])
    (kept,) = said(journal)
    assert (kept.model, kept.vector.tolist(), kept.paper.version) == ("m", vector.tolist(), 2)
    journal.record([OwnChange(ID, paper(3, "Another title"))])
    assert said(journal)[0].vector is None


def test_what_was_not_done_after_all_is_taken_back_and_what_came_since_stands(journal: Journal) -> None:
    journal.record([OwnChange(ID, paper())])
    recorded = journal.record([OwnChange(ID, paper(2)), OwnChange("2401.00002", None)])
    journal.take_back(recorded)
    assert said(journal) == [OwnChange(ID, paper())]
    recorded = journal.record([OwnChange(ID, paper(2))])
    journal.record([OwnChange(ID, paper(3))])
    journal.take_back(recorded)
    assert said(journal) == [OwnChange(ID, paper(3))]


def test_what_is_taken_back_is_told_again_to_who_has_read_on_meanwhile(journal: Journal) -> None:
    journal.record([OwnChange(ID, paper())])
    refused = journal.record([OwnChange(ID, paper(2))])
    journal.record([OwnChange("2401.00002", None)])
    read_up_to = journal.since(0, 9)[-1].seq
    journal.take_back(refused)
    assert [entry.change for entry in journal.since(read_up_to, 9)] == [OwnChange(ID, paper())]


@pytest.mark.parametrize("column", ["arxiv_id", "paper", "model", "vector", "crc"])
def test_a_damaged_row_is_passed_over(journal: Journal, tmp_path: Path, column: str, caplog) -> None:
    names = [f"2401.{number:05d}" for number in range(5)]
    journal.record([OwnChange(name, paper(arxiv_id=name), "m", np.ones(3, np.int8)) for name in names])
    with closing(sqlite3.connect(tmp_path / NAME)) as db, db:
        db.execute(f"UPDATE journal SET {column} = 'x' || seq WHERE seq IN (1, 2)")
    assert [entry.change.arxiv_id for entry in journal.since(0, 2)] == names[2:4]
    assert [entry.change.arxiv_id for entry in journal.since(0, 9)] == names[2:]
    assert "passed over" in caplog.text


@pytest.fixture
def api(config):
    with SearchAPI(config) as opened:
        yield opened.open(owner=True, model=False)


def apply(api: SearchAPI, journal: Journal, **update) -> dict[str, int]:
    index = api.engine.index
    return apply_update(index.papers, CorpusUpdate(**update), index.model, index.dimensions, journal)


RECORD = {"arxiv_id": ID, "title": "A title", "abstract": "x"}


def test_an_update_is_in_the_journal_and_in_papers_or_in_neither(api, journal: Journal) -> None:
    with pytest.raises(RequestError):
        apply(api, journal, add=(RECORD, {"arxiv_id": "x"}))
    assert said(journal) == []
    with pytest.raises(ShortageError):
        apply(api, journal_of(Path("/proc/nowhere")), add=(RECORD,))
    assert api.engine.index.papers.count() == 0


def test_papers_that_refuse_leave_nothing_in_the_journal(api, journal: Journal) -> None:
    apply(api, journal, add=(RECORD,))
    papers = api.engine.index.papers
    papers.db.execute("PRAGMA max_page_count = 1")  # a full disk, as SQLite tells of it
    before = said(journal)
    with pytest.raises(ShortageError):
        apply(api, journal, add=({**RECORD, "version": 2, "abstract": "much " * 100_000},), remove=("2401.00002",))
    assert said(journal) == before
    papers.db.execute("PRAGMA max_page_count = 1000000")
    papers.hold("held")
    with pytest.raises(NotReadyError):
        apply(api, journal, remove=(ID,))
    assert said(journal) == before


def test_an_import_is_not_journalled_but_ends_what_was_said_of_its_papers(api, journal: Journal, tmp_path) -> None:
    apply(api, journal, add=({**RECORD, "version": 1}, {**RECORD, "arxiv_id": "2401.00002"}), remove=("2401.00003",))
    rows = [{**RECORD, "arxiv_id": f"2401.{number:05d}", "version": 2} for number in (1, 3, 4)]
    (tmp_path / "rows").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_papers(str(tmp_path / "rows"), api.engine.index, api.model_name, journal=journal)
    assert {change.arxiv_id: change.paper and change.paper.version for change in said(journal)} == {
        ID: 2,
        "2401.00002": 0,
        "2401.00003": 2,
    }
