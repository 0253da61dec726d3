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
import onnxruntime
import tantivy
from tokenizers import Tokenizer
from usearch.index import Index

Row = tuple[Any, ...]


class Direct:
    """The opened libraries."""

    def __init__(self, model: Path, generation: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(256)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(model / "model.onnx"), options)
        self.graph = Index(ndim=384, metric="cos", dtype="i8", expansion_search=192, enable_key_lookups=False)
        self.graph.view(str(next(iter((generation / "vectors").glob("*.usearch")))))
        self.analyzer = (
            tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
            .filter(tantivy.Filter.remove_long(40))
            .filter(tantivy.Filter.lowercase())
            .filter(tantivy.Filter.ascii_fold())
            .filter(tantivy.Filter.stopword("english"))
            .filter(tantivy.Filter.stemmer("english"))
            .build()
        )
        self.index = tantivy.Index.open(str(generation / "keywords"))
        self.schema = self.index.schema
        self.searcher = self.index.searcher()
        self.db = sqlite3.connect(f"file:{generation / 'papers.db'}?mode=ro", uri=True)
        self.db.execute("PRAGMA mmap_size = 1073741824")

    def embed(self, text: str) -> Any:
        ids = np.array([self.tokenizer.encode(text).ids])
        return self.session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]

    def ask(self, text: str) -> list[Row]:
        vector = self.embed(text)
        small = np.rint(vector / np.abs(vector).max() * 127).astype(np.int8)
        near = np.asarray(self.graph.search(small, 100, threads=1).keys).tolist()
        terms = dict.fromkeys(self.analyzer.analyze(text))
        query = tantivy.Query.boolean_query(
            [
                (tantivy.Occur.Should, tantivy.Query.term_query(self.schema, "body", t, index_option="freq"))
                for t in terms
            ]
        )
        hits = self.searcher.search(query, limit=100, count=False).hits
        words = self.searcher.fast_field_values("key", [address for _, address in hits])
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
