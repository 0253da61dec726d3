"""A pack goes from its publisher to a device, over HTTPS, HTTP or a folder, and comes whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import trustme
from conftest import wait_until
from repositories import NOW_S, Publisher, make_pack, serving

from agent.errors import PackError, RepositoryError, ShortageError, StoppedError
from agent.repository import download, transport
from agent.repository.client import Repository
from agent.repository.publishing import bring_up_to_date, publish, withdraw
from agent.repository.transport import Rate


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE_S", 0.01)


def device(publisher: Publisher, url: str | None = None, **options: object) -> Repository:
    options.setdefault("clock", publisher.clock)
    options.setdefault("trusted_root", publisher.root)
    return Repository(url or str(publisher.repository), publisher.folder / "trust", **options)


def packs_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["folder", "file", "http", "https"])
def test_a_published_pack_arrives_as_it_was(kind: str, publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish("1")
    ca, ca_file = trustme.CA(), tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(ca_file)
    seen: list[tuple[int, int]] = []
    with serving(publisher.repository, tls=ca if kind == "https" else None) as server:
        url = {"folder": str(publisher.repository), "file": publisher.repository.as_uri()}.get(kind, server.url)
        with device(publisher, url, ca_cert=str(ca_file)) as repository:
            (release,) = repository.refresh()
            assert (release.channel, release.version, release.number, release.bytes) == ("stable", "1", 1, 50_003)
            repository.fetch(release, tmp_path / "into", progress=lambda *now: seen.append(now))
    assert packs_of(tmp_path / "into") == packs_of(tmp_path / "packs" / "stable-1-0")
    assert seen[-1] == (50_003, 50_003)
    assert repository.problems == []


def test_a_server_whose_certificate_is_not_trusted_gets_no_request(publisher: Publisher) -> None:
    publisher.publish("1")
    with serving(publisher.repository, tls=trustme.CA()) as server, device(publisher, server.url) as repository:
        with pytest.raises(RepositoryError, match="no safe connection") as refused:
            repository.refresh()
        assert server.requests == []
    assert refused.value.attack is None


def test_all_releases_of_all_channels_are_seen_and_parts_lie_there_once(publisher: Publisher, tmp_path: Path) -> None:
    first = publisher.publish("1")
    publisher.publish("2", base=first, categories=("cs.LG", "cs.CL"))
    publisher.publish("1", channel="test")
    with device(publisher) as repository:
        found = repository.refresh()
        assert [(str(one), one.number) for one in found] == [("stable/1", 1), ("stable/2 (since 1)", 2), ("test/1", 3)]
        assert found[1].categories == ("cs.CL", "cs.LG")
        assert found[1].base is not None
        assert found[1].base.contents == first.contents == repository.manifest(found[2]).contents
    assert len(list((publisher.repository / "parts").iterdir())) == 4


def test_a_connection_that_is_cut_is_gone_on_with_and_nothing_comes_twice(publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish("1", sizes=(300_000,))
    with serving(publisher.repository) as server, device(publisher, server.url) as repository:
        (release,) = repository.refresh()
        before = server.sent
        server.cut_after = [100_000, 0, 70_001]
        repository.fetch(release, tmp_path / "into")
        ranges = [wanted for path, wanted in server.requests if "parts/" in path]
    assert ranges == [None, "bytes=100000-", "bytes=100000-", "bytes=170001-"]
    assert packs_of(tmp_path / "into") == packs_of(tmp_path / "packs" / "stable-1-0")
    assert server.sent - before < 301_500


def test_a_link_that_breaks_all_the_time_is_given_up_and_what_came_is_kept(
    publisher: Publisher, tmp_path: Path
) -> None:
    publisher.publish("1", sizes=(300_000,))
    with serving(publisher.repository) as server, device(publisher, server.url) as repository:
        (release,) = repository.refresh()
        server.cut_after = [1_000] * 6
        with pytest.raises(RepositoryError, match="broke off"):
            repository.fetch(release, tmp_path / "into")
        assert (tmp_path / "into" / "papers.db.zst.partial").stat().st_size == 6_000
        repository.fetch(release, tmp_path / "into")
        assert server.requests[-1][1] == "bytes=6000-"
    assert packs_of(tmp_path / "into") == packs_of(tmp_path / "packs" / "stable-1-0")


def test_a_server_that_knows_no_ranges_starts_the_part_again(publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish("1", sizes=(300_000,))
    seen: list[int] = []
    with serving(publisher.repository) as server, device(publisher, server.url) as repository:
        (release,) = repository.refresh()
        server.ranges, server.cut_after = False, [100_000]
        repository.fetch(release, tmp_path / "into", progress=lambda done, _: seen.append(done))
    assert packs_of(tmp_path / "into") == packs_of(tmp_path / "packs" / "stable-1-0")
    assert seen[-1] == max(seen) == 300_000


def test_a_damaged_beginning_is_noticed_and_fetched_anew_once(publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish("1", sizes=(300_000,))
    into = tmp_path / "into"
    with serving(publisher.repository) as server, device(publisher, server.url) as repository:
        (release,) = repository.refresh()
        server.cut_after = [100_000] * 6
        server.ranges = False
        with pytest.raises(RepositoryError):
            repository.fetch(release, into)
        (into / "papers.db.zst.partial").write_bytes(bytes(100_000))
        server.ranges = True
        seen: list[int] = []
        repository.fetch(release, into, progress=lambda done, _: seen.append(done))
        assert [wanted for path, wanted in server.requests if "parts/" in path][-2:] == ["bytes=100000-", None]
    assert packs_of(into) == packs_of(tmp_path / "packs" / "stable-1-0")
    assert seen[-1] == 300_000


def test_the_page_of_a_network_that_wants_a_log_in_costs_nothing_that_had_come(
    publisher: Publisher, tmp_path: Path
) -> None:
    publisher.publish("1", sizes=(300_000,))
    partial = tmp_path / "into" / "papers.db.zst.partial"
    (tmp_path / "harbour" / "parts").mkdir(parents=True)
    with serving(publisher.repository) as server, device(publisher, server.url) as repository:
        (release,) = repository.refresh()
        server.cut_after = [40_000] * 6
        with pytest.raises(RepositoryError, match="broke off"):
            repository.fetch(release, tmp_path / "into")
        (part,) = (publisher.repository / "parts").iterdir()
        (tmp_path / "harbour" / "parts" / part.name).write_bytes(b"<html>Welcome!</html>")
        server.folder, server.ranges, server.about = tmp_path / "harbour", False, "parts/"
        (tmp_path / "harbour" / "targets").symlink_to(publisher.repository / "targets")
        with pytest.raises(RepositoryError, match=r"papers\.db\.zst has 21 bytes, 300000 were signed"):
            repository.fetch(release, tmp_path / "into")
        assert partial.read_bytes() == part.read_bytes()[: partial.stat().st_size]
        assert partial.stat().st_size == 240_000
        server.folder, server.ranges = publisher.repository, True
        repository.fetch(release, tmp_path / "into")
    assert packs_of(tmp_path / "into") == packs_of(tmp_path / "packs" / "stable-1-0")


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_server_in_trouble_is_no_attack_and_the_next_attempt_goes_on(
    status: int, publisher: Publisher, tmp_path: Path
) -> None:
    publisher.publish("1")
    with serving(publisher.repository) as server, device(publisher, server.url) as repository:
        (release,) = repository.refresh()
        server.status = [status]
        with pytest.raises(RepositoryError, match=str(status)) as refused:
            repository.fetch(release, tmp_path / "into")
        assert refused.value.attack is None
        repository.fetch(release, tmp_path / "into")
        assert len(packs_of(tmp_path / "into")) == 3
        server.about, server.status = "timestamp", [status]
        with pytest.raises(RepositoryError):
            repository.refresh()
        assert len(repository.refresh()) == 1


def test_parts_that_another_release_left_are_kept_if_they_are_the_same(publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish("1")
    second = publisher.publish("2", sizes=(60_000, 3))
    into = tmp_path / "into"
    with serving(publisher.repository) as server, device(publisher, server.url) as repository:
        one, two = repository.refresh()
        repository.fetch(one, into)
        (into / "of-nobody").mkdir()
        (into / "papers.db.zst.partial").write_bytes(b"of another")
        same = second.parts[1].name
        (into / same).write_bytes((tmp_path / "packs" / "stable-2-1" / same).read_bytes())
        server.requests.clear()
        repository.fetch(two, into)
        assert [path for path, _ in server.requests if "parts/" in path] == [f"/parts/{second.parts[0].sha256}"]
    assert packs_of(into) == packs_of(tmp_path / "packs" / "stable-2-1")


def test_it_stops_when_asked_and_goes_on_from_there(publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish("1", sizes=(500_000,))
    with serving(publisher.repository) as server, device(publisher, server.url) as repository:
        (release,) = repository.refresh()
        calls = count()
        with pytest.raises(StoppedError):
            repository.fetch(release, tmp_path / "into", stop=lambda: next(calls) >= 2)
        kept = (tmp_path / "into" / "papers.db.zst.partial").stat().st_size
        assert 0 < kept < 500_000
        repository.fetch(release, tmp_path / "into")
        assert server.requests[-1][1] == f"bytes={kept}-"


FETCHER = """
import sys
from pathlib import Path
from agent.repository.client import Repository
url, trust, root, into = sys.argv[1:]
with Repository(url, Path(trust), trusted_root=Path(root).read_bytes(), clock=lambda: %r) as repository:
    repository.fetch(repository.refresh()[-1], Path(into))
