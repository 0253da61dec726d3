"""A disk that is full or read-only: the agent answers, says so, refuses politely, and recovers without a restart."""

import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import AgentProcess, run_command, wait_until
from test_damage import ANSWER, PAPERS, QUESTION, Watched, generations, head, is_whole, row, watch  # noqa: F401

UPDATES = "arxplorer/corpus/updates"


class Disk:
    """A small file system of its own, with a corpus on it."""

    def __init__(self, mount: Path, data_dir: Path) -> None:
        """With a copy of `data_dir`; logs and the like are kept elsewhere."""
        self.mount = mount
        self.data_dir = mount.parent / "home" / "data"
        self.data_dir.parent.mkdir()
        self.data_dir.symlink_to(mount / "data")
        shutil.copytree(data_dir, mount / "data", symlinks=True)

    def fill(self) -> None:
        with (self.mount / "fill").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(65_536))

    def empty(self) -> None:
        (self.mount / "fill").unlink()

    def remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.mount], check=True)


def mounted(mount: Path, *arguments: str) -> bool:
    mount.mkdir()
    return not subprocess.run(["mount", *arguments, mount], capture_output=True).returncode


@pytest.fixture
def disk(small_disk: Path, sample_data_dir: Path) -> Disk:
    return Disk(small_disk, sample_data_dir)


def update(number: int) -> dict[str, Any]:
    return {"add": [{"arxiv_id": f"2401.{number:05d}", "title": f"Quokka{number}", "abstract": "Fish. " * 1_000}]}


def assert_answers(watched: Watched) -> None:
    for mode in ("hybrid", "semantic", "keyword"):
        assert watched.first({**QUESTION, "filters": {"mode": mode}}) == ANSWER, mode


def assert_refuses(watched: Watched, reason: str) -> None:
    error = watched.client.ask(update(99), UPDATES)["error"]
    assert error["code"] == "not_ready"
    assert reason in error["message"]


def has(watched: Watched, papers: int) -> bool:
    """Whether so many papers, or more, are there and embedded, and nothing is wrong with the corpus."""
    details = watched.report()["details"]
    corpus = details["corpus"]
    # Of agent.db the outbox speaks for itself, and longer.
    quiet = all("agent.db" in problem for problem in details["problems"])
    return bool(quiet and corpus["papers"] == corpus["embedded"] >= papers)


def assert_takes_updates(watched: Watched) -> None:
    wait_until(lambda: "added" in watched.client.ask(update(1), UPDATES))
    wait_until(lambda: watched.first({"query": "quokka1", "filters": {"mode": "keyword"}}) == "2401.00001")
    wait_until(lambda: has(watched, papers=PAPERS + 1))
    assert_answers(watched)


def test_an_agent_whose_disk_fills_up_answers_and_takes_updates_again_when_there_is_room(watch, disk: Disk) -> None:  # noqa: F811
    watched = watch(disk.data_dir)
    assert watched.status()["details"]["disk_free_mb"] > 2
    rows = "\n".join(json.dumps(record) for number in range(40) for record in update(100 + number)["add"])
    disk.fill()
    assert_answers(watched)
    assert_refuses(watched, "the disk is full")
    report = watched.status("the disk is full")
    assert (report["status"], report["details"]["disk_free_mb"]) == ("degraded", 0.0)
    assert watched.agent.process.poll() is None
    disk.empty()
    # Papers without vectors, and no room for the vectors: embedding fails quietly, and is done later.
    assert (
        run_command("corpus", "import", "-", "--no-embed", data_dir=disk.data_dir, stdin=rows.encode()).returncode == 0
    )
    disk.fill()
    assert_answers(watched)
    watched.status("the disk is full")
    disk.empty()
    assert_takes_updates(watched)
    wait_until(lambda: has(watched, papers=PAPERS + 41))
    assert watched.agent.stop() == 0
    log = watched.agent.log.read_text()
    assert log.count("nothing can be stored until this changes") <= 2, "said once for each time"
    assert "Traceback" not in log
    assert is_whole(disk.data_dir)


def test_an_agent_starts_on_a_full_disk_and_answers(watch, disk: Disk) -> None:  # noqa: F811
    disk.fill()
    watched = watch(disk.data_dir)
    assert_answers(watched)
    assert_refuses(watched, "the disk is full")
    report = watched.status("the disk is full")
    assert (report["status"], report["details"]["disk_free_mb"]) == ("degraded", 0.0)
    assert report["details"]["corpus"] == {"papers": PAPERS, "embedded": PAPERS, "version": f"local+{PAPERS}"}
    disk.empty()
    assert_takes_updates(watched)
    assert watched.agent.stop() == 0
    log = watched.agent.log.read_text()
    assert (log.count("keeper: nothing can be stored"), "Traceback" in log) == (1, False)


