"""The outbox on disks that are full, read-only, damaged or held by somebody else, and used by several threads at once."""

import random
import resource
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from outbox_device import Device, answer, troubled

from agent.errors import StateError
from agent.store.agent_db import AgentDatabase


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "agent.db")
    yield made
    made.close()


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_where_nothing_can_be_written_what_waits_is_given_out_once_and_deleted_later(
    small_disk: Path, trouble: str
) -> None:
    device = Device(small_disk / "agent.db")
    given = [answer(b"%d" % number, key=bytes([number]) * 32) for number in range(20)]
    device.outbox.put(given)
    device.close()
    with troubled(small_disk, trouble):
        device.restart()
        told = []
        while messages := device.outbox.next("local", "answer", 8):
            told += [one.payload for one in messages]
            assert all(device.outbox.holds("local", one.key) for one in messages)
            with pytest.raises(StateError):
                device.outbox.remove(messages)
            assert not any(device.outbox.holds("local", one.key) for one in messages), "whoever asks is answered anew"
        assert told == [one.payload for one in given]
        with pytest.raises(StateError):
            device.outbox.remove()
    device.outbox.put([answer(b"later")])
    device.outbox.remove()
    assert device.waiting() == [b"later"]
    device.restart()
    assert device.waiting() == [b"later"]
    device.close()


def test_what_cannot_be_read_is_not_held_against_whoever_asks_again(device: Device, monkeypatch) -> None:
    key = b"k" * 32
    device.outbox.put([answer(b"kept", key=key)])
    with monkeypatch.context() as card:
        card.setattr(AgentDatabase, "_once", Mock(side_effect=OSError("input/output error")))
        card.setattr(AgentDatabase, "read_only", Mock(return_value=None))
        with pytest.raises(StateError, match="input/output error"):
            device.outbox.next("local", "answer", 1)
        assert not device.outbox.holds("local", key)
    assert device.waiting() == [b"kept"], "and it is delivered once it can be"
    device.restart()
    assert device.outbox.holds("local", key)


def test_a_file_that_somebody_else_holds_is_waited_for_and_nothing_is_given_out_twice(
    device: Device, monkeypatch
) -> None:
    monkeypatch.setattr("agent.store.agent_db.BUSY_TIMEOUT_S", 0.05)
    key = b"k" * 32
    device.outbox.put([answer(b"delivered", key=key), answer(b"waiting")])
    device.outbox.remove(device.outbox.next("local", "answer", 1))
    with closing(sqlite3.connect(device.path, isolation_level=None)) as somebody:
        somebody.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateError, match="locked"):
            device.outbox.next("local", "answer", 8)
        assert (device.outbox.holds("local", key), device.outbox.waiting("local", "answer")) == (False, 1)
    assert device.waiting() == [b"waiting"]


def test_what_was_delivered_is_not_counted_as_dropped(small_disk: Path) -> None:
    device = Device(small_disk / "agent.db")
    device.outbox.put([answer(b"delivered", expires_s=60.0)])
    device.close()
    with troubled(small_disk, "full"):
        device.restart()
        with pytest.raises(StateError):
            device.outbox.remove(device.outbox.next("local", "answer", 8))
        device.later(61)
        assert device.waiting() == []
    device.outbox.remove()
    assert device.outbox.counts()["dropped"] == {}
    device.close()


def test_a_write_that_comes_between_another_and_what_that_has_learned_is_not_forgotten(
    device: Device, monkeypatch
) -> None:
    outbox, take = device.outbox, device.outbox._take  # noqa: SLF001  it is between these two that it happens
    outbox.put([])  # opens the file
    other = threading.Thread(target=lambda: outbox.put([answer(b"second", key=b"2" * 32)]))

    def slowly(learned: Any) -> None:
        if other.ident is None:
            other.start()
            other.join(0.3)  # where it can get in between, it does
        take(learned)

    monkeypatch.setattr(outbox, "_take", slowly)
    outbox.put([answer(b"first", key=b"1" * 32)])
    other.join()
    assert outbox.waiting("local", "answer") == 2
    assert outbox.holds("local", b"2" * 32)
    assert device.waiting() == [b"first", b"second"]


@pytest.mark.parametrize("damage", ["payload = x'00'", "payload = CAST(payload AS TEXT)", "wall_s = 'now'"])
def test_a_damaged_row_is_dropped_and_the_rest_is_delivered(device: Device, damage: str) -> None:
    device.outbox.put([answer(b"before"), answer(b"damaged"), answer(b"after")])
    device.close()
    with closing(sqlite3.connect(device.path)) as db:
        db.execute(f"UPDATE outbox SET {damage} WHERE payload = ?", [b"damaged"])
        db.commit()
    device.restart()
    device.outbox.put([answer(b"last")])
    assert device.waiting() == [b"before", b"after", b"last"]
    assert device.outbox.counts()["dropped"] == {"answers_damaged": 1}


def test_the_file_shrinks_too_when_all_that_waited_has_grown_too_old(device: Device) -> None:
    device.outbox.put([answer(random.randbytes(100_000)) for _ in range(30)])
    device.later(device.config.max_age_s + 1)
    assert device.waiting() == []
    assert sum(file.stat().st_size for file in device.path.parent.iterdir()) < 150_000


def test_a_damaged_file_is_put_aside_and_the_outbox_begins_anew(device: Device, caplog) -> None:
    device.outbox.put([answer(b"lost", key=b"k" * 32)])
    device.close()
    device.path.write_bytes(b"no database " * 1000)
    device.restart()
    assert not device.outbox.holds("local", b"k" * 32)
    device.outbox.put([answer(b"kept")])
    assert device.waiting() == [b"kept"]
    assert "put aside as agent.db.damaged-1" in caplog.text


def test_what_a_full_disk_did_not_take_is_not_taken_for_kept(small_disk: Path) -> None:
    """Nor is it at any moment before the commit: the request would be acknowledged."""
    device = Device(small_disk / "agent.db")
    device.outbox.put([answer(b"kept", key=b"a" * 32)])
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * shutil.disk_usage(small_disk).free)
    with pytest.raises(StateError):
        device.outbox.put([answer(b"x" * 100_000, key=b"b" * 32)])
    assert not device.outbox.holds("local", b"b" * 32)
    assert device.outbox.waiting("local", "answer") == 1
    ballast.unlink()
    device.outbox.put([answer(b"and now", key=b"b" * 32)])
    assert device.outbox.holds("local", b"b" * 32)
    assert device.waiting() == [b"kept", b"and now"]
    device.close()


def test_an_answer_is_not_taken_for_kept_any_more_once_its_file_is_gone(device: Device) -> None:
    device.outbox.put([answer(b"lost", key=b"k" * 32)])
    device.path.unlink()
    device.outbox.counts()
    assert not device.outbox.holds("local", b"k" * 32)


def test_where_the_file_cannot_be_opened_it_is_left_alone(device: Device) -> None:
    """No file descriptors, no inodes: nothing that says anything about the file."""
    device.outbox.put([answer(b"kept")])
    device.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # what is open stays open
    try:
        with pytest.raises(StateError):
            device.outbox.put([answer(b"more")])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    device.restart()
    assert device.waiting() == [b"kept"]
