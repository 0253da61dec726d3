"""The data folder on a disk that can be full: a small file system of its own for root, a limit on file sizes otherwise."""

import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Final

SPARE_BYTES: Final = 32 * 1024 * 1024
CHUNK: Final = bytes(64 * 1024)
BALLAST: Final = "ballast"


class Disk:
    """`folder` holds what `source` holds, with little room beside it."""

    def __init__(self, folder: Path, source: Path, *, own: bool = True) -> None:
        """Without `own` it is no file system of its own, for root either."""
        self.folder: Final = folder
        self.data_dir: Final = folder / "data"
        folder.mkdir()
        held = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        self.mounted: Final = own and os.geteuid() == 0 and _mount(folder, held + SPARE_BYTES)
        shutil.copytree(source, self.data_dir)

    def fill(self, pid: int) -> None:
        """From here on nothing can be written, by the process `pid` at least."""
        if not self.mounted:
            _limit(pid, 0)
            return
        with (self.folder / BALLAST).open("ab", buffering=0) as ballast:
            for size in (len(CHUNK), 4096, 1):
                _fill(ballast.fileno(), CHUNK[:size])

    def free(self, pid: int) -> None:
        (self.folder / BALLAST).unlink(missing_ok=True)
        if not self.mounted:
            _limit(pid, resource.RLIM_INFINITY)

    def close(self) -> None:
        if self.mounted:
            # Lazily: whoever still has a file open there must not keep it in the tree.
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def _mount(folder: Path, size: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _fill(descriptor: int, chunk: bytes) -> None:
    try:
        while os.write(descriptor, chunk):
            pass
    except OSError:
        return


def _limit(pid: int, size: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
