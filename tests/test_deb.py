"""The Debian package: what can be said of it without building it. scripts/test-device installs a built one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from agent.paths import SYSTEM_CONFIG, SYSTEM_DATA_DIR

BUNDLE = (ROOT / "scripts" / "bundle").read_text("utf-8")
SCRIPTS = ROOT / "scripts" / "deb"

WITHOUT = """
import importlib, pkgutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import agent
for module in pkgutil.walk_packages(agent.__path__, "agent."):
    if "local_cloud" not in module.name and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from agent.search.native import usearch_index
usearch_index(ndim=16, dtype="i8")  # only a corpus of thousands needs it
from agent.cli import cli
for arguments in (["corpus", "import", "--sample"], ["search", "spheres"], ["corpus", "verify"]):
    cli(["--data-dir", sys.argv[1], *arguments], standalone_mode=False)
"""


def test_the_agent_runs_without_what_the_package_leaves_out(tmp_path: Path) -> None:
    left_out = re.search(r"^unneeded='(.*)'$", BUNDLE, re.MULTILINE)
    assert left_out
    names = {name.replace("-", "_") for name in left_out[1].split("|")} | {"onnx", "safetensors", "google"}
    code = WITHOUT.format(absent=names)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], capture_output=True, text=True)
    assert (done.returncode, "1603.04246" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("name", ["preinst", "postinst", "prerm", "postrm"])
def test_the_maintainer_scripts_are_plain_shell(name: str) -> None:
    assert subprocess.run(["sh", "-n", str(SCRIPTS / f"{name}.in")]).returncode == 0


def test_data_goes_on_purge_and_at_no_other_time() -> None:
    removing = {
        name: (SCRIPTS / f"{name}.in").read_text("utf-8").count(f"{SYSTEM_DATA_DIR}")
        for name in ("preinst", "prerm", "postrm")
    }
    assert removing == {"preinst": 0, "prerm": 0, "postrm": 1}
    purge = (SCRIPTS / "postrm.in").read_text("utf-8").partition('if [ "$1" = purge ]')[2].partition("\nfi\n")[0]
    assert f"rm -rf {SYSTEM_DATA_DIR} {SYSTEM_CONFIG.parent}" in purge


@pytest.mark.parametrize(("system", "refused"), [("arm64", False), ("armhf", True), ("amd64", True)])
def test_a_system_of_another_architecture_is_told_why_it_is_refused(tmp_path: Path, system: str, refused: bool) -> None:
    script = tmp_path / "preinst"
    script.write_text((SCRIPTS / "preinst.in").read_text("utf-8").replace("@ARCH@", "arm64"))
    (tmp_path / "dpkg").write_text(f"#!/bin/sh\necho {system}\n")
    (tmp_path / "dpkg").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", str(script), "install"], env=environment, capture_output=True, text=True)
    assert (done.returncode != 0, "64-bit system is needed" in done.stderr) == (refused, system == "armhf")