"""


def test_a_download_whose_process_is_killed_again_and_again_goes_on_where_it_was(
    publisher: Publisher, tmp_path: Path
) -> None:
    publisher.publish("1", sizes=(2_000_000, 1_000_000))
    into, partial = tmp_path / "into", 0
    arguments = [sys.executable, "-c", FETCHER % NOW_S]
    with serving(publisher.repository) as server:
        arguments += [server.url, str(tmp_path / "trust"), str(publisher.keys / "root.json"), str(into)]
        server.pause_s, server.block = 0.01, 20_000
        for step in (300_000, 1_200_000):
            running = subprocess.Popen(arguments)
            wait_until(lambda step=step: sum(path.stat().st_size for path in into.glob("*.zst*")) >= step)
            running.send_signal(signal.SIGKILL)
            running.wait()
            partial = sum(path.stat().st_size for path in into.glob("*.zst*"))
            assert partial < 3_000_000
        server.pause_s = 0.0
        subprocess.run(arguments, check=True, timeout=60)
        firsts = [int(wanted[6:-1]) for path, wanted in server.requests if wanted]
    assert firsts == sorted(firsts)
    assert len(firsts) == 2
    assert packs_of(into) == packs_of(tmp_path / "packs" / "stable-1-0")


def test_the_rate_holds_on_average_whatever_the_pauses() -> None:
    now = 0.0
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds

    rate = Rate(10_000, now=lambda: now, sleep=sleep)
    for _ in range(50):
        rate.take(rate.block)
        now += 0.3
    assert now == pytest.approx(50, abs=1.0)
    assert max(waits) <= 1.0
    now += 1_000
    waits.clear()
    for _ in range(10):
        rate.take(10_000)
    assert sum(waits) == pytest.approx(9.0), "an idle hour allows no burst"
    assert Rate(0).block == transport.BLOCK_BYTES


def test_a_download_takes_no_more_of_the_link_than_it_may(publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish("1", sizes=(150_000,))
    with serving(publisher.repository) as server, device(publisher, server.url, rate_kib_s=64) as repository:
        (release,) = repository.refresh()
        began = time.monotonic()
        repository.fetch(release, tmp_path / "into")
        assert time.monotonic() - began >= 150_000 / 65_536 - 1, "but for the one second that is saved up"


def test_a_full_disk_is_said_to_be_full_and_the_download_goes_on_when_there_is_room(
    publisher: Publisher, small_disk: Path
) -> None:
    publisher.publish("1", sizes=(9_000_000,))
    filling = small_disk / "fill"
    with serving(publisher.repository) as server, device(publisher, server.url) as repository:
        (release,) = repository.refresh()
        filling.write_bytes(bytes(20_000_000))
        with pytest.raises(ShortageError, match="cannot be written: No space left"):
            repository.fetch(release, small_disk / "into")
        filling.unlink()
        repository.fetch(release, small_disk / "into")
        assert server.requests[-1][1] is not None
    assert packs_of(small_disk / "into") == packs_of(publisher.folder / "packs" / "stable-1-0")


# -- the publisher -----------------------------------------------------------------------------------------------------


def test_the_same_version_with_other_contents_is_refused_and_the_same_pack_is_not(publisher: Publisher) -> None:
    first = publisher.publish("1")
    publisher.publish("1")
    before = {path: path.read_bytes() for path in publisher.repository.rglob("*") if path.is_file()}
    with pytest.raises(RepositoryError, match="stable/1 is published already, with other contents"):
        publisher.publish("1", seed="other")
    with pytest.raises(RepositoryError, match="stable/1 is published already, packed in another way"):
        publisher.publish("1", sizes=(40_000, 3))
    assert before == {path: path.read_bytes() for path in publisher.repository.rglob("*") if path.is_file()}
    publisher.publish("1", base=first)
    publisher.publish("1", model="bge-small-en-v1.5")
    publisher.publish("1", categories=("cs.CL",))
    with device(publisher) as repository:
        assert [release.number for release in repository.refresh()] == [1, 2, 3, 4]


def test_a_pack_that_is_not_as_its_manifest_says_is_not_published(publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish("1")
    make_pack(tmp_path / "pack", "2")
    (tmp_path / "pack" / "papers.db.zst").write_bytes(b"something else")
    with pytest.raises(PackError, match="the pack's manifest says 50000"):
        publish(publisher.repository, tmp_path / "pack", publisher.keys, clock=publisher.clock)
    with pytest.raises(RepositoryError, match="cannot be a channel"):
        publisher.publish("2", channel="../stable")
    with device(publisher) as repository:
        assert [str(release) for release in repository.refresh()] == ["stable/1"]
    assert not [path for path in (publisher.repository / "parts").iterdir() if path.suffix]


def test_a_withdrawn_version_is_gone_with_its_files_and_what_others_share_stays(publisher: Publisher) -> None:
    first = publisher.publish("1")
    publisher.publish("1", base=first, sizes=(100, 3))
    publisher.publish("1", channel="test")
    publisher.publish("2")
    with pytest.raises(RepositoryError, match=r"it has: stable/1, stable/2, test/1"):
        withdraw(publisher.repository, publisher.keys, "stable", "3", clock=publisher.clock)
    gone, _ = withdraw(publisher.repository, publisher.keys, "stable", "1", clock=publisher.clock)
    assert gone == 2
    with device(publisher) as repository:
        left = repository.refresh()
        assert [(str(release), release.number) for release in left] == [("test/1", 3), ("stable/2", 4)]
        for release in left:
            repository.fetch(release, publisher.folder / "into")
    assert len(list((publisher.repository / "parts").iterdir())) == 4
    publisher.publish("1", seed="other")
    with device(publisher) as repository:
        assert repository.refresh()[-1].number == 6, "no number is used again"


def test_old_metadata_does_not_pile_up(publisher: Publisher) -> None:
    publisher.publish("1")
    for _ in range(40):
        bring_up_to_date(publisher.repository, publisher.keys, clock=publisher.clock)
    metadata = publisher.repository / "metadata"
    assert len(list(metadata.glob("*.snapshot.json"))) == 32
    with device(publisher) as repository:
        assert len(repository.refresh()) == 1


def test_files_for_the_web_server_are_readable_and_keys_are_not(publisher: Publisher) -> None:
    publisher.publish("1")
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in publisher.repository.rglob("*") if path.is_file())
    assert {path.stat().st_mode & 0o777 for path in publisher.keys.glob("*.pem")} == {0o600}
    assert publisher.keys.stat().st_mode & 0o777 == 0o700
    assert os.access(publisher.keys / "root.json", os.R_OK)
