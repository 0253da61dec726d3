"""Text to unit vector. The only module that imports tokenizers."""

import os
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.protocol.manifest import ModelManifest, parse_manifest
from agent.search.native import onnx_runtime

Vectors = NDArray[np.float32]
"""Shape (texts, dimensions), each row of length 1."""

BATCH_TOKENS: Final = 512
"""Padded tokens in one run when indexing. Larger batches are no faster on a CPU and cost memory."""


class Embedder:
    """One installed model, loaded. Safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        """Load model.onnx, tokenizer.json and model.yaml from `folder`; raises ModelError."""
        # The tokenizer's own thread pool would compete with ours and warns after a fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer

        onnxruntime = onnx_runtime()
        self.manifest: Final[ModelManifest] = parse_manifest(
            _read_text(folder / "model.yaml"), where=str(folder / "model.yaml")
        )
        tokenizer_path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_str(_read_text(tokenizer_path))
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(f"{tokenizer_path} is damaged: {error}") from error
        # Published tokenizers may cut and pad at lengths of their own.
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.manifest.max_tokens)
        self._tokenizer = tokenizer

        onnxruntime.set_default_logger_severity(3)
        model_path = folder / "model.onnx"
        try:
            self._session = onnxruntime.InferenceSession(
                str(model_path), session_options(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ModelError(
                f"{model_path} cannot be loaded: {error}",
                hint=f"arxplorer-agent model install {self.manifest.name}",
            ) from error
        self._inputs = {argument.name for argument in self._session.get_inputs()}
        unknown = self._inputs - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown:
            raise ModelError(f"{model_path} asks for unknown inputs: {', '.join(sorted(unknown))}")
        # Indexing runs give their buffers back, so that an agent that has embedded papers is as small as before.
        self._shrinking = onnxruntime.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    @property
    def dimensions(self) -> int:
        return self.manifest.dimensions

    def query(self, text: str) -> NDArray[np.float32]:
        """Embed a question; shape (dimensions,)."""
        return self.vector(self.query_tokens(text))

    def query_tokens(self, text: str) -> list[int]:
        """The first half of `query`: Python's lock is held for little of the second."""
        tokens: list[int] = self._tokenizer.encode(self.manifest.query_prefix + text).ids
        return tokens

    def vector(self, tokens: list[int]) -> NDArray[np.float32]:
        """Embed one text of which the tokens are known; shape (dimensions,)."""
        vector: NDArray[np.float32] = self._run([tokens])[0]
        return vector

    def documents(self, texts: Sequence[str], *, workers: int = 1) -> Vectors:
        """Embed documents, in their order; shape (len(texts), dimensions)."""
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        for indices, batch in self.batches(texts, workers=workers):
            vectors[indices] = batch
        return vectors

    def batches(self, texts: Sequence[str], *, workers: int = 1) -> Generator[tuple[list[int], Vectors], None, None]:
        """Embed documents as they come ready: pairs of positions in `texts` and their vectors.

        Texts of like length share a run, so that little is padding; `workers` runs go on at a time.
        """
        prefix = self.manifest.document_prefix
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch([prefix + text for text in texts])]
        plan = plan_batches([len(ids) for ids in tokens], BATCH_TOKENS)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="embed")
        running: dict[Future[Vectors], list[int]] = {}
        try:
            while plan or running:
                while plan and len(running) < workers + 1:
                    indices = plan.pop()
                    running[pool.submit(self._run, [tokens[i] for i in indices], shrink=not plan)] = indices
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _run(self, tokens: list[list[int]], *, shrink: bool = False) -> Vectors:
        longest = max(map(len, tokens))
        ids = np.zeros((len(tokens), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, text_ids in enumerate(tokens):
            ids[row, : len(text_ids)] = text_ids
            mask[row, : len(text_ids)] = 1
        feed: dict[str, Any] = {"input_ids": ids}
        if "attention_mask" in self._inputs:
            feed["attention_mask"] = mask
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(ids)
        output: NDArray[np.float32] = self._session.run(None, feed, self._shrinking if shrink else None)[0]
        if output.shape[-1] != self.dimensions:
            raise ModelError(
                f"the model gives vectors of {output.shape[-1]} dimensions, model.yaml says {self.dimensions}"
            )
        return unit(output if output.ndim == 2 else pool_tokens(output, mask, self.manifest.pooling))  # noqa: PLR2004


def session_options() -> Any:
    """How onnxruntime is to run a model here."""
    options = onnx_runtime().SessionOptions()
    options.intra_op_num_threads = 1  # several single-threaded runs beat one run on several threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # plans are kept by shape, and every text has another length
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # x86-64 processors without VNNI would add products up in 16 bits, which overflow: the vectors would be less good,
    # and not those of other processors, which do not look at this.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def plan_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group positions by length so that a batch's padded size (rows x longest) stays within `budget` tokens.

    Shortest first; a text longer than the budget goes alone.
    """
    plan: list[list[int]] = []
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[position] * (len(batch) + 1) > budget:
            plan.append(batch)
            batch = []
        batch.append(position)
    if batch:
        plan.append(batch)
    return plan


def pool_tokens(states: NDArray[np.float32], mask: NDArray[np.int64], pooling: str) -> Vectors:
    """Token states (texts, tokens, dimensions) to one vector a text, for ready-made graphs that do not pool."""
    if pooling == "cls":
        return states[:, 0]
    kept = mask[:, :, None].astype(np.float32)
    mean: Vectors = (states * kept).sum(axis=1) / kept.sum(axis=1)
    return mean


def unit(vectors: Vectors) -> Vectors:
    """Scale each row to length 1; a row of zeros stays as it is."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return scaled


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
