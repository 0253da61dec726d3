"""agent.db: what must not be forgotten, and must not stop the agent when it was."""

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.errors import SettingsError
from agent.store.accepted import Accepted, AcceptedSettings
from agent.store.agent_db import MAX_PUT_ASIDE, AgentDatabase

DOCUMENT = {"search": {"max_results": 5, "default_mode": "keyword"}, "later": ["ü", 1.5, True]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


@contextmanager
def opened(path: Path) -> Iterator[AcceptedSettings]:
    """As one run of the agent has them."""
    database = AgentDatabase(path)
    yield AcceptedSettings(database)
    database.close()


def test_what_was_saved_last_is_there_after_a_restart(path: Path) -> None:
    with opened(path) as accepted:
        assert accepted.load() is None
        assert not path.exists(), "asking makes no file"
        accepted.save({"search": {"max_results": 3}}, 1)
        accepted.save(DOCUMENT, 7)
        assert accepted.load() == Accepted(DOCUMENT, 7)
    with opened(path) as accepted:
        assert accepted.load() == Accepted(DOCUMENT, 7)


def _random(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped(path: Path) -> None:
    """Another number than what was accepted, in a file that SQLite finds in order."""
    content = path.read_bytes()
    assert content.count(b'"max_results":5') == 1
    path.write_bytes(content.replace(b'"max_results":5', b'"max_results":6'))


def _another(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE accepted_settings")
    db.close()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_random, _half, _flipped, _another, _folder])
def test_a_damaged_file_is_put_aside_and_begun_anew(path: Path, damage, caplog) -> None:
    with opened(path) as accepted:
        accepted.save(DOCUMENT, 7)
    damage(path)
    with opened(path) as accepted:
        assert accepted.load() is None
        assert path.with_name("agent.db.damaged-1").exists()
        assert len([record for record in caplog.records if "put aside" in record.message]) == 1
        accepted.save(DOCUMENT, 8)
        assert accepted.load() == Accepted(DOCUMENT, 8)


def test_a_damaged_file_is_put_aside_by_saving_too(path: Path) -> None:
    with opened(path) as accepted:
        accepted.save(DOCUMENT, 7)
    _random(path)
    with opened(path) as accepted:
        accepted.save(DOCUMENT, 8)
        assert accepted.load() == Accepted(DOCUMENT, 8)


@pytest.mark.parametrize("remove", [Path.unlink, lambda path: path.rename(path.with_name("elsewhere"))])
def test_a_file_that_is_taken_away_while_it_is_open_is_made_anew(path: Path, remove) -> None:
    with opened(path) as accepted:
        accepted.save(DOCUMENT, 7)
        remove(path)
        accepted.save(DOCUMENT, 8)
    with opened(path) as accepted:
        assert accepted.load() == Accepted(DOCUMENT, 8)


def test_only_so_many_damaged_files_are_kept(path: Path) -> None:
    for _ in range(MAX_PUT_ASIDE + 2):
        _random(path)
        with opened(path) as accepted:
            assert accepted.load() is None
    assert len(list(path.parent.glob("agent.db.damaged-*"))) == MAX_PUT_ASIDE


def test_a_full_disk_is_no_damage_and_what_was_there_stays(small_disk: Path) -> None:
    accepted = AcceptedSettings(AgentDatabase(small_disk / "agent.db"))
    accepted.save(DOCUMENT, 7)
    (small_disk / "fill").write_bytes(b"x" * shutil.disk_usage(small_disk).free)
    with pytest.raises(SettingsError, match=r"agent\.db"):
        accepted.save({"search": {"max_results": 9}}, 8)
    assert accepted.load() == Accepted(DOCUMENT, 7)
    (small_disk / "fill").unlink()
    accepted.save({}, 9)
    assert accepted.load() == Accepted({}, 9)


SAVING = """
import sys
from pathlib import Path
from agent.store.accepted import AcceptedSettings
from agent.store.agent_db import AgentDatabase
accepted = AcceptedSettings(AgentDatabase(Path(sys.argv[1])))
for version in range(1, 100_000):
    accepted.save({"search": {"max_results": version}}, version)
    print(version, flush=True)
"""


def test_what_was_said_to_be_saved_survives_a_kill(path: Path) -> None:
    for lines in (1, 2, 7):
        command = [sys.executable, "-c", SAVING, str(path)]
        saving = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        said = [saving.stdout.readline() for _ in range(lines)]
        saving.send_signal(signal.SIGKILL)
        said += saving.stdout.readlines()
        saving.wait()
        saving.stdout.close()
        with opened(path) as accepted:
            held = accepted.load()
        assert held.document == {"search": {"max_results": held.version}}
        assert held.version - int(said[-1]) in {0, 1}, "the last one said, or the one that was not said any more"
