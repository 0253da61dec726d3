"""Requests that were being worked on when the process died: tried by themselves, and after a second death not again."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.device.request_marks import REMEMBERED, RequestMarks, marks_file

KEY, OTHER = b"k" * 32, b"o" * 32

WORKER = """
import os, sys
from pathlib import Path
from contextlib import ExitStack
from agent.device.request_marks import RequestMarks
marks = RequestMarks(Path(sys.argv[1]))
with ExitStack() as stack:
    for key in sys.argv[2:]:
        stack.enter_context(marks.working(key.encode() * 32))
    os.kill(os.getpid(), 9)
"""


def die(path: Path, *keys: str) -> None:
    assert subprocess.run([sys.executable, "-c", WORKER, path, *keys], check=False).returncode == -9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests"


def test_what_was_worked_on_at_two_deaths_is_fatal_and_at_one_it_is_not(path: Path) -> None:
    die(path, "k", "o")
    marks = RequestMarks(path)
    assert not marks.fatal(KEY)
    with marks.working(OTHER):
        pass  # it was not to blame
    marks.close()
    die(path, "k")
    marks = RequestMarks(path)
    assert marks.fatal(KEY)
    assert not marks.fatal(OTHER)
    marks.close()
    assert RequestMarks(path).fatal(KEY), "for as long as the machine is up"


def test_in_a_full_folder_nothing_is_marked_and_nobody_dies(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    die(small_disk / "requests", "k")
    die(small_disk / "requests", "k")
    marks = RequestMarks(small_disk / "requests")
    assert not marks.fatal(KEY)
    assert "No space left" in caplog.text
    marks.close()


def test_copies_of_a_request_that_were_worked_on_together_died_one_death(path: Path) -> None:
    die(path, "k", "k")
    marks = RequestMarks(path)
    assert not marks.fatal(KEY)
    marks.close()
    die(path, "k")
    assert RequestMarks(path).fatal(KEY)


def test_what_ends_well_is_forgotten(path: Path) -> None:
    die(path, "k")
    marks = RequestMarks(path)
    with marks.working(KEY):
        pass
    marks.close()
    assert not path.exists(), "nothing is held against anybody"
    die(path, "k")
    assert not RequestMarks(path).fatal(KEY)


def test_an_orderly_end_is_no_death_whatever_is_worked_on(path: Path) -> None:
    for _ in range(3):
        marks = RequestMarks(path)
        with marks.working(KEY):
            marks.close()
    assert not RequestMarks(path).fatal(KEY)


def test_a_suspect_is_worked_on_by_itself(path: Path) -> None:
    die(path, "k")
    marks = RequestMarks(path)
    at_work: set[bytes] = set()
    beside: set[bytes] = set()
    done: list[bytes] = []

    def work(key: bytes) -> None:
        for _ in range(1 if key == KEY else 200):  # having ended well once, it is a suspect no more
            with marks.working(key):
                at_work.add(key)
                for _ in range(100):
                    os.sched_yield()
                    if KEY in at_work:
                        beside.update(at_work - {KEY})
                at_work.discard(key)
                done.append(key)

    with marks.working(OTHER):
        threads = [threading.Thread(target=work, args=[key * 32]) for key in (b"k", b"a", b"b", b"c")]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(60)
    assert not beside
    assert done.index(KEY) < len(done) - 1, "and it need not wait until nobody else has anything to do"
    marks.close()


def test_only_so_many_are_remembered_and_a_file_that_says_nothing_sensible_stops_nothing(path: Path) -> None:
    path.write_bytes(os.urandom(100_000))
    marks = RequestMarks(path)
    for number in range(REMEMBERED + 5):
        with marks.working(number.to_bytes(32, "big")):
            pass
    marks.close()
    assert path.stat().st_size < 10_000


@pytest.mark.parametrize("spoil", [lambda path: path.symlink_to("/dev/null"), lambda path: path.mkdir()])
def test_where_the_file_cannot_be_had_nothing_is_marked_and_all_is_worked_on(path: Path, spoil) -> None:
    spoil(path)
    marks = RequestMarks(path)
    with marks.working(KEY), marks.working(OTHER):
        assert not marks.fatal(KEY)
    marks.close()


def test_a_second_agent_on_the_same_file_marks_nothing_there(path: Path) -> None:
    first = RequestMarks(path)
    second = RequestMarks(path)
    with second.working(KEY):
        assert KEY not in path.read_bytes()
    with first.working(KEY):
        assert KEY in path.read_bytes()
    second.close()
    first.close()


def test_the_file_lies_in_a_runtime_folder_never_in_the_data_folder(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    assert marks_file(data_dir, {"RUNTIME_DIRECTORY": "/run/a:/run/b"}) == Path("/run/a/requests")
    for environment in ({"XDG_RUNTIME_DIR": str(tmp_path)}, {}):
        found = marks_file(data_dir, environment)
        assert found is None or not found.is_relative_to(data_dir)
        assert found != marks_file(tmp_path / "other", environment)
