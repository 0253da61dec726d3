"""The bare libraries, as a script uses them that has nothing of the agent: model and keyword index.

Imports little, so that a process which is measured holds only what it needs.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np

MAX_TOKENS: Final = 256


class BareModel:
    """Tokeniser and int8 model of an installed model's folder, for one text at a time."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)

    def embed(self, text: str) -> Any:
        """The unit f32 vector of a text."""
        ids = np.array([self.tokenizer.encode(text).ids])
        return self.session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]


def int8_of(vectors: Any) -> Any:
    """A vector, or rows of them, each scaled by its own largest component to +-127, as the stored ones are."""
    largest = np.maximum(np.abs(vectors).max(axis=-1, keepdims=True), 1e-12)
    return np.rint(vectors / largest * 127).astype(np.int8)


class BareKeywords:
    """The agent's tantivy index, searched by tantivy alone."""

    def __init__(self, folder: Path) -> None:
        import tantivy

        self._library = tantivy
        self.analyzer = (
            tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
            .filter(tantivy.Filter.remove_long(40))
            .filter(tantivy.Filter.lowercase())
            .filter(tantivy.Filter.ascii_fold())
            .filter(tantivy.Filter.stopword("english"))
            .filter(tantivy.Filter.stemmer("english"))
            .build()
        )
        self.index = tantivy.Index.open(str(folder))
        self.schema = self.index.schema
        self.searcher = self.index.searcher()

    def search(self, text: str, limit: int = 100) -> Any:
        """Keys of the best papers that hold any term of the text."""
        should = self._library.Occur.Should
        query = self._library.Query.boolean_query(
            [
                (should, self._library.Query.term_query(self.schema, "body", term, index_option="freq"))
                for term in dict.fromkeys(self.analyzer.analyze(text))
            ]
        )
        hits = self.searcher.search(query, limit=limit, count=False).hits
        keys: Any = self.searcher.fast_field_values("key", [address for _, address in hits])
        return keys
