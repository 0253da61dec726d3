"""Import: against the rate of the bare model, and with vectors at hand."""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from agent.config import load_config
from agent.paths import find_model
from agent.search.embedder import plan_batches
from benchmarks.agent import COMMAND
from benchmarks.bare import BareModel
from benchmarks.data import papers, papers_file, vectors_of
from benchmarks.report import publish

BATCH_TOKENS = 512


def bare_rate(texts: list[str]) -> float:
    """Papers a second of tokeniser and model alone: sorted by length over all texts, one run a core at a time."""
    config = load_config(environment={})
    folder = find_model(config.data_dir, config.model.name)
    assert folder
    model = BareModel(folder)

    def run(batch: list[list[int]]) -> None:
        ids = np.zeros((len(batch), max(map(len, batch))), np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        model.session.run(None, {"input_ids": ids, "attention_mask": mask})

    started = time.perf_counter()
    tokens = [encoding.ids for encoding in model.tokenizer.encode_batch(texts)]
    plan = plan_batches([len(ids) for ids in tokens], BATCH_TOKENS)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda batch: run([tokens[i] for i in batch]), reversed(plan)))
    return len(texts) / (time.perf_counter() - started)


def import_rate(file: Path, *options: str) -> tuple[float, float]:
    """Papers a second of `corpus import`, the whole process counted, and its peak RSS in MiB."""
    with tempfile.TemporaryDirectory(prefix="arxplorer-bench-") as folder:
        command = [COMMAND, "--data-dir", folder, "corpus", "import", str(file), "--json", *options]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, peak_mib(process.pid))
            time.sleep(0.1)
        took = time.perf_counter() - started
        report = json.loads(process.communicate()[0])
    return report["added"] / took, peak


def peak_mib(pid: int) -> float:
    """Peak RSS so far. Not `ru_maxrss`, which a child inherits from the process that started it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except OSError:
        return 0.0
    return max((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith("VmHWM")), default=0.0)


def measure_embedding(count: int) -> None:
    """The bare model before and after the import, so that a drifting machine does not favour either."""
    rows = list(islice(papers("10k"), count))
    texts = [f"{row['title']}. {row['abstract']}" for row in rows]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        before = bare_rate(texts)
        rate, peak = import_rate(Path(file.name))
        after = bare_rate(texts)
    bare = (before + after) / 2
    publish(
        "import",
        {
            "bare model": {"papers_a_second": round(bare, 2), "before": round(before, 2), "after": round(after, 2)},
            "corpus import": {"papers_a_second": round(rate, 2), "peak_rss_mib": peak},
        },
        ratio=round(rate / bare, 3),
        papers=count,
        python=sys.version.split()[0],
    )


def measure_given_vectors(size: str) -> None:
    rate, peak = import_rate(papers_file(size), "--vectors", str(vectors_of(size)))
    publish(
        f"import-vectors-{size}",
        {f"{size} with vectors": {"papers_a_second": round(rate), "peak_rss_mib": peak}},
    )
