"""The fresh process: one order on standard input, one answer on standard output, both JSON.

{"engine": "chroma", "do": "build", "folder": .., "model": .., "file": .., "vectors": ..}
{"engine": "chroma", "do": "measure", "folder": .., "model": .., "warm_up": [text], "queries": [text],
"filters": {name: [category]}}
{"engine": "chroma", "do": "rank", "folder": .., "model": .., "queries": [text]}
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.engine import Engine, Source
from benchmarks.peers.registry import ENGINES

LIMIT = 10


def build(engine: Engine, order: dict[str, Any]) -> dict[str, Any]:
    started, used = time.perf_counter(), time.process_time()
    engine.build(Source(Path(order["file"]), Path(order["vectors"])))
    return {"cpu_s": time.process_time() - used, "wall_s": time.perf_counter() - started}


def measure(engine: Engine, order: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.peers import measuring

    distribution = ENGINES[order["engine"]].distribution
    measured = measuring.measure(engine, order["warm_up"], order["queries"], order["filters"], LIMIT)
    return {**measured, "version": f"{distribution} {version(distribution)}"}


def rank(engine: Engine, order: dict[str, Any]) -> dict[str, Any]:
    engine.open()
    return {"rankings": [[paper["arxiv_id"] for paper in engine.ask(text, LIMIT)] for text in order["queries"]]}


def main() -> None:
    order = json.load(sys.stdin)
    engine = ENGINES[order["engine"]].engine(Path(order["folder"]), Path(order["model"]))
    answer = {"build": build, "measure": measure, "rank": rank}[order["do"]](engine, order)
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
