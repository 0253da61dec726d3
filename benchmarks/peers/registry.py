"""The measured engines by name, and the fresh process that works with one of them."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.peers.engine import Engine

OURS: Final = "ours"


class Entry(NamedTuple):
    module: str
    kind: str
    folder: str
    """Engines of one folder share its files."""
    distribution: str
    """The package whose version is named with the results."""

    def engine(self, folder: Path, model: Path) -> Engine:
        kind = getattr(importlib.import_module(f"benchmarks.peers.{self.module}"), self.kind)
        engine: Engine = kind(folder, model)
        return engine


ENGINES: Final = {
    OURS: Entry("ours", "Ours", "ours", "usearch"),
    "qdrant-edge i8": Entry("qdrant", "QdrantInt8", "qdrant-i8", "qdrant-edge-py"),
    "qdrant-edge i8 rescored": Entry("qdrant", "QdrantInt8Rescored", "qdrant-i8", "qdrant-edge-py"),
    "qdrant-edge f32": Entry("qdrant", "QdrantFloat", "qdrant-f32", "qdrant-edge-py"),
    "lancedb HNSW_SQ": Entry("lance", "Lance", "lance", "lancedb"),
    "chroma": Entry("chroma", "Chroma", "chroma", "chromadb"),
    "sqlite-vec i8 + FTS5": Entry("sqlite_vec", "SqliteVec", "sqlite-vec", "sqlite-vec"),
}


def python_of(name: str) -> str:
    """Ours runs in the project's environment, each peer in the peers'."""
    from benchmarks.peers import environment

    if name == OURS:
        return sys.executable
    environment.require()
    return environment.PYTHON


def in_fresh_process(name: str, order: dict[str, Any]) -> dict[str, Any]:
    """Have a new process carry out `order` with the engine; see benchmarks/peers/__main__.py."""
    done = subprocess.run(
        [python_of(name), "-m", "benchmarks.peers"],
        input=json.dumps({"engine": name, **order}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
