"""A corpus to be killed over: its papers, and the command line with limits so small that few papers make many steps.

python tests/crashing.py --data-dir DATA_DIR corpus import ..       prints `put`, `remove` .. as each is done for good
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from agent.config import load_config
from agent.corpus import importer, updates
from agent.search import SearchAPI, corpus_index, vectors
from agent.store.papers import PaperStore

BATCH = 20
DIMENSIONS = 384
OLD = 60
"""Papers that are there, of which half get a new version."""
NEW = 50


def record(number: int, version: int) -> dict[str, Any]:
    title = f"common word{number} version{version}"
    return {"arxiv_id": f"2301.{number:05d}", "title": title, "abstract": "as all of them", "version": version}


def write_inputs(folder: Path) -> None:
    """`old.jsonl` with its vectors in `old.npy`; the same of `new`: new versions of every other old one, and more."""
    rng = np.random.default_rng(5)
    old = [record(number, 1) for number in range(OLD)]
    new = [record(number, 2) for number in range(0, OLD, 2)] + [record(OLD + number, 1) for number in range(NEW)]
    for name, records in (("old", old), ("new", new)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")
        np.save(folder / f"{name}.npy", rng.normal(size=(len(records), DIMENSIONS)).astype(np.float32))


def import_of(folder: Path, name: str) -> list[str]:
    """The arguments of the command that imports one of the inputs."""
    files = [str(folder / f"{name}.jsonl"), "--vectors", str(folder / f"{name}.npy")]
    return ["corpus", "import", *files, "--no-embed"]


def content_of(data_dir: Path) -> dict[str, Any]:
    """What its owner finds in the corpus: versions and vectors by papers.db, papers by keyword and by meaning."""
    with SearchAPI(load_config(environment={}, data_dir=data_dir)) as api:
        index = api.open(owner=True, model=False).engine.index
        index.catch_up()
        versions = {key: (paper.arxiv_id, paper.version) for key, paper in index.papers.papers()}
        stored = index.papers.vectors_since(0, api.config.model.name, DIMENSIONS, 1_000)
        keys = np.array(sorted(versions), np.int64)
        scores = index.vectors.scores(np.ones(DIMENSIONS, np.float32), keys).tolist()
        return {
            "papers": set(versions.values()),
            "vectors": {
                versions[key]: row.tobytes() for key, row in zip(stored.keys.tolist(), stored.matrix, strict=True)
            },
            "by keyword": {versions.get(key) for key in index.keywords.search(["common"], 1_000).keys.tolist()},
            "by meaning": {versions[key] for key, score in zip(keys.tolist(), scores, strict=True) if score == score},  # noqa: PLR0124  not NaN
        }


def _telling(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        result = method(*arguments)
        print(name, flush=True)
        return result

    return wrapped


if __name__ == "__main__":
    vectors.TAIL_ROWS, corpus_index.CHANGES_A_COMMIT, importer.BATCH = 15, 25, BATCH
    PaperStore.put_vectors = _telling("put_vectors", PaperStore.put_vectors)
    importer.store_batch = _telling("put", importer.store_batch)  # once its transaction is committed
    updates.apply_update = _telling("remove", updates.apply_update)
    from agent.__main__ import main

    sys.exit(main())
