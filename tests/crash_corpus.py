"""Commands on a corpus that are killed: where they begin, what may be left, and what the same command makes of it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from crash_cases import killed_at
from crashing import BATCH, NEW, OLD, content_of, import_of, write_inputs

from agent.cli import cli
from agent.corpus.upkeep import verify
from agent.store.inspection import problems_of

Command = Callable[[Path], list[str]]
"""The arguments of a command, given the folder of the inputs."""
REMOVED = [f"2301.{number:05d}" for number in range(30)]
COMMANDS: dict[str, Command] = {
    "first": lambda inputs: import_of(inputs, "old"),
    "new": lambda inputs: import_of(inputs, "new"),
    "remove": lambda _: ["corpus", "remove", *REMOVED],
    "rebuild": lambda _: ["corpus", "rebuild"],
    "salvage": lambda _: ["corpus", "rebuild"],
}


WORKER = str(Path(__file__).with_name("crashing.py"))


class Corpora:
    """Data folders to begin with, made once, and what each command makes of them when nobody kills it."""

    def __init__(self, folder: Path) -> None:
        self.inputs = folder
        write_inputs(folder)
        self._expected: dict[str, dict[str, Any]] = {}
        (folder / "empty").mkdir()
        self._made = {"first": folder / "empty"}

    def run(self, scenario: str, data_dir: Path) -> None:
        """In this process, to the end."""
        done = CliRunner().invoke(cli, ["--data-dir", str(data_dir), *COMMANDS[scenario](self.inputs)])
        assert done.exit_code == 0, done.output

    def begin(self, scenario: str, target: Path) -> Path:
        """A data folder of the test's own, in which the scenario can begin."""
        shutil.copytree(self._start_of(scenario), target, symlinks=True)
        return target

    def _start_of(self, scenario: str) -> Path:
        name = scenario if scenario in ("first", "salvage") else "old"
        if name not in self._made:
            made = self.begin("first", self.inputs / f"data-{name}")
            arguments = ["--data-dir", str(made), *COMMANDS["first"](self.inputs)]
            # By the worker, for segments as small as its own.
            subprocess.run([sys.executable, WORKER, *arguments], check=True, capture_output=True, timeout=120)
            if name == "salvage":
                self._damage(made)
            self._made[name] = made
        return self._made[name]

    def _damage(self, data_dir: Path) -> None:
        """Flip a bit in one paper, and leave the log that a killed writer leaves."""
        # Of a paper that is not there, so that the log holds no newer copy of what is damaged.
        killed_at(
            "papers.transaction:after-commit", WORKER, "--data-dir", str(data_dir), "corpus", "remove", "2301.99999"
        )
        path = data_dir / "current" / "papers.db"
        content = path.read_bytes()
        assert (content.count(b"word7 version1"), path.with_name("papers.db-wal").exists()) == (1, True)
        path.write_bytes(content.replace(b"word7 version1", b"word7 version3"))

    def expected(self, scenario: str) -> dict[str, Any]:
        if scenario not in self._expected:
            data_dir = self.begin(scenario, self.inputs / f"whole-{scenario}")
            self.run(scenario, data_dir)
            self._expected[scenario] = content_of(data_dir)
        return self._expected[scenario]

    def worker(self, scenario: str, data_dir: Path) -> list[str]:
        """The same command as a process to be killed, to be given to Python; it says what it has done."""
        return [WORKER, "--data-dir", str(data_dir), *COMMANDS[scenario](self.inputs)]

    def check(self, scenario: str, data_dir: Path, told: list[str]) -> None:
        """After a kill: whatever was said to be done is there, the rest wholly or not at all; the next owner heals."""
        expected = self.expected(scenario)
        folder = data_dir / "current"
        if told:
            assert problems_of(folder / "papers.db") == [], "also before anybody has opened it to write"
        found = content_of(data_dir)
        assert found["papers"] in states_between(scenario, told.count("remove" if scenario == "remove" else "put"))
        assert found["by keyword"] == found["papers"]
        assert found["by meaning"] == set(found["vectors"])
        assert found["vectors"].items() <= (self.expected("first")["vectors"] | expected["vectors"]).items()
        assert len(found["vectors"]) >= min(told.count("put_vectors") * BATCH, len(expected["vectors"]))
        assert verify(folder) == []

    def finish(self, scenario: str, data_dir: Path) -> None:
        """The same command again does all of it, and nothing else is left."""
        self.run(scenario, data_dir)
        assert (verify(data_dir / "current"), content_of(data_dir)) == ([], self.expected(scenario))
        left = {name for name in files_in(data_dir) if ".tmp" in name or ".new" in name or ".dropped" in name}
        assert left == set()


def states_between(scenario: str, done: int) -> list[set[tuple[str, int]]]:
    """The papers that may be there when `done` transactions were reported: after these, or after the next one."""
    old = [(f"2301.{number:05d}", 1) for number in range(OLD)]
    given = {
        "first": old,
        "new": [(name, 2) for name, _ in old[::2]] + [(f"2301.{OLD + n:05d}", 1) for n in range(NEW)],
    }
    states: list[set[tuple[str, int]]] = [set() if scenario == "first" else set(old)]
    if scenario == "remove":
        states.append({(name, version) for name, version in old if name not in REMOVED})
    for start in range(0, len(given.get(scenario, ())), BATCH):
        batch = dict(given[scenario][start : start + BATCH])
        states.append({one for one in states[-1] if one[0] not in batch} | set(batch.items()))
    return states[done : done + 2]


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
