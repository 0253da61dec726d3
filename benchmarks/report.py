"""Results of the bench: a table on the screen, JSON on disk, the machine named in both."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from benchmarks.data import OUTPUT

LIBRARIES = ("onnxruntime", "usearch", "tantivy", "awscrt", "tokenizers", "numpy")
COLUMNS = 6
"""So many fit beside each other on the screen."""
console = Console(width=120)


def machine() -> dict[str, Any]:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024**2
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    values = np.percentile(np.array(seconds) * 1e3, [50, 95, 99])
    return dict(zip(("p50_ms", "p95_ms", "p99_ms"), (round(float(value), 3) for value in values), strict=True))


def publish(part: str, rows: Mapping[str, Mapping[str, Any]], **facts: Any) -> None:
    """Print `rows` (name -> column -> value) as a table and write everything to benchmarks/output/PART.json."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    for first in range(0, len(columns), COLUMNS):
        shown = columns[first : first + COLUMNS]
        table = Table("", *(Column(column, justify="right") for column in shown), title=part)
        for name, row in rows.items():
            table.add_row(name, *(str(row.get(column, "")) for column in shown))
        console.print(table)
    for name, value in facts.items():
        console.print(f"  {name}: {value}", highlight=False)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    document = {"part": part, "date": time.strftime("%Y-%m-%d"), "machine": machine(), "rows": rows, **facts}
    (OUTPUT / f"{part}.json").write_text(json.dumps(document, indent=2) + "\n", "utf-8")
