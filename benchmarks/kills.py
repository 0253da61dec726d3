"""Kill -9 at any moment of additions, new versions, removals, catching up and embedding; then compare.

A worker process carries out a plan on a real corpus and says what is done for good; it is killed at seeded moments and
started again, fifty times. What is left must be the corpus that the plan makes without any kill. The tests run it with
500 papers, `scripts/bench kills` with 10,000.

    python -m benchmarks.kills DATA_DIR PLAN.json FIRST       (the worker)
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agent.config import load_config
from agent.corpus import embedding
from agent.corpus.updates import apply_update
from agent.corpus.upkeep import verify
from agent.domain import CorpusUpdate
from agent.search import SearchAPI, corpus_index, vectors
from benchmarks.data import ROOT
from benchmarks.report import publish

DIMENSIONS = 384
WORDS = ("galaxy", "neuron", "lattice", "quantum", "protein", "market", "turbulence", "graph", "prime", "theorem")
QUERIES = (*WORDS, "galaxy neuron", "prime theorem of the lattice", "protein market graph")

Step = str | dict[str, Any]
"""`catch_up`, `embed`, or the records to add and the ids to remove."""


class Outcome(NamedTuple):
    """What went wrong, in words (nothing should), and how it was found out."""

    problems: list[str]
    kills: int
    steps: int
    papers: int
    embedded_twice: int


def plan_of(seed: int, papers: int, batch: int) -> list[Step]:
    """Additions of up to `batch` papers, new versions and removals, as they might come on a device."""
    rng = random.Random(seed)
    waiting = [f"23{1 + number // 50_000:02d}.{number % 50_000:05d}" for number in range(papers)]
    present: list[str] = []
    steps: list[Step] = []
    version: Counter[str] = Counter()

    def record(name: str) -> dict[str, Any]:
        version[name] += 1
        text = " ".join(rng.sample(WORDS, 7))
        title, abstract = text[: len(text) // 2], text[len(text) // 2 :]
        return {"arxiv_id": name, "title": f"{title} {name[5:]}", "abstract": abstract, "version": version[name]}

    while waiting:
        new = [waiting.pop() for _ in range(min(len(waiting), rng.randint(1, batch)))]
        again = rng.sample(present, min(len(present), rng.randint(0, 2)))
        gone = [name for name in rng.sample(present, min(len(present), rng.randint(0, 2))) if name not in again]
        steps.append({"add": [record(name) for name in (*new, *again)], "remove": gone})
        lost = set(gone)
        present = [name for name in (*present, *new) if name not in lost]
        steps.append(rng.choice(["catch_up", "embed", "catch_up"]))
    return [*steps, "embed", "catch_up"]


def _apply(api: SearchAPI, step: dict[str, Any]) -> None:
    update = CorpusUpdate(add=tuple(step["add"]), remove=tuple(step["remove"]))
    apply_update(api.engine.index.papers, update, api.config.model.name, DIMENSIONS, None)


def work(data_dir: str, plan: str, first: str) -> None:
    """The process that is killed. Prints `open`, each step's number when it is done, and `embedded KEY ..`."""
    # Small, so that few papers make many segments, merges and commits.
    vectors.TAIL_ROWS, corpus_index.CHANGES_A_COMMIT, embedding.COMMIT = 40, 25, 8  # type: ignore[misc]
    with SearchAPI(load_config(environment={}, data_dir=Path(data_dir))) as api:
        index = api.open(owner=True).engine.index
        put_vectors = index.papers.put_vectors

        def counted(model: str, keys: Sequence[int], matrix: Any) -> int:
            stored = put_vectors(model, keys, matrix)
            print("embedded", *keys, flush=True)
            return stored

        index.papers.put_vectors = counted  # type: ignore[method-assign]
        print("open", flush=True)
        for number, step in enumerate(json.loads(Path(plan).read_text("utf-8"))):
            if number < int(first):
                continue
            if step == "catch_up":
                index.catch_up()
            elif step == "embed":
                embedding.embed_missing(index, api.embedder, workers=1)
            else:
                _apply(api, step)
            print(number, flush=True)


