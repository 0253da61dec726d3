"""kill -9 between any two durable steps: what was done is there, what was not leaves no trace, and can be done again."""

import ast
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import ROOT
from crash_cases import POINTS, cases, killed_at
from crashing import BATCH, NEW, OLD, content_of, import_of, write_inputs
from test_model import NAME, manifest, publish

from agent.cli import cli
from agent.cloud.setup.keys import read_key
from agent.corpus.upkeep import verify
from agent.device.heartbeat import seconds_since_beat
from agent.errors import ModelError, NotReadyError
from agent.model import install as installer
from agent.model.install import install
from agent.model.install import verify as verify_model
from agent.store.inspection import problems_of


def test_every_crash_point_of_the_code_is_tried() -> None:
    written = [
        call.args[0].value
        for path in (ROOT / "agent").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "crash_point"
    ]
    assert sorted(written) == sorted(POINTS), "each once, by a name of its own"


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# -- the corpus --------------------------------------------------------------------------------------------------------

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
        killed_at(
            "papers.transaction:after-commit", WORKER, "--data-dir", str(data_dir), "corpus", "remove", "2301.00059"
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


WORKER = str(Path(__file__).with_name("crashing.py"))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    return Corpora(tmp_path_factory.mktemp("corpora"))


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


@pytest.mark.parametrize(("scenario", "point"), cases("first", "new", "remove", "rebuild", "salvage"))
def test_a_corpus_is_whole_after_a_kill_and_the_same_command_finishes_it(
    scenario: str, point: str, corpora: Corpora, tmp_path: Path
) -> None:
    data_dir, expected = corpora.begin(scenario, tmp_path / "data"), corpora.expected(scenario)
    told = killed_at(point, WORKER, "--data-dir", str(data_dir), *COMMANDS[scenario](corpora.inputs)).split()
    folder = data_dir / "current"
    if told and scenario != "salvage":
        assert problems_of(folder / "papers.db") == [], "also before anybody has opened it to write"
    if scenario != "salvage":  # of a damaged papers.db a command says so, and no more
        found = content_of(data_dir)
        assert found["papers"] in states_between(scenario, told.count("remove" if scenario == "remove" else "put"))
        assert found["by keyword"] == found["papers"]
        assert found["by meaning"] == set(found["vectors"])
        assert found["vectors"].items() <= (corpora.expected("first")["vectors"] | expected["vectors"]).items()
        assert len(found["vectors"]) >= min(told.count("put_vectors") * BATCH, len(expected["vectors"]))
        assert verify(folder) == []
    corpora.run(scenario, data_dir)
    assert (verify(folder), content_of(data_dir)) == ([], expected)
    left = {name for name in files_in(data_dir) if ".tmp" in name or ".new" in name or ".dropped" in name}
    assert left == set()


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scenario", "point"), cases("install", "replace"))
def test_a_model_is_the_former_or_the_new_one_after_a_kill(scenario: str, point: str, tmp_path: Path) -> None:
    source = publish(tmp_path / "source", manifest())
    command = ["--data-dir", str(tmp_path / "data"), "model", "install", NAME, "--from", str(source)]
    folder = tmp_path / "data" / "models"
    if scenario == "replace":
        assert CliRunner().invoke(cli, command).exit_code == 0
    killed_at(point, "-m", "agent", *command)
    if scenario == "replace" or (folder / NAME).exists():
        verify_model(folder / NAME)
    again = CliRunner().invoke(cli, command)
    assert again.exit_code == 0, again.output
    verify_model(folder / NAME)
    assert [path.name for path in folder.iterdir()] == [NAME], "nothing of the broken one is left"


def test_two_installations_do_not_go_on_at_a_time_and_the_second_says_so(tmp_path: Path) -> None:
    source, folder = publish(tmp_path / "source", manifest()), tmp_path / "models"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ModelError, match="another process is installing"):
        install(NAME, folder, source=source)
    os.close(descriptor)
    install(NAME, folder, source=source)


def test_a_model_is_replaced_also_where_the_file_system_cannot_exchange_folders(tmp_path: Path, monkeypatch) -> None:
    source, folder = publish(tmp_path / "source", manifest()), tmp_path / "models"

    def cannot(*_: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(installer, "exchange", cannot)
    install(NAME, folder, source=source)
    (folder / NAME / "model.onnx").write_bytes(b"damaged since")
    install(NAME, folder, source=source)
    verify_model(folder / NAME)
    assert [path.name for path in folder.iterdir()] == [NAME]


# -- small files -------------------------------------------------------------------------------------------------------

BEAT = """
import sys
from pathlib import Path
from agent.device.heartbeat import HeartbeatFile
HeartbeatFile(Path(sys.argv[1]), environment={}).beat(60.0)
"""


@pytest.mark.parametrize(("scenario", "point"), cases("beat"))
def test_a_health_check_reads_a_whole_beat_or_none_after_a_kill(scenario: str, point: str, tmp_path: Path) -> None:
    killed_at(point, "-c", BEAT, str(tmp_path))
    if point.startswith("heartbeat.beat:after"):
        assert seconds_since_beat(tmp_path, environment={}) >= 0
    else:
        with pytest.raises(NotReadyError):
            seconds_since_beat(tmp_path, environment={})
    subprocess.run([sys.executable, "-c", BEAT, str(tmp_path)], check=True)
    assert seconds_since_beat(tmp_path, environment={}) >= 0
    assert files_in(tmp_path) == {"alive"}


KEYS = """
import sys
from pathlib import Path
from agent.cloud.setup.device_files import Disk
folder, disk = Path(sys.argv[1]), Disk()
disk.private_key(folder / "key")
disk.write(folder / "certificate", b"new" * 1000)
(folder / "key.new").touch()
disk.move(folder / "key.new", folder / "moved")
"""


@pytest.mark.parametrize(("scenario", "point"), cases("keys"))
def test_a_key_and_a_certificate_are_whole_or_not_there_after_a_kill(scenario: str, point: str, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    certificate.write_bytes(b"old" * 1000)
    killed_at(point, "-c", KEYS, str(tmp_path))
    for path in tmp_path.glob("*key*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.stat().st_size == 0, (
            "closed to others at any moment"
        )
    kept = key.read_bytes() if key.exists() else b""
    assert not kept or read_key(kept, "key")
    assert certificate.read_bytes() in (b"old" * 1000, b"new" * 1000)
    subprocess.run([sys.executable, "-c", KEYS, str(tmp_path)], check=True)
    assert key.read_bytes() == kept or not kept, "a key that was made is kept"
    assert files_in(tmp_path) == {"key", "certificate", "certificate.old", "moved"}
    assert (certificate.read_bytes(), (tmp_path / "certificate.old").read_bytes()) == (b"new" * 1000, b"old" * 1000)
