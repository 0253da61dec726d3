"""The peers' own virtual environment: they bring a hundred packages that the agent must never see."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import click

from benchmarks.data import ROOT

FOLDER: Final = ROOT / ".venv-bench"
LOCK: Final = ROOT / "requirements-bench.lock"
PYTHON: Final = str(FOLDER / "bin" / "python")


def install() -> None:
    """Make the environment hold what the lock says."""
    stamp, wanted = _stamp(), hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text("ascii") == wanted:
        return
    click.echo(f"bench: installing the peers into {FOLDER.name}", err=True)
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)], check=True)
    environment = {**os.environ, "VIRTUAL_ENV": str(FOLDER)}
    subprocess.run([uv, "pip", "sync", "--quiet", "--require-hashes", str(LOCK)], check=True, env=environment)
    stamp.write_text(wanted, "ascii")


def require() -> None:
    """Raises ClickException where the peers are not installed."""
    if not _stamp().is_file():
        raise click.ClickException("the peers are not installed: scripts/bench --with-peers installs them")


def _stamp() -> Path:
    return FOLDER / ".installed"
