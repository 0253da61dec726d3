"""Run by test_wholeness.py in a process that is killed at any moment: carries out a plan, says what is done.

    python crash_worker.py DATA_DIR PLAN.json FIRST

PLAN holds steps: {"add": [..], "remove": [..]}, "catch_up" or "embed". Prints `open`, then the number of each step
when it is done for good, and `embedded KEY ..` for papers that got their vector.
"""

import json
import sys
from pathlib import Path

from agent.config import load_config
from agent.corpus import embedding
from agent.corpus.updates import apply_update
from agent.domain import CorpusUpdate
from agent.search import SearchAPI, corpus_index, vectors

# Small, so that 500 papers make many segments, merges and commits.
vectors.TAIL_ROWS = 40
corpus_index.CHANGES_A_COMMIT = 25
embedding.COMMIT = 8


def say(*words: object) -> None:
    print(*words, flush=True)


def main(data_dir: str, plan: str, first: str) -> None:
    with SearchAPI(load_config(environment={}, data_dir=Path(data_dir))) as api:
        api.open(owner=True)
        index, model = api.engine.index, api.config.model.name
        put_vectors = index.papers.put_vectors

        def counted(name: str, keys: list[int], matrix: object) -> int:
            stored = put_vectors(name, keys, matrix)
            say("embedded", *keys)
            return stored

        index.papers.put_vectors = counted
        say("open")
        for number, step in enumerate(json.loads(Path(plan).read_text())):
            if number < int(first):
                continue
            if step == "catch_up":
                index.catch_up()
            elif step == "embed":
                embedding.embed_missing(index, api.embedder, workers=1)
            else:
                apply_update(
                    index.papers, CorpusUpdate(add=tuple(step["add"]), remove=tuple(step["remove"])), model, 384
                )
            say(number)


if __name__ == "__main__":
    main(*sys.argv[1:])
