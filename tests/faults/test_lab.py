"""The parts of the lab: a lab that sees nothing would find every agent good."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mqtt5
import pytest
from local_cloud import QOS1, RawClient

from agent.local_cloud.mosquitto import Mosquitto, free_port
from faults.account import Account
from faults.disk import Disk
from faults.figures import Sample, contents, growth, per_hour
from faults.questions import Question
from faults.report import failures, table
from faults.schedule import KILL, schedule
from faults.tap import Tap

QUESTION = Question({"query": "a"}, [{"arxiv_id": "1", "score": 0.5}])
METADATA = {"corpus_version": "local+1", "processing_time_ms": 1.5}
RIGHT = {"request_id": "r", "results": [{"arxiv_id": "1", "score": 0.5}], "timestamp": 1.0, "metadata": METADATA}
TOPIC = "arxplorer/search/requests"


@pytest.fixture
def account() -> Account:
    asked = Account()
    asked.ask("r", QUESTION)
    for request in asked.due(0.0, 4.0, 9):
        asked.sent(request, 0.5)
    return asked


def answered(account: Account, answer: dict | bytes, correlation: bytes = b"c-r") -> dict:
    payload = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    account.answered(correlation, payload, 1.5)
    return account.summary()


def test_a_request_is_sent_again_until_it_is_answered(account: Account) -> None:
    assert account.due(4.4, 4.0, 9) == []
    assert [request.id for request in account.due(4.5, 4.0, 9)] == ["r"]
    summary = answered(account, RIGHT)
    assert (summary["answered"], summary["unanswered"], summary["slowest_s"]) == (1, 0, 1.0)
    assert account.due(99.0, 4.0, 9) == []


def test_no_more_are_sent_than_the_window_holds(account: Account) -> None:
    account.ask("s", QUESTION)
    assert account.due(0.0, 4.0, 1) == []
    answered(account, RIGHT)
    assert [request.id for request in account.due(0.0, 4.0, 1)] == ["s"]


def test_a_second_answer_is_counted_and_has_to_be_right_as_well(account: Account) -> None:
    answered(account, RIGHT)
    later = RIGHT | {"timestamp": 2.0, "metadata": METADATA | {"processing_time_ms": 9.0}}
    assert (answered(account, later)["answered_again"], answered(account, later)["wrong"]) == (1, 0)
    assert answered(account, RIGHT | {"metadata": METADATA | {"corpus_version": "local+2"}})["wrong"] == 1
    assert answered(account, RIGHT | {"results": []})["wrong"] == 2


@pytest.mark.parametrize(
    "answer",
    [
        RIGHT | {"results": []},
        RIGHT | {"results": [{"arxiv_id": "1", "score": 0.4}]},
        RIGHT | {"request_id": "another"},
        RIGHT | {"error": {"code": "invalid_request"}, "results": []},
        b"no JSON",
    ],
)
def test_what_is_not_the_expected_list_is_wrong(account: Account, answer) -> None:
    assert answered(account, answer)["wrong"] == 1


@pytest.mark.parametrize("code", ["overloaded", "expired", "internal"])
def test_an_error_that_may_pass_is_no_answer(account: Account, code: str) -> None:
    summary = answered(account, {"request_id": "r", "results": [], "error": {"code": code}})
    assert (summary["unanswered"], summary["wrong"], summary["errors"]) == (1, 0, {code: 1})


def test_an_answer_to_nothing_is_a_stranger(account: Account) -> None:
    assert answered(account, RIGHT, b"c-x")["strangers"] == 1


def test_a_schedule_is_the_same_for_the_same_seed_and_has_its_share_of_kills() -> None:
    drawn = schedule(7, 200)
    assert drawn == schedule(7, 200)
    assert drawn != schedule(8, 200)
    places = Counter(fault.where for fault in drawn)
    assert places["agent"] == 60
    assert {fault.name for fault in drawn if fault.where == "agent"} == {KILL}
    assert set(places) == {"local", "cloud", "both", "broker", "agent", "disk", "clock"}
    assert "clock" not in {fault.where for fault in schedule(7, 200, without=frozenset({"clock"}))}


def test_growth_is_the_slope_of_what_follows_the_warm_up() -> None:
    assert per_hour([0, 1800, 3600], [1, 2, 3]) == pytest.approx(2)
    assert per_hour([5, 5], [1, 2]) == 0
    samples = [Sample(60.0 * n, 100 if n < 20 else 500 + n, 25, 13, 33, 0, 0) for n in range(100)]
    grown = growth(samples)
    assert grown["private_kib"]["per_hour"] == pytest.approx(60)
    assert grown["threads"] == {"per_hour": 0, "first": 13, "last": 13}


def test_the_contents_of_a_folder_tell_which_file_was_changed(tmp_path: Path) -> None:
    for name in ("kept", "changed"):
        (tmp_path / name).write_text("a")
    before = contents(tmp_path)
    (tmp_path / "changed").write_text("ab")
    assert {name for name, state in contents(tmp_path).items() if state != before[name]} == {"changed"}


def test_a_report_names_everything_that_should_not_have_been() -> None:
    link = Account().summary()
    audit = {"acknowledged": 1, "stored": 0, "early": [], "unmarked": 0}
    good = {"local": link, "cloud": link, "audit": {"local": audit, "cloud": audit}, "wrong": []}
    whole = {"seed": 1, "restarts": 0, "crashes": [], "connects": {"local": 1, "cloud": 1}, "spared": []}
    assert failures({**whole, "campaign": good}) == []
    assert "none acknowledged early" in table({**whole, "campaign": good})
    bad = {
        **good,
        "local": link | {"unanswered": 2},
        "audit": {"local": audit, "cloud": audit | {"early": ["c-r"], "acknowledged": 0}},
        "one_process": False,
    }
    found = failures({**whole, "crashes": ["exit 1"], "campaign": bad})
    assert len(found) == 5
    quiet = {**good, "counted": True, "written_bytes_per_1000": 0, "log_bytes_per_1000": 0, "changed_files": []}
    for online, expected in (
        (quiet, []),
        (quiet | {"written_bytes_per_1000": 8192, "log_bytes_per_1000": 200}, []),
        (
            quiet | {"written_bytes_per_1000": 8192},
            ["online: queries wrote 8192 bytes per 1,000 to disk, and said nothing"],
        ),
        (quiet | {"changed_files": ["agent.db"]}, ["online: queries changed agent.db"]),
    ):
        assert failures({**whole, "online": online}) == expected
    assert "NOT COUNTED HERE" in table({**whole, "online": quiet | {"counted": False}})
    assert "campaign: local: 2 unanswered" in table({**whole, "crashes": ["exit 1"], "campaign": bad})


WRITER = "import sys\nfor _ in sys.stdin:\n try: open(sys.argv[1], 'ab', 0).write(b'x'); print('ok')\n except OSError: print('full')"


@pytest.mark.parametrize("own", [True, False])
def test_a_disk_is_full_until_it_is_freed_and_leaves_no_mount_behind(tmp_path: Path, own: bool) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "kept").write_text("kept")
    disk = Disk(tmp_path / "disk", tmp_path / "source", own=own)
    file = disk.data_dir / "written"
    writer = subprocess.Popen(
        [sys.executable, "-u", "-c", WRITER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def write() -> bytes:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        return writer.stdout.readline()

    try:
        assert (disk.data_dir / "kept").read_text() == "kept"
        assert write() == b"ok\n"
        file.unlink()
        disk.fill(writer.pid)
        assert write() == b"full\n"
        disk.free(writer.pid)
        assert write() == b"ok\n"
        assert disk.mounted == (own and os.geteuid() == 0)
    finally:
        writer.communicate()
        disk.close()
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


# -- the tap --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tap(broker: Mosquitto, tmp_path: Path):
    running = Tap(free_port(), broker.port, "device", tmp_path).start()
    yield running
    running.stop()


def connect(port: int, name: str) -> RawClient:
    client = RawClient(socket.create_connection(("127.0.0.1", port), timeout=20))
    client.send(mqtt5.ConnectPacket(name, keep_alive=60))
    client.receive(mqtt5.ConnAckPacket)
    return client


def test_the_tap_tells_an_agent_that_acknowledges_early(tap: Tap, broker: Mosquitto) -> None:
    agent, client = connect(tap.port, "device"), connect(broker.port, "client")
    agent.subscribe(TOPIC)
    for mark in (b"in order", b"early"):
        client.publish(TOPIC, b"{}", qos=QOS1, packet_id=1, correlation_data=mark)
        request = agent.receive(mqtt5.PublishPacket)
        if mark == b"in order":
            agent.publish("answers", b"{}", qos=QOS1, packet_id=7, correlation_data=mark)
            agent.receive(mqtt5.PubAckPacket)
        agent.send(mqtt5.PubAckPacket(request.packet_id))
        agent.quiet()
        client.quiet()
    assert tap.findings() == {"acknowledged": 2, "stored": 0, "early": [b"early".hex()], "unmarked": 0}
    agent.close()
    client.close()


def test_the_tap_drops_acknowledgements_doubles_swaps_and_cuts(tap: Tap) -> None:
    client = connect(tap.port, "anyone")
    client.subscribe("a")
    tap.fault("drop-puback")
    client.publish("a", b"1", qos=QOS1, packet_id=1)
    assert [type(packet) for packet in client.quiet()] == [mqtt5.PublishPacket]
    tap.fault("clear")
    tap.fault("duplicate")
    tap.fault("reorder")
    for number in (2, 3):
        client.publish("a", b"%d" % number, qos=QOS1, packet_id=number)
    heard = [packet.payload for packet in client.quiet() if isinstance(packet, mqtt5.PublishPacket)]
    assert heard == [b"3", b"3", b"2", b"2"]
    tap.fault("cut")
    assert client.ended_with() is None
    client.close()
