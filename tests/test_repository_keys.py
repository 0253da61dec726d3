"""Who publishes keeps keys; what follows from making, losing, stealing and rotating them."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from repositories import DAY_S, NOW_S, Publisher, make_pack

from agent.cli import cli
from agent.errors import RepositoryError
from agent.repository.client import Repository
from agent.repository.keys import make_keys, read_roots, rotate_key
from agent.repository.publishing import bring_up_to_date


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    made = Publisher(tmp_path)
    made.publish("1")
    return made


def seen(publisher: Publisher, name: str = "trust", root: bytes | None = None) -> list[str]:
    with Repository(
        str(publisher.repository),
        publisher.folder / name,
        trusted_root=root or publisher.root,
        clock=publisher.clock,
    ) as repository:
        return [str(release) for release in repository.refresh()]


def take_away(publisher: Publisher, role: str) -> list[Path]:
    """The private keys of a role, as if they lay in a drawer."""
    drawer = publisher.folder / "drawer"
    drawer.mkdir(exist_ok=True)
    return [path.rename(drawer / path.name) for path in publisher.keys.glob(f"{role}-*.pem")]


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_devices_old_and_new_follow_a_rotation_of_any_key(role: str, publisher: Publisher) -> None:
    assert seen(publisher, "old") == ["stable/1"]
    for _ in range(3):
        rotate_key(publisher.keys, role, clock=publisher.clock)
    publisher.publish("2")
    newest = (publisher.keys / "root.json").read_bytes()
    assert seen(publisher, "old") == seen(publisher, "from-the-first") == ["stable/1", "stable/2"]
    assert seen(publisher, "from-the-newest", newest) == ["stable/1", "stable/2"]
    assert seen(publisher, "old", newest) == ["stable/1", "stable/2"], "a root that chains may be given again"
    assert [root.signed.version for root in read_roots(publisher.repository / "metadata")] == [1, 2, 3, 4]


def test_a_newer_root_is_taken_from_hand_to_hand_where_the_repository_does_not_have_it_yet(
    publisher: Publisher,
) -> None:
    seen(publisher, "old")
    rotate_key(publisher.keys, "root", clock=publisher.clock)
    assert seen(publisher, "old", (publisher.keys / "root.json").read_bytes()) == ["stable/1"]
    rotate_key(publisher.keys, "root", clock=publisher.clock)
    rotate_key(publisher.keys, "root", clock=publisher.clock)
    with pytest.raises(RepositoryError, match="version 4, is not of the keys that are trusted here already, version 2"):
        seen(publisher, "old", (publisher.keys / "root.json").read_bytes())


def test_an_older_root_than_the_first_that_was_trusted_may_be_given_if_it_leads_there(
    publisher: Publisher, tmp_path: Path
) -> None:
    for _ in range(3):
        rotate_key(publisher.keys, "root", clock=publisher.clock)
    publisher.publish("2")
    seen(publisher, "device", (publisher.keys / "root.json").read_bytes())
    assert seen(publisher, "device", publisher.root) == ["stable/1", "stable/2"]
    with pytest.raises(RepositoryError, match=r"wrong keys: the root\.json given, version 1, is not"):
        seen(publisher, "device", Publisher(tmp_path / "other").root)


def test_to_sign_again_needs_neither_the_key_of_root_nor_that_of_targets(publisher: Publisher) -> None:
    take_away(publisher, "root")
    take_away(publisher, "targets")
    publisher.now_s += 170 * DAY_S
    bring_up_to_date(publisher.repository, publisher.keys, clock=publisher.clock)
    publisher.now_s += 170 * DAY_S
    assert seen(publisher) == ["stable/1"]
    with pytest.raises(RepositoryError, match=r"does not hold the private key of targets, targets-\w{8}\.pem"):
        publisher.publish("2")
    with pytest.raises(RepositoryError, match="does not hold the private key of root"):
        rotate_key(publisher.keys, "timestamp", clock=publisher.clock)
    assert seen(publisher) == ["stable/1"]


def test_targets_are_signed_again_in_time_where_their_key_is_at_hand(publisher: Publisher) -> None:
    for _ in range(5):
        publisher.now_s += 120 * DAY_S
        bring_up_to_date(publisher.repository, publisher.keys, clock=publisher.clock)
        assert seen(publisher) == ["stable/1"]


def test_a_lost_key_is_replaced_with_that_of_root(publisher: Publisher) -> None:
    seen(publisher, "old")
    take_away(publisher, "targets")
    rotate_key(publisher.keys, "targets", clock=publisher.clock)
    publisher.publish("2")
    assert seen(publisher, "old") == seen(publisher, "new") == ["stable/1", "stable/2"]


def test_of_several_root_keys_any_one_suffices(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "one")
    publisher.keys = tmp_path / "keys"
    root = make_keys(publisher.keys, clock=publisher.clock, root_keys=3)
    assert len(root.roles["root"].keyids) == len(list(publisher.keys.glob("root-*.pem"))) == 3
    publisher.publish("1")
    seen(publisher, "old")
    lost = take_away(publisher, "root")
    lost[1].rename(publisher.keys / lost[1].name)
    rotate_key(publisher.keys, "root", clock=publisher.clock)
    rotate_key(publisher.keys, "timestamp", clock=publisher.clock)
    bring_up_to_date(publisher.repository, publisher.keys, clock=publisher.clock)
    assert seen(publisher, "old") == ["stable/1"]


def test_keys_of_another_repository_publish_nothing(publisher: Publisher, tmp_path: Path) -> None:
    other = Publisher(tmp_path / "other")
    other.repository = publisher.repository
    with pytest.raises(RepositoryError, match="are not those of the repository"):
        other.publish("2")
    assert seen(publisher) == ["stable/1"]


def test_a_repository_that_somebody_else_has_changed_is_not_signed_again(publisher: Publisher) -> None:
    path = publisher.repository / "metadata" / "1.targets.json"
    path.write_bytes(path.read_bytes().replace(b"stable/1/", b"stable/9/"))
    with pytest.raises(RepositoryError, match="is damaged, or was signed by other keys"):
        publisher.publish("2")


def test_a_manifest_of_which_the_repository_says_something_else_is_not_taken(publisher: Publisher) -> None:
    with Repository(
        str(publisher.repository), publisher.folder / "trust", trusted_root=publisher.root, clock=publisher.clock
    ) as repository:
        (release,) = repository.refresh()
        with pytest.raises(RepositoryError, match="is not what the repository says of it"):
            repository.fetch(msgspec.structs.replace(release, version="2"), publisher.folder / "into")
        with pytest.raises(RepositoryError, match="is not in the repository any more"):
            repository.manifest(msgspec.structs.replace(release, target="stable/2/x/manifest.json"))


def test_nothing_is_signed_by_a_clock_that_was_never_set(publisher: Publisher) -> None:
    publisher.now_s = 0.0
    with pytest.raises(RepositoryError, match="the clock says 1970-01-01: set it before signing"):
        publisher.publish("2")
    publisher.now_s = NOW_S
    assert seen(publisher) == ["stable/1"]


def test_the_commands_make_publish_rotate_refresh_and_withdraw(tmp_path: Path) -> None:
    def run(*arguments: str) -> dict[str, object]:
        done = CliRunner().invoke(cli, ["corpus", *arguments, "--json"])
        assert done.exit_code == 0, done.output
        answer: dict[str, object] = json.loads(done.output)
        return answer

    keys, repository = str(tmp_path / "keys"), str(tmp_path / "repository")
    made = run("keys", keys)
    assert run("keys", keys) == made
    first = make_pack(tmp_path / "one", "1")
    make_pack(tmp_path / "two", "2", base=first)
    signing = ["publish", repository, "--keys", keys]
    assert run(*signing, "--pack", str(tmp_path / "one"))["published"]["number"] == 1
    assert run(*signing, "--pack", str(tmp_path / "two"), "--channel", "test")["published"]["base"]["version"] == "1"
    assert run("keys", keys, "--rotate", "snapshot", "--repository", repository)["version"] == 2
    assert set(run(*signing, "--refresh", "--expires-days", "30")["expires"]) == {"root", "targets", "timestamp"}
    assert run(*signing, "--withdraw", "test/2")["withdrawn"] == 1
    with Repository(
        repository, tmp_path / "trust", trusted_root=(tmp_path / "keys" / "root.json").read_bytes()
    ) as seen_by:
        assert [str(release) for release in seen_by.refresh()] == ["stable/1"]
    for wrong in (signing, [*signing, "--refresh", "--withdraw", "a/b"], ["keys", keys, "--repository", repository]):
        assert CliRunner().invoke(cli, ["corpus", *wrong]).exit_code == 2
    shown = CliRunner().invoke(cli, ["corpus", "keys", keys]).output
    assert str(tmp_path / "keys" / "root.json") in shown
    assert "drawer" in shown


def test_the_client_loads_no_library_of_the_cloud() -> None:
    code = "import agent.repository.client, sys; print('boto3' in sys.modules); import boto3"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
