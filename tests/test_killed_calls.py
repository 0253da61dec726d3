"""kill -9 at the system calls that write, and errors in their place: whatever the libraries do between our own steps.

strace counts the calls of each thread by itself: of several threads the first that comes to its Nth call ends it.
"""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import crash_outbox
import pytest
from crash_corpus import Corpora

GROUPS = {
    "sync": ("fsync", "fdatasync"),
    "write": ("write", "pwrite64"),
    "rename": ("rename", "renameat", "renameat2"),
    "shrink": ("unlink", "unlinkat", "ftruncate"),
}
SAID = ("I/O error", "Input/output error", "disk is full", "No space left on device", "cannot be written")
"""By the system, SQLite (which takes some full disks for broken ones), and us where usearch and numpy do not say more."""
KILLS = int(os.environ.get("ARXPLORER_TEST_KILLS", "3"))
"""At so many of each call, spread over all of them; a large number kills at every one."""
_SAYING_FAILED = re.compile(r"write\([12],.*\(INJECTED\)")
_LINE = re.compile(r"^(\d+) +(\w+)\((\d+)?", re.MULTILINE)


def strace(*options: str, command: list[str], log: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["strace", "-f", "-qq", "-o", str(log or os.devnull), *options, *command],
        capture_output=True,
        text=True,
        timeout=120,
        # Byte code that is written, or not, would change the count.
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


@pytest.fixture(scope="module", autouse=True)
def traced() -> None:
    try:
        tried = strace("-e", "trace=getppid", "-e", "inject=getppid:error=EIO", command=[sys.executable, "-c", "pass"])
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    if tried.returncode:
        pytest.skip(f"strace cannot trace here: {tried.stderr.strip()}")


class Call(NamedTuple):
    name: str
    number: int


def calls_of(command: list[str], log: Path) -> list[Call]:
    """A run to the end: its calls, numbered as strace will count them, those that only say something left out."""
    names = ",".join(f"?{name}" for group in GROUPS.values() for name in group)
    done = strace("-e", f"trace={names}", command=command, log=log)
    assert done.returncode == 0, done.stderr
    counted: Counter[tuple[str, str]] = Counter()
    talking, found = set(), set()
    for thread, name, descriptor in _LINE.findall(log.read_text("utf-8", "replace")):
        counted[thread, name] += 1
        call = Call(name, counted[thread, name])
        found.add(call)
        if name == "write" and descriptor in ("1", "2"):
            talking.add(call)
    return sorted(found - talking)


def spread(calls: list[Call], names: tuple[str, ...], most: int) -> list[Call]:
    """At most so many of each of these calls, the first and the last among them."""
    chosen = []
    for name in names:
        these = [call for call in calls if call.name == name]
        step = max(1, (len(these) - 1) / max(1, most - 1))
        chosen += [these[round(at * step)] for at in range(most) if round(at * step) < len(these)]
    return chosen


def injected(call: Call, what: str) -> list[str]:
    return ["-e", f"trace={call.name}", "-e", f"inject={call.name}:{what}:when={call.number}"]


def killed_at(call: Call, command: list[str], kills: list[Call]) -> list[str]:
    """What the command had said when it was killed at this call, noted in `kills`; all of it where it did not come to it.

    How many calls each thread makes is not the same in every run.
    """
    done = strace(*injected(call, "signal=KILL"), command=command)
    assert done.returncode in (-signal.SIGKILL, 0), done.stderr
    if done.returncode:
        kills.append(call)
    return done.stdout.splitlines()


def assert_met(kills: list[Call], chosen: list[Call]) -> None:
    """Most of the calls were met, or the counting is wrong and nothing was tried."""
    assert len(kills) >= len(chosen) / 2, f"killed at {len(kills)} of {len(chosen)} calls"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    return Corpora(tmp_path_factory.mktemp("corpora"))


def import_calls(corpora: Corpora, folder: Path) -> list[Call]:
    data_dir = corpora.begin("new", folder / "counted")
    return calls_of([sys.executable, *corpora.worker("new", data_dir)], folder / "calls.log")


@pytest.mark.parametrize("group", GROUPS)
def test_an_import_that_is_killed_at_a_call_is_finished_by_the_next(
    group: str, corpora: Corpora, tmp_path: Path
) -> None:
    chosen = spread(import_calls(corpora, tmp_path), GROUPS[group], KILLS)
    assert chosen
    kills: list[Call] = []
    for call in chosen:
        data_dir = corpora.begin("new", tmp_path / f"{call.name}-{call.number}")
        told = killed_at(call, [sys.executable, *corpora.worker("new", data_dir)], kills)
        corpora.check("new", data_dir, told)
        corpora.finish("new", data_dir)
    assert_met(kills, chosen)


@pytest.mark.parametrize("group", GROUPS)
def test_an_outbox_whose_agent_is_killed_at_a_call_keeps_what_it_said_it_kept(group: str, tmp_path: Path) -> None:
    def command(folder: Path) -> list[str]:
        folder.mkdir()
        return [sys.executable, "-c", crash_outbox.WORK, str(folder / "agent.db")]

    chosen = spread(calls_of(command(tmp_path / "counted"), tmp_path / "calls.log"), GROUPS[group], KILLS)
    assert chosen or group == "rename"
    kills: list[Call] = []
    for call in chosen:
        folder = tmp_path / f"{call.name}-{call.number}"
        told = killed_at(call, command(folder), kills)
        crash_outbox.check(folder / "agent.db", told)
    assert_met(kills, chosen)


@pytest.mark.parametrize(("group", "error"), [("sync", "EIO"), ("write", "ENOSPC"), ("rename", "EIO")])
def test_a_disk_that_fails_ends_an_import_with_an_error_that_says_so_and_leaves_nothing_half_done(
    group: str, error: str, corpora: Corpora, tmp_path: Path
) -> None:
    chosen = spread(import_calls(corpora, tmp_path), GROUPS[group], KILLS)
    failed: list[Call] = []
    for call in chosen:
        data_dir = corpora.begin("new", tmp_path / f"{call.name}-{call.number}")
        command = [sys.executable, *corpora.worker("new", data_dir)]
        log = tmp_path / "injected.log"
        done = strace(*injected(call, f"error={error}"), command=command, log=log)
        said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        if done.returncode:
            failed.append(call)
            assert done.returncode == 1, (call, done.stderr)
            assert "Traceback" not in done.stderr, (call, done.stderr)
            unheard = _SAYING_FAILED.search(log.read_text("utf-8", "replace"))
            assert unheard or any(word in line for line in said for word in SAID), (call, done.stderr)
        corpora.check("new", data_dir, done.stdout.splitlines())
        corpora.finish("new", data_dir)
    assert failed, "none of the calls was met"
