"""Packs: size and build time of one, and what an installation takes beside plain tools on the same bytes."""

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from agent.config import load_config
from agent.corpus.installing import Installer
from agent.corpus.packs import open_pack
from agent.protocol.pack_manifest import PackManifest
from agent.store import agent_db
from agent.store.agent_db import AgentDatabase
from benchmarks.agent import COMMAND
from benchmarks.data import OUTPUT, corpus
from benchmarks.importing import peak_mib
from benchmarks.report import publish

CHUNK_BYTES = 1 << 20
MIB = 1024 * 1024


def install(pack: Path, into: Path) -> None:
    """The whole installation: unpacked and checked, the model loaded, the self-test passed, the corpus switched."""
    database = AgentDatabase(into / agent_db.NAME)
    try:
        with open_pack(pack) as opened:
            config = load_config(environment={}, data_dir=into)
            Installer(config, database).install(opened, lambda _: None, lambda: False)
    finally:
        database.close()


def unpack(pack: Path, into: Path) -> None:
    """Of that, all that reads and writes the pack's bytes."""
    with open_pack(pack) as opened:
        opened.unpack(into)


def plain_pipe(pack: Path, _into: Path, manifest: PackManifest) -> None:
    """`zstd -dc PART.. | sha256sum`, one hash over all; nothing is written."""
    names = [part.name for part in manifest.parts]
    if _tools():
        _shell(pack, f"zstd -dcq {' '.join(names)} | sha256sum")
        return
    digest = hashlib.sha256()
    for name in names:
        _plain_loop(pack / name, None, digest)


def plain_files(pack: Path, into: Path, manifest: PackManifest) -> None:
    """`zstd -d PART -o FILE`, `sha256sum FILE` and `sync FILE`, one part after the other."""
    script = []
    for part in manifest.parts:
        path = into / part.path
        path.parent.mkdir(exist_ok=True)
        if _tools():
            script.append(f"zstd -dq {part.name} -o {path}; sha256sum {path}; sync {path}")
        else:
            _plain_loop(pack / part.name, path, hashlib.sha256())
    _shell(pack, "\n".join(script))


def _tools() -> bool:
    return bool(shutil.which("zstd") and shutil.which("sha256sum"))


def _shell(folder: Path, script: str) -> None:
    subprocess.run(["sh", "-e"], cwd=folder, input=script.encode(), check=True, stdout=subprocess.DEVNULL)


def _plain_loop(source: Path, target: Path | None, digest: Any) -> None:
    with zstandard.open(source, "rb") as stream, (target or Path(os.devnull)).open("wb") as file:
        while piece := stream.read(CHUNK_BYTES):
            digest.update(piece)
            file.write(piece)
        if target:
            os.fsync(file.fileno())


def measure(size: str, repetitions: int) -> None:
    data_dir = corpus(size).data_dir
    pack = OUTPUT / f"pack-{size}"
    built = _build(data_dir, pack)
    with open_pack(pack) as opened:
        manifest = opened.manifest
    ways: dict[str, Callable[[Path], None]] = {
        "install": lambda into: install(pack, into),
        "unpack": lambda into: unpack(pack, into),
        "zstd -dc | sha256sum": lambda into: plain_pipe(pack, into, manifest),
        "zstd -d, sha256sum, sync": lambda into: plain_files(pack, into, manifest),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    written: dict[str, list[int]] = {name: [] for name in ways}
    for _ in range(repetitions + 1):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(prefix="installed-", dir=OUTPUT) as into:
                before, started = _written(), time.perf_counter()
                way(Path(into))
                taken[name].append(time.perf_counter() - started)
                written[name].append(_written() - before)
    rows = {
        name: {
            "median_s": round(statistics.median(seconds[1:]), 2),  # the first finds nothing in memory
            "least_s": round(min(seconds[1:]), 2),
            "most_s": round(max(seconds[1:]), 2),
            "written_mib": round(statistics.median(written[name]) / MIB, 1) or "",
        }
        for name, seconds in taken.items()
    }
    mine, _, *plain = (seconds[1:] for seconds in taken.values())
    ratios = [statistics.median(one / other for one, other in zip(mine, others, strict=True)) for others in plain]
    publish(
        f"packs-{size}",
        rows,
        **built,
        papers=manifest.papers,
        packed_mib=round(manifest.packed_bytes / MIB, 1),
        unpacked_mib=round(manifest.unpacked_bytes / MIB, 1),
        ratio_to_the_pipe=round(ratios[0], 3),
        ratio_to_the_files=round(ratios[1], 3),
        repetitions=repetitions,
    )


def _build(data_dir: Path, pack: Path) -> dict[str, float]:
    """Pack anew, as a process of its own: seconds, processor seconds, peak RSS."""
    shutil.rmtree(pack, ignore_errors=True)
    started, before = time.perf_counter(), os.times()
    command = [COMMAND, "--data-dir", str(data_dir), "corpus", "pack", str(pack), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, peak_mib(process.pid))
        time.sleep(0.1)
    took, after = time.perf_counter() - started, os.times()
    assert json.loads(process.communicate()[0])["papers"]
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"build_s": round(took, 1), "build_processor_s": round(used, 1), "build_peak_rss_mib": peak}


def _written() -> int:
    """Bytes that this process has had written to a disk."""
    lines = Path("/proc/self/io").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))
