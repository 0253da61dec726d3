"""The yardstick: one question by the bare libraries on the same files, without any code of the agent.

Tokenise, embed, 100 nearest of the graph, 100 best by keyword, ten rows. No fusion, no cross-scores, no checks:
what the agent does beyond this is what it adds.

    python -m benchmarks.direct MODEL_FOLDER GENERATION_FOLDER

reads one query a line, as JSON, and answers with the seconds it took: like the agent it waits between questions, and
so starts each of them on a processor that has slept.
"""

import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bare import BareKeywords, BareModel, int8_of

Row = tuple[Any, ...]


class Direct:
    """The opened libraries."""

    def __init__(self, model: Path, generation: Path) -> None:
        self.model = BareModel(model)
        from usearch.index import Index  # after onnxruntime: the other order ends in a segmentation fault

        self.graph = Index(ndim=384, metric="cos", dtype="i8", expansion_search=192, enable_key_lookups=False)
        self.graph.view(str(next(iter((generation / "vectors").glob("*.usearch")))))
        self.keywords = BareKeywords(generation / "keywords")
        self.db = sqlite3.connect(f"file:{generation / 'papers.db'}?mode=ro", uri=True)
        self.db.execute("PRAGMA mmap_size = 1073741824")

    def ask(self, text: str) -> list[Row]:
        small = int8_of(self.model.embed(text))
        near = np.asarray(self.graph.search(small, 100, threads=1).keys).tolist()
        words = self.keywords.search(text)
        wanted = list(dict.fromkeys([*near[:5], *words[:10]]))[:10]
        rows = self.db.execute(f"SELECT * FROM papers WHERE key IN ({','.join('?' * len(wanted))})", wanted).fetchall()
        return [(*row, json.loads(row[4]), json.loads(row[5])) for row in rows]


def main() -> None:
    direct = Direct(Path(sys.argv[1]), Path(sys.argv[2]))
    for line in sys.stdin:
        text = json.loads(line)
        started, used = time.perf_counter(), time.process_time()
        direct.ask(text)
        done = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - used}
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
