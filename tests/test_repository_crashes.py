"""kill -9 of a publisher or a download at any step: readers find the former state or the new one, and it can be done again."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from crash_cases import cases, killed_at
from repositories import Publisher, make_pack, serving

from agent.cli import cli
from agent.errors import RepositoryError
from agent.repository.client import Repository
from agent.repository.keys import make_keys


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    made = Publisher(tmp_path)
    made.now_s = time.time()  # as that of the processes that are killed
    return made


def releases(publisher: Publisher, name: str) -> list[str]:
    """What a device sees, each pack fetched and verified."""
    with Repository(
        str(publisher.repository), publisher.folder / name, trusted_root=publisher.root, clock=publisher.clock
    ) as repository:
        found = repository.refresh()
        for release in found:
            repository.fetch(release, publisher.folder / f"{name}-into")
        return [str(release) for release in found]


def run(*command: str) -> None:
    done = CliRunner().invoke(cli, ["corpus", *command])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(("scenario", "point"), cases("begin", "publish", "withdraw"))
def test_a_repository_is_the_former_or_the_new_one_after_a_kill(
    scenario: str, point: str, publisher: Publisher, tmp_path: Path
) -> None:
    make_pack(tmp_path / "pack", "2")
    command = ["publish", str(publisher.repository), "--keys", str(publisher.keys)]
    command += ["--withdraw", "stable/1"] if scenario == "withdraw" else ["--pack", str(tmp_path / "pack")]
    before: list[str] = []
    after = ["stable/2"]
    if scenario != "begin":
        publisher.publish("1")
        before = releases(publisher, "former")
    if scenario == "publish":
        after = ["stable/1", "stable/2"]
    if scenario == "withdraw":
        publisher.publish("2")
        before = ["stable/1", "stable/2"]
    killed_at(point, "-m", "agent", "corpus", *command)
    for name in ("former", "new"):
        try:
            assert releases(publisher, name) in (before, after)
        except RepositoryError as error:
            assert scenario == "begin", error
            assert "timestamp metadata cannot be fetched" in error.message
    if scenario == "withdraw":
        command[-2:] = ["--refresh"] if releases(publisher, "new") == after else command[-2:]
    run(*command)
    assert releases(publisher, "former") == releases(publisher, "new") == after
    assert not [path for path in publisher.repository.rglob(".*") if path.suffix == ".tmp"]


@pytest.mark.parametrize(
    ("role", "point"),
    [
        *(pytest.param("targets", *case.values[1:], id=case.id) for case in cases("rotate")),
        ("root", "publishing.roots:between:1"),
        ("timestamp", "publishing.commit:no-new-root:1"),
    ],
)
def test_devices_follow_a_rotation_of_keys_that_was_killed(role: str, point: str, publisher: Publisher) -> None:
    publisher.publish("1")
    releases(publisher, "former")
    keys, repository = str(publisher.keys), str(publisher.repository)
    killed_at(point, "-m", "agent", "corpus", "keys", keys, "--rotate", role, "--repository", repository)
    assert releases(publisher, "former") == releases(publisher, "new") == ["stable/1"]
    run("publish", repository, "--keys", keys, "--refresh")
    assert releases(publisher, "former") == releases(publisher, "new") == ["stable/1"]
    publisher.publish("2")
    assert releases(publisher, "former") == releases(publisher, "new") == ["stable/1", "stable/2"]


@pytest.mark.parametrize(("scenario", "point"), cases("make"))
def test_keys_are_whole_after_a_kill_and_none_is_made_twice(scenario: str, point: str, tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "a")
    publisher.keys = tmp_path / "keys"
    killed_at(point, "-m", "agent", "corpus", "keys", str(publisher.keys))
    made = {path.name: path.read_bytes() for path in publisher.keys.glob("*.pem")}
    for _ in range(2):
        run("keys", str(publisher.keys))
        assert {name: (publisher.keys / name).read_bytes() for name in made} == made
        assert len(list(publisher.keys.glob("*.pem"))) == 4
    make_keys(publisher.keys, clock=publisher.clock)
    assert not list(publisher.keys.glob(".*"))
    publisher.publish("1")
    assert releases(publisher, "new") == ["stable/1"]


FETCH = """
import sys
from pathlib import Path
from agent.repository.client import Repository
url, trust, root, into = sys.argv[1:]
with Repository(url, Path(trust), trusted_root=Path(root).read_bytes()) as repository:
    repository.fetch(repository.refresh()[-1], Path(into))
"""
SIZES = (9_000_000, 5_000)


@pytest.mark.parametrize(("scenario", "point"), cases("fetch"))
def test_a_download_goes_on_after_a_kill_and_fetches_nothing_twice(
    scenario: str, point: str, publisher: Publisher, tmp_path: Path
) -> None:
    publisher.publish("1", sizes=SIZES)
    root = str(publisher.keys / "root.json")
    with serving(publisher.repository) as server:
        command = ["-c", FETCH, server.url, str(tmp_path / "trust"), root, str(tmp_path / "into")]
        killed_at(point, *command)
        had = sum(path.stat().st_size for path in (tmp_path / "into").glob("*.zst*"))
        server.sent = 0
        subprocess.run([sys.executable, *command], check=True, timeout=120)
        sent = server.sent
    packed = {path.name: path.read_bytes() for path in (tmp_path / "packs" / "stable-1-0").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "into").iterdir()} == packed
    assert sum(SIZES) <= had + sent < sum(SIZES) + 10_000
