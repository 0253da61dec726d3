"""How much of the machine the agent may take: chosen at start from what the machine and its control group allow.

The figures behind the choices were measured; docs/device.md has them.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

MIB: Final = 1024 * 1024
MAX_WORKERS: Final = 4
SMALL_MIB: Final = 1_100
"""Boards sold as having 1 GB have less. Up to here two searches run at a time."""
MODEL_MIB: Final = 96
"""Less leaves no room for the model and the pages that it is run from."""
MAX_SEGMENT_ROWS: Final = 200_000
MIN_SEGMENT_ROWS: Final = 8_192
ROWS_A_MIB: Final = 64
"""Building a segment takes about 3.3 KiB a vector; of the allowance it may take a fifth."""
UNKNOWN_MIB: Final = 4_096
"""Taken where the system does not say."""
MAX_MAPPED_BYTES: Final = 1 << 30
_V1_LIMITS: Final[tuple[str, ...]] = ("memory.limit_in_bytes",)
_V2_LIMITS: Final[tuple[str, ...]] = ("memory.max", "memory.high")


class Footprint(Struct, frozen=True, kw_only=True):
    """What fits `memory_mib`.

    `workers` searches run at a time; a segment of vectors gets at most `segment_rows`; without `model` the agent
    searches by keyword.
    """

    memory_mib: int
    workers: int
    segment_rows: int
    model: bool

    def mapped_bytes(self, file_bytes: int) -> int:
        """How much of a database of that size to read through a memory map.

        A map is quickest where everything stays in memory. Where it does not, each missing page brings some thirty
        of its neighbours along, which push out pages that are needed: there SQLite reads page by page.
        """
        return MAX_MAPPED_BYTES if 2 * file_bytes <= self.memory_mib * MIB else 0


def choose(memory_mib: int, cores: int) -> Footprint:
    """What suits a machine. Pure."""
    return Footprint(
        memory_mib=memory_mib,
        workers=min(cores, 2 if memory_mib <= SMALL_MIB else MAX_WORKERS),
        segment_rows=max(MIN_SEGMENT_ROWS, min(MAX_SEGMENT_ROWS, memory_mib * ROWS_A_MIB)),
        model=memory_mib >= MODEL_MIB,
    )


def footprint(memory_mib: int = 0, workers: int = 0) -> Footprint:
    """What suits this machine; what is given, but for 0, wins."""
    chosen = choose(memory_mib or allowed_mib(), os.cpu_count() or 1)
    return replace(chosen, workers=workers or chosen.workers)


def allowed_mib(root: Path = Path("/")) -> int:
    """MiB that this process may use: the machine's memory, or less where a control group (v1 or v2) has a limit."""
    limits = [*_machine(root), *_group_limits(root)]
    return min(limits, default=UNKNOWN_MIB * MIB) // MIB


def _machine(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            yield int(line.split()[1]) * 1024


def _group_limits(root: Path) -> Iterator[int]:
    """In bytes, of the process's own group and all above it.

    In a container the path may be that of the host, which cannot be seen from inside; the group is then the root of
    what is mounted.
    """
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mount, names = root / "sys/fs/cgroup", _V2_LIMITS
        elif "memory" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/memory", _V1_LIMITS
        else:
            continue
        folder = mount / path.lstrip("/")
        for group in (folder, *folder.parents):
            for name in names:
                for limit in _lines(group / name):
                    if limit.strip().isdigit():  # "max" is none
                        yield int(limit)
            if group == mount:
                break


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
