"""The outbox: what it keeps, for how long, how much of it, and that it forgets nothing when it is killed."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import run_command
from hypothesis import given
from hypothesis import strategies as st
from outbox_device import REST, START, Device, answer

from agent.store.moment import PLAUSIBLE_S, Moment
from agent.store.outbox import MAX_SET_ASIDE, Kept, look


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "agent.db")
    yield made
    made.close()


def test_what_is_kept_comes_back_whole_and_in_order_after_a_restart(device: Device) -> None:
    given = [answer(bytes([number]) * number, key=bytes([number]) * 32) for number in range(20)]
    device.outbox.put(given[:7])
    device.outbox.put([answer(b"to the cloud", link="cloud x:8883"), answer(b"a report", kind="report"), *given[7:]])
    device.restart()
    assert [one._replace(seq=0) for one in device.outbox.next("local", "answer", 100)] == given
    assert device.waiting("answer", "cloud x:8883") == [b"to the cloud"]
    assert device.waiting("report") == [b"a report"]


def test_a_request_is_forgotten_before_its_answer_is_gone_from_the_disk(device: Device) -> None:
    key, known = b"k" * 32, []
    device.outbox.put([answer(b"1", key=key)])
    write = device.database.write

    def watched(action: Any, then: Any = lambda _: None) -> Any:
        return write(lambda db: (action(db), known.append(device.outbox.holds("local", key)))[0], then)

    device.database.write = watched
    device.outbox.remove(device.outbox.next("local", "answer", 1))
    assert known[-1] is False


def test_a_request_is_known_while_its_answer_waits_and_not_after(device: Device) -> None:
    key = b"k" * 32
    assert not device.outbox.holds("local", key)
    device.outbox.put([answer(b"first", key=key)])
    device.outbox.put([answer(b"again", key=key)])
    device.restart()
    assert device.outbox.holds("local", key)
    assert not device.outbox.holds("cloud x:8883", key)
    (kept,) = device.outbox.next("local", "answer", 10)
    assert kept.payload == b"again", "one takes the place of the other"
    device.outbox.remove([kept])
    assert not device.outbox.holds("local", key)


@pytest.mark.parametrize(
    ("config", "messages", "left", "reason"),
    [
        pytest.param({"max_bytes": 262_144}, [b"a" * 99_000, b"b" * 99_000, b"c" * 99_000], 2, "too_large", id="bytes"),
        pytest.param(
            {"max_bytes": 262_144}, [b"a", b"b", b"c"], 2, "too_large", id="bytes of all that belongs to an answer"
        ),
        pytest.param({"max_messages": 3}, [b"1", b"2", b"3", b"4", b"5"], 3, "too_many", id="count"),
    ],
)
def test_over_a_bound_the_oldest_goes_and_is_counted_by_its_reason(tmp_path, config, messages, left, reason) -> None:
    device = Device(tmp_path / "agent.db", **config)
    device.outbox.put([answer(b"a report", kind="report")])
    mark = {"correlation": "0" * 99_000} if len(messages[0]) == 1 and "max_bytes" in config else {}
    for payload in messages:
        device.outbox.put([answer(payload)._replace(rest=REST | mark)])
    device.restart()
    assert device.waiting() == messages[len(messages) - left :]
    assert device.outbox.counts()["dropped"] == {f"answers_{reason}": len(messages) - left}
    assert device.waiting("report") == [b"a report"], "each kind has bounds of its own"
    device.close()


def test_what_is_too_old_goes(device: Device) -> None:
    device.outbox.put([answer(b"old")])
    device.later(device.config.max_age_s / 2)
    device.outbox.put([answer(b"new")])
    device.later(device.config.max_age_s / 2 + 1)
    assert device.waiting() == [b"new"]
    assert device.outbox.counts()["dropped"] == {"answers_too_old": 1}


@pytest.mark.parametrize(
    ("later", "left_s"),
    [
        pytest.param({"seconds": 40}, 60, id="by the kernel's clock"),
        pytest.param({"seconds": 40, "wall": 5.0}, 60, id="whatever is done to the wall clock"),
        pytest.param({"seconds": 40, "boot": "second"}, 60, id="over a boot by the wall clock"),
        pytest.param({"seconds": 40, "boot": "second", "wall": 5.0}, 100, id="not at all where no clock was set"),
        pytest.param({"seconds": 40, "boot": "second", "wall": START.wall_s - 9}, 100, id="nor where it goes back"),
        pytest.param({"seconds": 101, "boot": "second"}, None, id="until it has passed"),
    ],
)
def test_message_expiry_is_kept_across_restarts_as_well_as_the_clock_allows(device: Device, later, left_s) -> None:
    device.outbox.put([answer(b"for a while", expires_s=100.0)])
    device.later(**later)
    device.restart()
    assert [one.expires_s for one in device.outbox.next("local", "answer", 9)] == ([left_s] if left_s else [])
    assert device.outbox.counts()["dropped"] == ({} if left_s else {"answers_expired": 1})


def test_what_is_refused_is_set_aside_with_its_reason_and_the_rest_goes_on(device: Device) -> None:
    device.outbox.put([answer(b"poison", key=b"p" * 32), answer(b"good")])
    device.outbox.refuse(device.outbox.next("local", "answer", 1)[0], "not authorized")
    device.restart()
    assert device.waiting() == [b"good"]
    assert not device.outbox.holds("local", b"p" * 32), "asked again, it is answered anew"
    (aside,) = look(device.path)["refused"]
    size = len("arxplorer/responses/x") + len(b"poison") + len(json.dumps(REST))
    assert (aside["topic"], aside["bytes"], aside["reason"]) == ("arxplorer/responses/x", size, "not authorized")
    for number in range(MAX_SET_ASIDE + 3):
        device.outbox.refuse(answer(b"poison"), f"reason {number}")
    assert device.outbox.counts()["set_aside"] == MAX_SET_ASIDE
    assert look(device.path)["refused"][-1]["reason"] == f"reason {MAX_SET_ASIDE + 2}"


def test_the_outbox_can_be_looked_at_beside_the_agent(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    assert json.loads(run_command("outbox", "--json", data_dir=data_dir).stdout)["answers"]["messages"] == 0
    device = Device(data_dir / "agent.db", max_messages=2)
    device.outbox.put([answer(b"payload")] * 3)
    device.outbox.refuse(answer(b"poison"), "0x87: not authorized")
    assert json.loads(run_command("outbox", "--json", data_dir=data_dir).stdout) == look(device.path)
    device.outbox.refuse(Kept("local", "request", "asked", b"deadly", {}, b"key"), "the agent ended")
    device.outbox.refuse(Kept("local", "request", "asked", b"deadly", {}, b"key"), "the agent ended")
    said = run_command("outbox", data_dir=data_dir).stdout.decode()
    assert said.count("request of 13 bytes from local: the agent ended") == 1, "once for all its copies"
    waiting = f"2 answers wait, {2 * (len('arxplorer/responses/x') + len(b'payload') + len(json.dumps(REST)))} bytes"
    for words in (waiting, "dropped so far: 1 answers too many", "0x87: not authorized"):
        assert words in said
    device.close()
    device.path.write_bytes(b"no database " * 1000)
    failed = run_command("outbox", data_dir=data_dir)
    assert (failed.returncode, b"agent.db cannot be read" in failed.stderr) == (1, True)


def test_a_full_outbox_recovers_by_itself_and_the_file_shrinks_again(tmp_path: Path) -> None:
    device = Device(tmp_path / "agent.db", max_bytes=4_000_000)
    for _ in range(60):
        device.outbox.put([answer(random.randbytes(100_000))])
    held = device.outbox.counts()["answers"]
    assert 3_900_000 <= held["bytes"] <= 4_000_000
    assert device.outbox.counts()["dropped"] == {"answers_too_large": 60 - held["messages"]}
    while messages := device.outbox.next("local", "answer", 8):
        device.outbox.remove(messages)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 150_000
    device.outbox.put([answer(b"and goes on")])
    assert device.waiting() == [b"and goes on"]
    device.close()


def test_the_agent_db_of_an_earlier_version_gets_an_outbox_and_keeps_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            "CREATE TABLE accepted_settings"
            " (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, document TEXT NOT NULL, crc INTEGER NOT NULL)"
        )
        db.execute("INSERT INTO accepted_settings VALUES (1, 7, '{}', 0)")
        db.execute("PRAGMA user_version = 1")
        db.commit()
    device = Device(path)
    device.outbox.put([answer(b"new")])
    assert device.waiting() == [b"new"]
    assert device.database.read(lambda db: db.execute("SELECT version FROM accepted_settings").fetchall()) == [(7,)]
    device.close()


WORKER = """
import sys
from pathlib import Path
from agent.config import OutboxConfig
from agent.store.agent_db import AgentDatabase
from agent.store.outbox import Kept, Outbox
outbox = Outbox(AgentDatabase(Path(sys.argv[1])), OutboxConfig())
outbox.load()
for number in range(100_000):
    outbox.put([Kept("local", "answer", "t", b"%d" % (2 * number + more), {}) for more in (0, 1)])
    print("put", number, flush=True)
    if number % 3 == 2:
        first = outbox.next("local", "answer", 1)[0]
        print("removing", int(first.payload), flush=True)
        outbox.remove([first])
