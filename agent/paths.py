"""Where things lie on disk, and how a file is replaced so that a crash leaves the old one or the new one."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from agent.crash_points import crash_point

APP: Final = "arxplorer-agent"
SYSTEM_DATA_DIR: Final = Path("/var/lib") / APP
SYSTEM_RUNTIME_DIR: Final = Path("/run") / APP
SYSTEM_CONFIG: Final = Path("/etc") / APP / "config.yaml"
# Of linux/fcntl.h and linux/fs.h; Python has no name for them, nor for renameat2.
AT_FDCWD: Final = -100
RENAME_EXCHANGE: Final = 2


def default_data_dir() -> Path:
    """/var/lib/arxplorer-agent where this user may write it, else the user's own data folder."""
    if os.access(SYSTEM_DATA_DIR, os.W_OK):
        return SYSTEM_DATA_DIR
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / APP


def shut_out(data_dir: Path) -> str | None:
    """What a user of this machine should know who may not use the data folder of its agent, and so has another one."""
    if data_dir == SYSTEM_DATA_DIR or data_dir != default_data_dir() or not SYSTEM_DATA_DIR.is_dir():
        return None
    return (
        f"{SYSTEM_DATA_DIR}, the agent's, is for root and the group arxplorer: "
        "sudo, or sudo usermod -aG arxplorer NAME and a new login"
    )


def shared_models_dir() -> Path:
    """Models beside the installed program, filled by `scripts/setup` or a package; data folders need no copy."""
    return Path(sys.prefix) / "share" / APP / "models"


def catalog_dir() -> Path:
    """The model manifests that ship with the project: inside a wheel, else at the top of the checkout."""
    package = Path(__file__).parent
    bundled = package / "_models"
    return bundled if bundled.is_dir() else package.parent / "models"


def model_folders(data_dir: Path) -> list[Path]:
    """Folders that hold installed models, in the order of look-up."""
    return [data_dir / "models", shared_models_dir()]


def find_model(data_dir: Path, name: str) -> Path | None:
    """The folder of an installed model, or None."""
    for folder in model_folders(data_dir):
        if (folder / name / "model.onnx").is_file():
            return folder / name
    return None


def scratch_folder() -> TemporaryDirectory[str]:
    """A folder for what no start needs again, in memory where systemd made one ($RUNTIME_DIRECTORY). Raises OSError."""
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return TemporaryDirectory(prefix=f"{APP}-", dir=runtime or None, ignore_cleanup_errors=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> None:
    """Let two files or folders of one file system change places at once, so that neither place is ever empty.

    Raises OSError.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    here, names = ctypes.c_int(AT_FDCWD), (os.fsencode(one), os.fsencode(other))
    if libc.renameat2(here, names[0], here, names[1], ctypes.c_uint(RENAME_EXCHANGE)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` durably: written beside, synced, renamed over it. One process at a time may do so.

    What a killed process left beside it is written over by the next.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.write_bytes(content)
        crash_point("paths.write_file:before-sync")
        sync_file(beside)
        crash_point("paths.write_file:before-rename")
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    crash_point("paths.write_file:after-rename")
    sync_folder(path.parent)
    crash_point("paths.write_file:done")
