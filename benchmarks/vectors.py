"""The int8 model beside fp32: cosines, and the size of what each does."""

import time

import numpy as np
import onnxruntime

from agent.config import load_config
from agent.model.install import self_test
from agent.paths import find_model
from benchmarks.report import percentiles, publish


def measure() -> None:
    config = load_config(environment={})
    folder = find_model(config.data_dir, config.model.name)
    assert folder
    result = self_test(folder)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    ids = np.array([[101, 2784, 4083, 2005, 3746, 5038, 4275, 102]])
    times = []
    for _ in range(300):
        started = time.perf_counter()
        session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        times.append(time.perf_counter() - started)
    row = {
        "cosine_mean": round(result.mean, 5),
        "cosine_worst": round(result.worst, 5),
        "worst_alone_vs_batch": round(result.worst_in_batch, 7),
        "mb": round((folder / "model.onnx").stat().st_size / 1e6, 1),
    }
    publish("vectors", {config.model.name: row | percentiles(times)}, reference_texts=result.texts)