def _run(folder: Path, plan: Path, first: int, delay_s: float | None, *, early: bool) -> tuple[int, Counter[str]]:
    """Run the worker from step `first` and kill it; returns the first step not done yet, and what was embedded."""
    embedded: Counter[str] = Counter()
    command = [sys.executable, "-m", "benchmarks.kills", str(folder), str(plan), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        if not early:
            assert process.stdout.readline() == "open\n"
        if delay_s is not None:
            time.sleep(delay_s)  # the moment of the kill, not a wait for anything
            process.kill()
        for line in process.stdout:
            if line.startswith("embedded"):
                embedded.update(line.split()[1:])
            elif line.strip().isdigit():
                first = int(line) + 1
    if process.returncode not in (0, -9):
        raise RuntimeError("the worker failed by itself")
    return first, embedded


def answers(api: SearchAPI) -> dict[tuple[str, str], Any]:
    """By meaning the best twenty with their scores, by keyword everything that matches.

    (Not the keyword scores: tantivy counts deleted papers into its statistics until it merges them away.)
    """
    index = api.engine.index
    names = {key: paper.arxiv_id for key, paper in index.papers.papers()}
    found: dict[tuple[str, str], Any] = {}
    for query in QUERIES:
        near = index.vectors.nearest_among(api.embedder.query(query), np.array(list(names)), 20)
        found[query, "semantic"] = sorted(names[key] for key in near.tolist())
        matches = index.keywords.search(index.keywords.terms(query), 100_000)
        found[query, "keyword"] = sorted(names[key] for key in matches.keys.tolist())
    return found


def kill_and_compare(folder: Path, *, seed: int, papers: int, kills: int, batch: int, longest_s: float) -> Outcome:
    """Carry out a plan with `kills` kills, each after at most `longest_s`, and once without; compare the two."""
    steps, plan = plan_of(seed, papers, batch), folder / "plan.json"
    plan.write_text(json.dumps(steps), "utf-8")
    rng = random.Random(seed)
    first, embedded = 0, Counter[str]()
    for kill in range(kills):
        early = kill % 5 == 0  # also while it starts, when it heals what the last kill left
        delay_s = rng.uniform(0.05, 0.6) if early else rng.uniform(0.0, longest_s)
        first, done = _run(folder / "killed", plan, min(first, len(steps) - 1), delay_s, early=early)
        embedded += done
    first, done = _run(folder / "killed", plan, min(first, len(steps) - 1), None, early=False)
    embedded += done
    twice = sum(count > 1 for count in embedded.values())
    problems = [f"step {first} of {len(steps)} was the last"] if first != len(steps) else []
    problems += [f"{twice} vectors were computed again after they had been stored"] if twice else []
    with (
        SearchAPI(load_config(environment={}, data_dir=folder / "whole")) as expected,
        SearchAPI(load_config(environment={}, data_dir=folder / "killed")) as found,
    ):
        expected.open(owner=True)
        for step in steps:
            if isinstance(step, dict):
                _apply(expected, step)
        embedding.embed_missing(expected.engine.index, expected.embedder)
        found.open()
        if dict(expected.engine.index.papers.papers()) != dict(found.engine.index.papers.papers()):
            problems.append("the papers differ")
        if len(expected.engine.index.vectors) != found.engine.index.papers.count():
            problems.append("vectors are missing")
        told = answers(expected), answers(found)
        problems += [f"the answers to {name} differ" for name in told[0] if told[0][name] != told[1][name]]
        count = found.engine.index.papers.count()
    problems += verify(folder / "killed" / "current")
    return Outcome(problems, kills, len(steps), count, twice)


def measure(papers: int, kills: int) -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="arxplorer-kills-") as folder:
        outcome = kill_and_compare(Path(folder), seed=11, papers=papers, kills=kills, batch=200, longest_s=6.0)
    row = {
        **outcome._asdict(),
        "problems": len(outcome.problems),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    publish("kills", {f"{papers} papers": row}, problems=outcome.problems, seed=11)


if __name__ == "__main__":
    work(*sys.argv[1:])
