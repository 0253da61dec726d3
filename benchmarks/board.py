"""The agent inside the memory of a small board, beside one that may take what it likes, on copies of one corpus.

The limit is the kernel's own (a control group, v1 or v2; needs root). Each agent has files of its own, or the page
cache that the free one fills would be a gift to the other.
"""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from agent.device.host import memory_mb
from agent.footprint import MIB
from benchmarks.agent import RunningAgent, agent_command, answered, ready_client, running, running_broker
from benchmarks.data import OUTPUT, corpus, queries
from benchmarks.report import percentiles, publish

CGROUPS = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A control group with a limit of memory, of whichever version the machine has."""

    def __init__(self, limit_mib: int) -> None:
        """Raises OSError without the right to make one."""
        self._v2 = "memory" in _read(CGROUPS / "cgroup.controllers").split()
        self.folder = (CGROUPS if self._v2 else CGROUPS / "memory") / f"arxplorer-bench-{os.getpid()}"
        self.folder.mkdir()
        self._put("memory.max" if self._v2 else "memory.limit_in_bytes", limit_mib * MIB)
        if self._v2:
            self._put("memory.swap.max", 0)

    def command(self, command: Sequence[str]) -> list[str]:
        """`command`, started inside."""
        return ["/bin/sh", "-c", f'echo $$ >{self.folder}/cgroup.procs && exec "$@"', "sh", *command]

    @property
    def kills(self) -> int:
        text = _read(self.folder / ("memory.events" if self._v2 else "memory.oom_control"))
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])

    @property
    def peak_mib(self) -> float:
        name = "memory.peak" if self._v2 else "memory.max_usage_in_bytes"
        return round(int(_read(self.folder / name) or 0) / MIB, 1)

    def _put(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value), "ascii")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.rmdir()  # its processes have ended


def _read(file: Path) -> str:
    try:
        return file.read_text("ascii")
    except OSError:
        return ""


def measure(size: str, limit_mib: int, blocks: int, block: int) -> None:
    folder = corpus(size).data_dir
    copy = OUTPUT / f"board-{size}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy, symlinks=True)
    try:
        with ExitStack() as stack:
            group = stack.enter_context(MemoryGroup(limit_mib))
            _forget_files([copy, Path(sys.prefix)])  # whoever reads them first pays for them
            brokers = [stack.enter_context(running_broker()) for _ in range(2)]
            limited = stack.enter_context(running(group.command(agent_command(copy)), brokers[0], copy))
            asyncio.run(answered(limited))
            free = stack.enter_context(running(agent_command(folder), brokers[1], folder))
            asyncio.run(answered(free))
            times = asyncio.run(_interleave(limited, free, queries(blocks * block), block))
            rows = {
                f"within {limit_mib} MiB": percentiles(times["limited"]) | _memory(limited),
                "without a limit": percentiles(times["free"]) | _memory(free),
            }
            tight, wide = rows.values()
            publish(
                f"board-{size}",
                rows,
                ratio_of_p50=round(tight["p50_ms"] / wide["p50_ms"], 2),
                ratio_of_p99=round(tight["p99_ms"] / wide["p99_ms"], 2),
                kills=group.kills,
                peak_of_the_group_mib=group.peak_mib,
                questions=blocks * block,
            )
    finally:
        shutil.rmtree(copy)


def _memory(agent: RunningAgent) -> dict[str, float]:
    return {f"{kind}_mib": mib for kind, mib in (memory_mb(agent.process.pid) or {}).items()}


async def _interleave(
    limited: RunningAgent, free: RunningAgent, texts: Sequence[str], block: int
) -> dict[str, list[float]]:
    """Each question to both, in turn in blocks, in either order."""
    times: dict[str, list[float]] = {"limited": [], "free": []}
    clients = {"limited": await ready_client(limited), "free": await ready_client(free)}
    for number, start in enumerate(range(0, len(texts), block)):
        for side in sorted(clients, reverse=number % 2 == 0):
            for text in texts[start : start + block]:
                started = time.perf_counter()
                await clients[side].ask(text)
                times[side].append(time.perf_counter() - started)
    for client in clients.values():
        await client.disconnect()
    return times


def _forget_files(folders: Sequence[Path]) -> None:
    """Out of the page cache, but for what a process has mapped."""
    os.sync()
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