def test_an_agent_starts_on_a_read_only_disk_and_answers(watch, disk: Disk) -> None:  # noqa: F811
    disk.remount("ro")
    watched = watch(disk.data_dir)
    assert_answers(watched)
    assert_refuses(watched, "Read-only file system")
    assert watched.status("the disk is read-only")["status"] == "degraded"
    disk.remount("rw")
    assert_takes_updates(watched)
    assert watched.agent.stop() == 0
    assert "Traceback" not in watched.agent.log.read_text()


def test_a_read_only_disk_without_a_corpus_gets_one_once_it_can_be_written(watch, disk: Disk) -> None:  # noqa: F811
    shutil.rmtree(disk.data_dir / "generations")
    (disk.data_dir / "current").unlink()
    disk.remount("ro")
    watched = watch(disk.data_dir)
    assert watched.client.ask(QUESTION)["error"]["code"] == "not_ready"
    watched.status("the disk is read-only")
    disk.remount("rw")
    wait_until(lambda: generations(disk.data_dir) if (disk.data_dir / "generations").exists() else [])
    assert run_command("corpus", "import", "--sample", data_dir=disk.data_dir).returncode == 0
    wait_until(lambda: watched.first() == ANSWER)


def test_papers_that_there_is_no_room_to_heal_are_healed_when_there_is(watch, disk: Disk) -> None:  # noqa: F811
    watched = watch(disk.data_dir)
    disk.fill()
    row(watched.papers)
    assert watched.first() != ANSWER
    watched.status("papers.db is damaged", "the disk is full", "healing papers.db takes")
    assert watched.client.ask(QUESTION)["results"], "the others are still answers"
    disk.empty()
    watched.status("148 papers saved, 1 lost")
    assert watched.agent.stop() == 0
    assert (generations(disk.data_dir), is_whole(disk.data_dir)) == (["0002"], True)


def test_a_head_lost_on_a_full_disk_does_not_end_the_agent(watch, disk: Disk) -> None:  # noqa: F811
    head(disk.data_dir / "current" / "papers.db")
    disk.fill()
    watched = watch(disk.data_dir)
    assert watched.client.ask(QUESTION)["error"]["code"] == "not_ready"
    watched.status("papers.db is damaged", "healing papers.db takes")
    disk.empty()
    watched.status(f"{PAPERS} papers saved, 0 lost")
    wait_until(lambda: watched.first() == ANSWER)


def test_a_card_that_fails_while_the_agent_runs_leaves_it_answering(watch, tmp_path: Path, sample_data_dir) -> None:  # noqa: F811
    """The kernel makes a file system read-only under whoever writes on it, when it has found an error."""
    image, mount = tmp_path / "card.img", tmp_path / "card"
    image.touch()
    os.truncate(image, 64 * 1024 * 1024)
    made = not subprocess.run(["mkfs.ext4", "-q", "-F", image], capture_output=True).returncode
    if not made or not mounted(mount, "-o", "loop,errors=remount-ro", str(image)):
        pytest.skip("needs the right to mount a loop device")
    try:
        device = subprocess.run(["findmnt", "-no", "SOURCE", mount], capture_output=True, text=True).stdout.strip()
        trigger = Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
        if not device.startswith("/dev/loop") or not trigger.exists():
            pytest.skip("needs ext4's trigger for errors")
        watched = watch(Disk(mount, sample_data_dir).data_dir)
        assert_answers(watched)
        trigger.write_text("test")
        assert_answers(watched)
        assert_refuses(watched, "read")  # "-only" or "only", as the kernel is quick to say it everywhere
        wait_until(lambda: watched.report()["status"] == "degraded")
        assert watched.agent.stop() == 0
        assert "Traceback" not in watched.agent.log.read_text()
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def test_a_limit_on_the_size_of_files_is_as_good_as_a_full_disk(watch, sample_data_dir: Path) -> None:  # noqa: F811
    watched = watch(sample_data_dir)
    limited(watched.agent, "4096")
    assert_answers(watched)
    error = watched.client.ask(update(99), UPDATES)["error"]
    assert error["code"] == "not_ready"
    watched.status("disk I/O error")
    limited(watched.agent, "unlimited")
    assert_takes_updates(watched)
    assert watched.agent.stop() == 0


def limited(agent: AgentProcess, size: str) -> None:
    subprocess.run(["prlimit", f"--pid={agent.process.pid}", f"--fsize={size}:unlimited"], check=True)