"""


def test_what_was_said_to_be_kept_survives_a_kill(device: Device) -> None:
    for lines in (1, 2, 5, 11):
        device.close()
        for file in device.path.parent.glob("agent.db*"):  # its log, too
            file.unlink()
        command = [sys.executable, "-c", WORKER, str(device.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            said = [worker.stdout.readline() for _ in range(lines)]
            worker.send_signal(signal.SIGKILL)
            said += worker.stdout.readlines()
        put = [int(line.split()[1]) for line in said if line.startswith("put")]
        gone = {int(line.split()[1]) for line in said if line.startswith("removing")}
        device.restart()
        held = [int(payload) for payload in device.waiting()]
        assert set(range(2 * (put[-1] + 1))) - gone <= set(held), "nothing that was said is missing"
        assert len(held) % 2 == len(set(range(2 * (put[-1] + 1))) - set(held)) % 2, "two that came together stay so"


@given(st.lists(st.tuples(st.sampled_from(["same", "next", "none"]), st.floats(0, 1e7)), max_size=8))
def test_no_clock_makes_time_go_back_or_pass_where_nothing_is_known(steps: list[tuple[str, float]]) -> None:
    now, stored, passed, known = START, START, 0.0, True
    for boot, seconds in steps:
        passed += seconds
        wall = now.wall_s + seconds if boot != "none" else 0.0
        known = known and boot == "same"
        now = Moment(now.boot if boot == "same" else now.boot + "+", now.uptime_s + seconds, wall)
    assert now.since(stored) >= 0
    if known:
        assert now.since(stored) == pytest.approx(passed)
    if now.wall_s < PLAUSIBLE_S and not known:
        assert now.since(stored) == 0
