"""What the host has left: memory, disk, temperature. Linux; None where the host does not say."""

import ctypes
import gc
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

_MIB: Final = 1024 * 1024
_MADV_DONTNEED: Final = 4


def memory_mb(pid: int | str = "self") -> dict[str, float] | None:
    """MiB of a process: `rss`, `uss` (pages that no other process shares) and `anonymous` (of no file)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return None
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])}
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return {
        name: round(value / 1024, 1)
        for name, value in (("rss", kib["Rss"]), ("uss", private), ("anonymous", kib["Anonymous"]))
    }


def disk_free_mb(folder: Path) -> float | None:
    try:
        return round(shutil.disk_usage(folder).free / _MIB, 1)
    except OSError:
        return None


def temperature_c() -> float | None:
    """Of the processor, as the kernel's first thermal zone gives it."""
    try:
        return int(Path("/sys/class/thermal/thermal_zone0/temp").read_text("ascii")) / 1000
    except (OSError, ValueError):
        return None


def release_memory() -> None:
    """Give back what starting up has used: freed heap, and code that ran only then.

    glibc keeps about 10 MB of freed heap until it is asked. Of the libraries' code some 30 MB are mapped because
    loading touched them once; they are unmapped, stay in the page cache as the first thing that the kernel may drop,
    and what is needed again comes back by a minor fault.
    """
    gc.collect()
    gc.freeze()  # what starting up made stays: later collections need not walk through it
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc only
        libc.malloc_trim(0)
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text("utf-8", "surrogateescape").splitlines():
            span, rights, rest = line.split(maxsplit=2)
            # Code of a file is never written to, so nothing can be lost: its pages are read from the file again.
            if rights == "r-xp" and "/" in rest:
                first, last = (int(end, 16) for end in span.split("-"))
                libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_DONTNEED)
