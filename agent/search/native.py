"""The order in which two native libraries are loaded.

usearch loads its kernels with global symbols; when onnxruntime is loaded after that, the process dies of a
segmentation fault (usearch 2.26.6, onnxruntime 1.32.0, x86-64). The other order works, so usearch is only ever
reached through here, and only when a graph is really needed: without a model neither is loaded.
"""

from typing import Any


def usearch_index(**options: Any) -> Any:
    """Make a `usearch.index.Index`."""
    import onnxruntime  # noqa: F401  before usearch, see above
    from usearch.index import Index

    return Index(**options)
