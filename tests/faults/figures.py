"""What a process takes: memory, descriptors, threads, bytes written; and how that grows. Linux's /proc."""

import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

WARM_UP: Final = 0.2
"""Share of the samples that a slope leaves out: caches fill up at the beginning."""


class Sample(NamedTuple):
    """At a moment of the monotonic clock, in seconds. `private_kib` is memory that no other process shares (USS)."""

    at: float
    private_kib: int
    descriptors: int
    threads: int
    files: int
    file_bytes: int
    written_bytes: int


def sample(pid: int, data_dir: Path) -> Sample:
    """Raises OSError when the process is gone."""
    process = Path(f"/proc/{pid}")
    rollup = (process / "smaps_rollup").read_text("ascii")
    private = sum(int(kib) for kib in re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", rollup, re.MULTILINE))
    threads = int(re.search(r"^Threads:\t(\d+)", (process / "status").read_text("utf-8"), re.MULTILINE)[1])
    files = contents(data_dir)
    return Sample(
        time.monotonic(),
        private,
        len(list((process / "fd").iterdir())),
        threads,
        len(files),
        sum(size for size, _ in files.values()),
        written(pid),
    )


def written(pid: int) -> int:
    """Bytes that the process has caused to be written to block devices."""
    return int(re.search(r"^write_bytes: (\d+)", Path(f"/proc/{pid}/io").read_text("ascii"), re.MULTILINE)[1])


def in_memory(folder: Path) -> bool:
    """Whether what is written to a folder is no write to a disk, and so not counted."""
    kind = subprocess.run(["stat", "--file-system", "--format=%T", folder], capture_output=True, text=True, check=True)
    return kind.stdout.strip() in ("tmpfs", "ramfs")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change (ns) of every file below a folder."""
    found: dict[str, tuple[int, int]] = {}
    for file in folder.rglob("*"):
        try:
            state = file.stat()
        except FileNotFoundError:  # since then
            continue
        if file.is_file():
            found[str(file.relative_to(folder))] = state.st_size, state.st_mtime_ns
    return found


def per_hour(times_s: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the line that fits best, in units an hour; 0 for fewer than two different moments."""
    if len(set(times_s)) < 2:
        return 0.0
    mean_t, mean_v = sum(times_s) / len(times_s), sum(values) / len(values)
    spread = sum((t - mean_t) ** 2 for t in times_s)
    return 3600 * sum((t - mean_t) * (v - mean_v) for t, v in zip(times_s, values, strict=True)) / spread


def growth(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Of each figure: its slope an hour after the warm-up, and what it was in the first and the last fifth of that."""
    warm = samples[int(len(samples) * WARM_UP) :]
    part = max(1, len(warm) // 5)
    times = [one.at for one in warm]
    found: dict[str, dict[str, float]] = {"samples": {"all": len(samples), "after_warm_up": len(warm)}}
    for name in Sample._fields[1:]:
        values = [float(getattr(one, name)) for one in warm]
        found[name] = {
            "per_hour": round(per_hour(times, values), 2),
            "first": median(values[:part]),
            "last": median(values[-part:]),
        }
    return found
