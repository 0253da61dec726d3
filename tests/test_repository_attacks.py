"""What a repository, or who stands between, may try: each is refused by its name, and what was trusted stays so.

The repositories are real ones, manipulated as somebody could who holds the server, or who has stolen some of the keys.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from repositories import DAY_S, NOW_S, Publisher, serving
from tuf.api.metadata import Metadata, MetaFile

from agent.errors import RepositoryError
from agent.repository import transport
from agent.repository.client import Repository
from agent.repository.keys import read_keys, rotate_key
from agent.repository.publishing import bring_up_to_date

BUILD_S = 1_767_225_600.0  # 2026-01-01, as store/moment.py has it


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    made = Publisher(tmp_path / "publisher")
    made.publish("1")
    return made


class Device:
    """What is kept from one look at the repository to the next, and a clock of its own."""

    def __init__(self, publisher: Publisher, folder: Path, url: str | None = None) -> None:
        self.url = url or str(publisher.repository)
        self.trust = folder / "trust"
        self.into = folder / "incoming"
        self.root: bytes | None = publisher.root
        self.now_s = NOW_S
        self.problems: list[str] = []

    def look(self) -> list[str]:
        repository = Repository(self.url, self.trust, trusted_root=self.root, clock=lambda: self.now_s)
        with repository:
            try:
                return [str(release) for release in repository.refresh()]
            finally:
                self.problems = repository.problems

    def fetch(self) -> None:
        with Repository(self.url, self.trust, trusted_root=self.root, clock=lambda: self.now_s) as repository:
            repository.fetch(repository.refresh()[-1], self.into)

    def refuses(self, attack: str, match: str, action: Callable[[], Any] | None = None) -> RepositoryError:
        with pytest.raises(RepositoryError, match=match) as refused:
            (action or self.look)()
        assert refused.value.attack == attack
        assert str(refused.value).startswith(f"{attack}: ")
        return refused.value


@pytest.fixture
def device(publisher: Publisher, tmp_path: Path) -> Device:
    return Device(publisher, tmp_path)


def copy_of(publisher: Publisher, name: str) -> Path:
    copy = publisher.folder / name
    shutil.copytree(publisher.repository, copy)
    return copy


def metadata(publisher: Publisher, name: str) -> Path:
    return publisher.repository / "metadata" / name


def signed_again(publisher: Publisher, file: str, change: Callable[[Any], None]) -> None:
    """With the stolen key of its role, as it is now."""
    path = metadata(publisher, file)
    document: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
    change(document.signed)
    root = Metadata.from_bytes((publisher.keys / "root.json").read_bytes()).signed
    keys = read_keys(publisher.keys)
    document.signatures.clear()
    for keyid in root.roles[document.signed.type].keyids:
        document.sign(keys[keyid], append=True)
    path.write_bytes(document.to_bytes())


# -- arbitrary software ------------------------------------------------------------------------------------------------


def test_arbitrary_software_a_part_with_other_bytes(publisher: Publisher, device: Device) -> None:
    part = max((publisher.repository / "parts").iterdir(), key=lambda path: path.stat().st_size)
    part.write_bytes(bytes(part.stat().st_size))
    device.refuses("arbitrary software", "papers.db.zst is not the file that was signed", device.fetch)
    assert not (device.into / "papers.db.zst").exists()
    assert not (device.into / "papers.db.zst.partial").exists()


def test_arbitrary_software_a_manifest_that_names_other_parts(publisher: Publisher, device: Device) -> None:
    (manifest,) = (publisher.repository / "targets").rglob("*.manifest.json")
    manifest.write_bytes(manifest.read_bytes().replace(b"papers.db.zst", b"rapers.db.zst"))
    device.refuses("arbitrary software", "manifest.json is not the file that was signed", device.fetch)
    assert not device.into.exists()


def test_arbitrary_software_metadata_that_are_none(publisher: Publisher, device: Device) -> None:
    metadata(publisher, "timestamp.json").write_bytes(b"<html>Welcome to the harbour's network. Please log in.</html>")
    refused = device.refuses("arbitrary software", "timestamp metadata is none")
    assert refused.hint
    assert "log-in" in refused.hint


# -- rollback ----------------------------------------------------------------------------------------------------------


def test_rollback_the_whole_repository_as_it_once_was(publisher: Publisher, device: Device) -> None:
    old = copy_of(publisher, "old")
    publisher.publish("2")
    assert device.look() == ["stable/1", "stable/2"]
    device.url = str(old)
    device.refuses("rollback", "timestamp metadata is older than what was trusted before: .* 1 must be >= 2")
    device.url = str(publisher.repository)
    assert device.look() == ["stable/1", "stable/2"]


def test_rollback_of_targets_with_the_stolen_keys_of_snapshot_and_timestamp(
    publisher: Publisher, device: Device
) -> None:
    first = metadata(publisher, "1.targets.json").read_bytes()
    publisher.publish("2")
    device.look()

    def back(snapshot: Any) -> None:
        snapshot.version = 3
        snapshot.meta["targets.json"] = MetaFile.from_data(1, first, ["sha256"])

    shutil.copyfile(metadata(publisher, "2.snapshot.json"), metadata(publisher, "3.snapshot.json"))
    signed_again(publisher, "3.snapshot.json", back)
    snapshot = metadata(publisher, "3.snapshot.json").read_bytes()

    def forward(timestamp: Any) -> None:
        timestamp.version = 3
        timestamp.snapshot_meta = MetaFile.from_data(3, snapshot, ["sha256"])

    signed_again(publisher, "timestamp.json", forward)
    device.refuses("rollback", "snapshot metadata is older than what was trusted before")


# -- fast-forward ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["timestamp", "snapshot"])
def test_fast_forward_a_version_nobody_can_have_reached(what: str, publisher: Publisher, device: Device) -> None:
    device.look()
    genuine = metadata(publisher, "timestamp.json").read_bytes()

    def leap(timestamp: Any) -> None:
        timestamp.version = 2 if what == "snapshot" else 1_000_002
        timestamp.snapshot_meta.version = 1_000_002 if what == "snapshot" else 1

    signed_again(publisher, "timestamp.json", leap)
    device.refuses("fast-forward", f"{what}.json leaps from version 1 to 1000002")
    metadata(publisher, "timestamp.json").write_bytes(genuine)
    publisher.publish("2")
    assert device.look() == ["stable/1", "stable/2"], "the leap was not taken note of"


def test_fast_forward_within_what_is_believed_is_healed_by_rotating_the_keys(
    publisher: Publisher, device: Device
) -> None:
    genuine = metadata(publisher, "timestamp.json").read_bytes()

    def leap(timestamp: Any) -> None:
        timestamp.version = 900_000

    signed_again(publisher, "timestamp.json", leap)
    device.look()
    metadata(publisher, "timestamp.json").write_bytes(genuine)
    publisher.publish("2")
    device.refuses("rollback", "timestamp metadata is older")
    for role in ("timestamp", "snapshot"):
        rotate_key(publisher.keys, role, clock=publisher.clock)
    bring_up_to_date(publisher.repository, publisher.keys, clock=publisher.clock)
    assert device.look() == ["stable/1", "stable/2"]


# -- freeze ------------------------------------------------------------------------------------------------------------


def test_freeze_metadata_that_nobody_signs_any_more(publisher: Publisher, device: Device) -> None:
    device.now_s = NOW_S + 179 * DAY_S
    assert device.look() == ["stable/1"]
    device.now_s = NOW_S + 181 * DAY_S
    device.refuses("freeze", "expired on 2027-07-14 .*, and it is 2027-07-15")
    publisher.now_s = device.now_s
    bring_up_to_date(publisher.repository, publisher.keys, clock=publisher.clock)
    assert device.look() == ["stable/1"], "and signed again it is taken, however long the device was away"


def test_freeze_a_root_that_has_expired_and_what_its_rotation_does(publisher: Publisher, device: Device) -> None:
    device.now_s = publisher.now_s = NOW_S + 6 * 365 * DAY_S
    bring_up_to_date(publisher.repository, publisher.keys, clock=publisher.clock)
    device.refuses("freeze", "root metadata, version 1, expired on 2032-01-14")
    rotate_key(publisher.keys, "root", clock=publisher.clock)
    bring_up_to_date(publisher.repository, publisher.keys, clock=publisher.clock)
    assert device.look() == ["stable/1"]


# -- mix-and-match -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_mix_and_match_metadata_of_different_moments(role: str, publisher: Publisher, device: Device) -> None:
    former = metadata(publisher, f"1.{role}.json").read_bytes()
    publisher.publish("2")
    metadata(publisher, f"2.{role}.json").write_bytes(former)
    device.refuses("mix-and-match", f"{role} metadata does not belong to the rest")


def test_mix_and_match_the_metadata_of_one_role_for_another(publisher: Publisher, device: Device) -> None:
    shutil.copyfile(metadata(publisher, "1.snapshot.json"), metadata(publisher, "timestamp.json"))
    device.refuses("mix-and-match", "timestamp metadata is not what belongs here")


# -- wrong keys --------------------------------------------------------------------------------------------------------


def test_wrong_keys_of_another_publisher(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    other = Publisher(tmp_path / "other")
    other.publish("9")
    device.look()
    device.url = str(other.repository)
    device.refuses("wrong keys", "is not signed by the keys trusted here")
    device.root = other.root
    refused = device.refuses("wrong keys", ".")
    assert refused.hint
    device.url = str(publisher.repository)
    device.refuses("wrong keys", "the root.json given, version 1, is not of the keys that are trusted here already")
    device.root = None
    assert device.look() == ["stable/1"]


def test_wrong_keys_that_were_rotated_away(publisher: Publisher, device: Device) -> None:
    stolen = copy_of(publisher, "stolen")
    for role in ("timestamp", "snapshot", "targets"):
        rotate_key(publisher.keys, role, clock=publisher.clock)
        bring_up_to_date(publisher.repository, publisher.keys, clock=publisher.clock)
    publisher.publish("2")
    device.look()
    device.url = str(stolen)
    device.refuses("wrong keys", "timestamp metadata is not signed")


def test_wrong_keys_in_a_new_root_that_the_old_ones_did_not_sign(publisher: Publisher, device: Device) -> None:
    forged = json.loads(metadata(publisher, "1.root.json").read_bytes())
    forged["signed"]["version"] = 2
    metadata(publisher, "2.root.json").write_text(json.dumps(forged))
    device.refuses("wrong keys", "root metadata is not signed")


def test_without_any_trusted_keys_nothing_is_believed(publisher: Publisher, device: Device) -> None:
    device.root = None
    with pytest.raises(RepositoryError, match="no keys are trusted yet"):
        device.look()
    device.root = b"{}"
    with pytest.raises(RepositoryError, match=r"the root\.json given is none"):
        device.look()


# -- endless data and slow retrieval -----------------------------------------------------------------------------------


@pytest.mark.parametrize("about", ["timestamp.json", "targets.json", "manifest.json", "parts/"])
def test_endless_data_is_read_no_further_than_it_may_be(about: str, publisher: Publisher, tmp_path: Path) -> None:
    with serving(publisher.repository) as server:
        device = Device(publisher, tmp_path, server.url)
        server.about, server.endless = about, True
        device.refuses("endless data", "does not end", device.fetch)
        assert server.sent < 20_000_000
    assert sum(path.stat().st_size for path in device.into.glob("*")) < 60_000


def test_endless_data_announced_beforehand_is_not_even_begun(publisher: Publisher, device: Device) -> None:
    with serving(publisher.repository) as server:
        device.url = server.url
        (part,) = (path for path in (publisher.repository / "parts").iterdir() if path.stat().st_size > 3)
        part.write_bytes(bytes(60_000))
        device.refuses("endless data", "papers.db.zst does not end after the 50000 bytes signed", device.fetch)
    assert not any(path.stat().st_size for path in device.into.glob("*.partial"))


def test_endless_data_in_an_answer_that_leads_elsewhere_is_not_read(publisher: Publisher, device: Device) -> None:
    with serving(publisher.repository) as server:
        part = max((publisher.repository / "parts").iterdir(), key=lambda path: path.stat().st_size).name
        server.redirect = [f"{server.url}/parts/{part}", f"/parts/{part}"]
        device.url = server.url
        device.fetch()
        server.about, server.redirect = "timestamp.json", ["timestamp.json"] * 9
        with pytest.raises(RepositoryError, match="leads on and on"):
            device.look()
        assert len(server.redirect) == 3
        server.redirect = ["file:///etc/hostname"]
        with pytest.raises(RepositoryError, match="at last to file:"):
            device.look()
        assert server.sent < 60_000_000


@pytest.mark.parametrize("about", ["timestamp.json", "parts/"])
def test_slow_retrieval_a_server_that_drips(about: str, publisher: Publisher, device: Device, monkeypatch) -> None:
    monkeypatch.setattr(transport, "WINDOW_S", 0.5)
    with serving(publisher.repository) as server:
        server.about, server.block, server.pause_s = about, 1, 0.02
        device.url = server.url
        device.refuses("slow retrieval", "bytes in .* s; 4096 would be enough", device.fetch)


def test_slow_retrieval_a_server_that_sends_nothing(publisher: Publisher, device: Device, monkeypatch) -> None:
    monkeypatch.setattr(transport, "SILENCE_S", 0.4)
    with serving(publisher.repository) as server:
        server.block, server.pause_s = 10_000, 30.0
        device.url = server.url
        device.refuses("slow retrieval", "sent nothing for", device.fetch)
        server.pause_s = 0.0
        device.fetch()
        assert server.requests[-2][1] == "bytes=10000-", "what had come is kept"


def test_slow_retrieval_an_answer_whose_head_drips(publisher: Publisher, device: Device, monkeypatch) -> None:
    monkeypatch.setattr(transport, "ANSWER_S", 0.5)
    with serving(publisher.repository) as server:
        server.about, server.head_pause_s = "timestamp.json", 0.1
        device.url = server.url
        device.refuses("slow retrieval", "sent nothing for")


def test_slow_retrieval_a_chunk_whose_head_drips(publisher: Publisher, device: Device, monkeypatch) -> None:
    monkeypatch.setattr(transport, "WINDOW_S", 0.5)
    with serving(publisher.repository) as server:
        server.about, server.chunk_heads_drip = "parts/", True
        device.url = server.url
        device.refuses("slow retrieval", "sent nothing for", device.fetch)


# -- clocks ------------------------------------------------------------------------------------------------------------


def test_with_a_clock_that_was_never_set_the_last_trusted_time_counts_and_that_is_said(
    publisher: Publisher, device: Device
) -> None:
    device.now_s = 0.0
    assert device.look() == ["stable/1"]
    assert "the clock says 1970-01-01" in device.problems[0]
    assert "the last trusted time counts, 2026-01-01 00:00 UTC" in device.problems[0]
    device.now_s = NOW_S + 179 * DAY_S
    device.look()
    assert device.problems == []
    device.now_s = 1_000.0
    assert device.look() == ["stable/1"]
    assert "the last trusted time counts, 2027-07-13" in device.problems[0]
    publisher.now_s = BUILD_S + 20 * DAY_S
    bring_up_to_date(publisher.repository, publisher.keys, clock=publisher.clock)
    device.refuses("freeze", "expired on 2026-07-20 .*, and it is 2027-07-13")


def test_a_clock_in_the_future_is_refused_and_leaves_nothing_behind(publisher: Publisher, device: Device) -> None:
    device.look()
    device.now_s = NOW_S + 50 * 365 * DAY_S
    device.refuses("freeze", "and it is 2077-")
    device.now_s = 0.0
    assert device.look() == ["stable/1"]
    assert "2027-01-15" in device.problems[0]


def test_a_clock_somewhat_ahead_is_forgotten_once_it_is_right(publisher: Publisher, device: Device) -> None:
    device.now_s = NOW_S + 170 * DAY_S
    device.look()
    device.now_s = NOW_S + DAY_S
    device.look()
    device.now_s = 0.0
    device.look()
    assert "2027-01-16" in device.problems[0]


def test_a_lost_last_trusted_time_is_the_build_date_and_no_reason_to_stop(publisher: Publisher, device: Device) -> None:
    device.look()
    device.now_s = 5.0
    for damaged in (b"\xff nonsense", b"", b"inf", b"9" * 40):
        (device.trust / "last-trusted").write_bytes(damaged)
        assert device.look() == ["stable/1"]
        assert "2026-01-01" in device.problems[0]
