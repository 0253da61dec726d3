"""kill -9 between any two durable steps: what was done is there, what was not leaves no trace, and can be done again."""

import ast
import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT
from crash_cases import POINTS, cases, killed_at
from crash_corpus import Corpora, files_in
from test_model import NAME, manifest, publish

from agent.cli import cli
from agent.cloud.setup.keys import read_key
from agent.device.heartbeat import seconds_since_beat
from agent.errors import ModelError, NotReadyError
from agent.model import install as installer
from agent.model.install import install
from agent.model.install import verify as verify_model


def test_every_crash_point_of_the_code_is_tried() -> None:
    written = [
        call.args[0].value
        for path in (ROOT / "agent").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "crash_point"
    ]
    assert sorted(written) == sorted(POINTS), "each once, by a name of its own"


# -- the corpus --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    return Corpora(tmp_path_factory.mktemp("corpora"))


@pytest.mark.parametrize(("scenario", "point"), cases("first", "new", "remove", "rebuild", "salvage"))
def test_a_corpus_is_whole_after_a_kill_and_the_same_command_finishes_it(
    scenario: str, point: str, corpora: Corpora, tmp_path: Path
) -> None:
    data_dir = corpora.begin(scenario, tmp_path / "data")
    told = killed_at(point, *corpora.worker(scenario, data_dir)).split()
    if scenario != "salvage":  # of a damaged papers.db a command says so, and no more
        corpora.check(scenario, data_dir, told)
    corpora.finish(scenario, data_dir)


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
