"""A pack becomes the corpus in use: by hand, from a stick or a repository, killed anywhere, and on full disks."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import run_command
from crash_cases import cases, killed_at
from packed import Operator, command, paper

from agent.cli import cli
from agent.config import load_config
from agent.corpus.packs import open_pack, required_bytes
from agent.corpus.trials import end_trial
from agent.errors import PackError
from agent.search import SearchAPI
from agent.store.faults import FULL_BYTES
from agent.store.generations import FolderLock, current_folder


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    made = Operator(tmp_path_factory.mktemp("operator"))
    made.publish("1", "2", "3")
    return made


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "device"


def ids(data_dir: Path, query: str = "lighthouse keepers", mode: str = "keyword") -> set[str]:
    with SearchAPI(load_config(environment={}, data_dir=data_dir)) as api:
        api.open()
        answer = api.search_sync(query, {"mode": mode, "max_results": 50})
    return {hit["arxiv_id"] for hit in answer["results"] if hit["arxiv_id"].startswith("2611.")}


def version(data_dir: Path) -> str:
    told = json.loads(command("--data-dir", data_dir, "corpus", "stats", "--json"))
    return str(told["version"].partition("+")[0])


def names(*numbers: int) -> set[str]:
    return {paper(number)["arxiv_id"] for number in numbers}


def install(data_dir: Path, source: Path | str, *options: str | Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(command("--data-dir", data_dir, "corpus", "install", source, *options, "--json"))
    return told


def test_a_pack_from_a_stick_is_a_whole_corpus_with_no_key_no_network_and_no_embedding(operator, data_dir) -> None:
    told = install(data_dir, operator.pack("2"))
    assert (told["version"], told["switched"], told["signed"]) == ("2", True, False)
    assert ids(data_dir) == names(*range(10)) == ids(data_dir, mode="semantic")
    stats = json.loads(command("--data-dir", data_dir, "corpus", "stats", "--json"))
    assert stats["papers"] == stats["embedded"] == told["papers"]
    assert json.loads(command("--data-dir", data_dir, "corpus", "verify", "--json")) == {"problems": []}


def test_a_tar_and_a_manifest_are_as_good_as_the_folder(operator, data_dir, tmp_path) -> None:
    archive = tmp_path / "pack.tar"
    subprocess.run(["tar", "-cf", archive, "-C", operator.pack("2"), "."], check=True)
    assert install(data_dir, archive)["switched"]
    assert not install(data_dir, operator.pack("2") / "manifest.json")["switched"], "it is in use already"


def test_the_hashes_of_a_pack_that_is_in_use_are_checked_all_the_same(operator, data_dir, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(operator.pack("2"), copy)
    install(data_dir, copy)
    part = max(copy.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    before = sorted(data_dir.rglob("*"))
    done = run_command("corpus", "install", str(copy), data_dir=data_dir)
    assert done.returncode == 1
    assert part.name.encode() in done.stderr
    assert sorted(data_dir.rglob("*")) == before


def test_a_repository_is_installed_from_by_its_key_and_not_without(operator, data_dir) -> None:
    done = run_command("corpus", "install", str(operator.repository), data_dir=data_dir)
    assert done.returncode == 1
    assert b"--trust" in done.stderr
    told = install(data_dir, operator.repository, "--trust", operator.trust)
    assert (told["version"], told["signed"]) == ("3", True)
    assert ids(data_dir, "notes") >= names(*range(5, 10))


def test_where_a_key_is_configured_a_pack_without_signature_is_refused(operator, data_dir) -> None:
    done = run_command("corpus", "install", str(operator.pack("2")), data_dir=data_dir, **operator.environment())
    assert done.returncode == 1
    assert b"signature" in done.stderr


def test_increments_lead_to_the_same_corpus_as_the_whole_pack(operator, data_dir) -> None:
    install(data_dir, operator.pack("1"))
    for number in ("2", "3"):
        assert install(data_dir, operator.increment(number))["switched"]
        assert version(data_dir) == number
    assert ids(data_dir, "note") == names(*range(5, 10))
    assert ids(data_dir, "harbour masters") == names(5)
    assert json.loads(command("--data-dir", data_dir, "corpus", "verify", "--json")) == {"problems": []}


def test_an_increment_that_builds_upon_another_corpus_is_refused_by_both_names(operator, data_dir) -> None:
    install(data_dir, operator.pack("1"))
    done = run_command("corpus", "install", str(operator.increment("3")), data_dir=data_dir)
    assert done.returncode == 1
    assert b"3" in done.stderr
    assert b"2" in done.stderr
    assert version(data_dir) == "1"


def test_what_the_device_added_and_removed_holds_in_each_pack_and_after_going_back(operator, data_dir) -> None:
    own = paper(77, subject="lighthouse keepers")
    install(data_dir, operator.pack("1"))
    command("--data-dir", data_dir, "corpus", "add", json.dumps(own))
    install(data_dir, operator.pack("2"))
    command("--data-dir", data_dir, "corpus", "remove", paper(9)["arxiv_id"])
    told = install(data_dir, operator.increment("3"))
    assert told["own_changes"] == 2
    assert ids(data_dir, "note") == names(5, 6, 7, 8, 77)
    command("--data-dir", data_dir, "corpus", "rollback")
    assert version(data_dir) == "2"
    assert ids(data_dir, "note") == names(*range(9), 77)


def test_a_pack_that_was_rolled_back_comes_again_only_when_asked_for(operator, data_dir) -> None:
    environment = operator.environment()
    install(data_dir, operator.pack("2"))
    done = run_command("corpus", "sync", "--json", data_dir=data_dir, **environment)
    assert json.loads(done.stdout)["installed"] == ["3"], done.stderr
    command("--data-dir", data_dir, "corpus", "rollback")
    done = run_command("corpus", "sync", "--json", data_dir=data_dir, **environment)
    assert (json.loads(done.stdout)["version"], json.loads(done.stdout)["installed"]) == ("2", [])
    assert "rolled back" in json.loads(done.stdout)["held_back"]
    done = run_command("corpus", "sync", "--version", "3", data_dir=data_dir, **environment)
    assert done.returncode == 1
    assert b"--again" in done.stderr
    done = run_command("corpus", "sync", "--again", "--json", data_dir=data_dir, **environment)
    assert json.loads(done.stdout)["version"] == "3"


def test_a_disk_without_room_is_told_before_anything_is_written(operator, small_disk) -> None:
    data_dir = small_disk / "device"
    install(data_dir, operator.pack("1"))
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"x" * (free - 2_500_000))
    before = sorted(data_dir.rglob("*"))
    done = run_command("corpus", "install", str(operator.pack("2")), data_dir=data_dir)
    assert done.returncode == 1
    assert b"MB are free" in done.stderr
    assert sorted(data_dir.rglob("*")) == before
    filler.unlink()
    assert install(data_dir, operator.pack("2"))["switched"]


def test_the_generation_before_goes_when_there_is_no_room_for_it(operator, small_disk) -> None:
    data_dir = small_disk / "device"
    install(data_dir, operator.pack("1"))
    install(data_dir, operator.pack("2"))
    with open_pack(operator.pack("3")) as pack:
        needed = required_bytes(pack.manifest) + FULL_BYTES
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - needed + 100_000))
    done = run_command("corpus", "install", str(operator.pack("3")), data_dir=data_dir)
    assert done.returncode == 1, "the one in use is on trial, and may have to be given back"
    assert b"MB are free" in done.stderr
    end_trial(current_folder(data_dir))
    install(data_dir, operator.pack("3"))
    assert version(data_dir) == "3"
    done = run_command("corpus", "rollback", data_dir=data_dir)
    assert done.returncode == 0, "the one in use until now is kept"
    assert version(data_dir) == "2"


# -- killed ------------------------------------------------------------------------------------------------------------

PACKS = {"take": Operator.pack, "take-increment": Operator.increment}


@pytest.mark.parametrize(("scenario", "point"), cases("take", "take-increment"))
def test_a_killed_installation_leaves_the_corpus_before_or_the_new_one_and_can_be_done_again(
    scenario: str, point: str, operator, data_dir
) -> None:
    install(data_dir, operator.pack("2"))
    command("--data-dir", data_dir, "corpus", "remove", paper(9)["arxiv_id"])
    pack = PACKS[scenario](operator, "3")
    killed_at(point, "-m", "agent", "--data-dir", str(data_dir), "corpus", "install", str(pack))
    wholly = {"2": names(*range(9)), "3": names(*range(5, 9))}
    assert ids(data_dir, "note") == wholly[version(data_dir)]
    install(data_dir, pack)
    assert (version(data_dir), ids(data_dir, "note")) == ("3", wholly["3"])
    assert json.loads(command("--data-dir", data_dir, "corpus", "verify", "--json")) == {"problems": []}
    left = {path.name for path in (data_dir / "generations").iterdir()}
    assert len(left) == 2, "the one in use and the one before"
    assert current_folder(data_dir).name in left


@pytest.mark.parametrize(("scenario", "point"), cases("sync"))
def test_a_killed_update_from_a_repository_is_gone_on_with(
    scenario: str, point: str, operator, data_dir, monkeypatch
) -> None:
    install(data_dir, operator.pack("2"))
    for name, value in operator.environment().items():
        monkeypatch.setenv(name, value)
    sync = ["-m", "agent", "--data-dir", str(data_dir), "corpus", "sync"]
    killed_at(point, *sync)
    assert version(data_dir) in {"2", "3"}
    command("--data-dir", data_dir, "corpus", "sync")
    assert (version(data_dir), ids(data_dir, "note")) == ("3", names(*range(5, 10)))
    assert not (data_dir / "incoming").exists()


def test_a_part_that_is_damaged_after_it_was_fetched_is_fetched_anew(operator, data_dir, monkeypatch) -> None:
    install(data_dir, operator.pack("2"))
    for name, value in operator.environment().items():
        monkeypatch.setenv(name, value)
    killed_at("installing.make:unpacked", "-m", "agent", "--data-dir", str(data_dir), "corpus", "sync")
    part = next(path for path in (data_dir / "incoming").iterdir() if path.suffix == ".zst")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    done = run_command("corpus", "sync", data_dir=data_dir)
    assert done.returncode == 1
    assert part.name.encode() in done.stderr
    command("--data-dir", data_dir, "corpus", "sync")
    assert version(data_dir) == "3"


def test_what_was_rolled_back_shuts_out_no_later_pack(tmp_path, operator, data_dir, monkeypatch) -> None:
    repository = tmp_path / "repository"
    for pack in (operator.pack("1"), operator.pack("2"), operator.increment("2"), operator.increment("3")):
        command("corpus", "publish", repository, "--pack", pack, "--keys", operator.keys)
    install(data_dir, operator.pack("1"))
    for name, value in operator.environment(REPOSITORY=str(repository)).items():
        monkeypatch.setenv(name, value)
    command("--data-dir", data_dir, "corpus", "sync", "--version", "2")
    command("--data-dir", data_dir, "corpus", "rollback")
    told = json.loads(command("--data-dir", data_dir, "corpus", "sync", "--version", "1", "--json"))
    assert told["installed"] == []
    done = run_command("corpus", "sync", "--json", data_dir=data_dir)
    assert done.returncode == 1, "to 3 there is only a way by 2"
    command("corpus", "publish", repository, "--pack", operator.pack("3"), "--keys", operator.keys)
    assert json.loads(command("--data-dir", data_dir, "corpus", "sync", "--json"))["installed"] == ["3"]


def test_a_pack_that_answers_badly_is_taken_once_and_leaves_nothing(operator, data_dir, monkeypatch) -> None:
    install(data_dir, operator.pack("1"))
    monkeypatch.setattr("agent.corpus.switching.failures_of", lambda _: ["it answers nothing"])
    before = sorted(data_dir.glob("generations/*"))
    for _ in range(2):
        done = CliRunner().invoke(cli, ["--data-dir", str(data_dir), "corpus", "install", str(operator.pack("2"))])
        assert "it answers nothing" in str(done.exception)
        assert sorted(data_dir.glob("generations/*")) == before
    assert isinstance(done.exception, PackError), "not unpacked again"


def test_two_updates_at_a_time_do_not_touch_each_other(operator, data_dir, monkeypatch) -> None:
    install(data_dir, operator.pack("1"))
    with FolderLock(data_dir / "sync.lock") as lock:
        assert lock.acquire()
        done = run_command("corpus", "sync", data_dir=data_dir, **operator.environment())
    assert done.returncode == 1
    assert b"another update" in done.stderr
