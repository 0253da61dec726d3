"""What the native libraries need of whoever calls them.

usearch loads its kernels with global symbols; when onnxruntime is loaded after that, the process dies of a
segmentation fault (usearch 2.26.6, onnxruntime 1.32.0, x86-64). The other order works, so usearch and its kernels
are only ever reached through here, and only when they are really needed: without a model neither is loaded.

A damaged file may make a library panic, which arrives as an exception outside Python's `Exception`.
"""

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from agent.errors import DamagedIndexError, ShortageError
from agent.store.faults import SHORTAGES


def onnx_runtime() -> Any:
    """The module `onnxruntime`, kept from reporting.

    Since 1.32 it sends events to its maker, and keeps a device id and what it could not send in ~/.cache.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def usearch_index(**options: Any) -> Any:
    """Make a `usearch.index.Index`."""
    onnx_runtime()  # before usearch, see above
    from usearch.index import Index

    return Index(**options)


def angular_distances(query: Any, matrix: Any) -> Any:
    """1 - cosine of one int8 vector and each row of an int8 matrix, by the kernels that usearch uses; shape (rows,)."""
    import numpy as np

    onnx_runtime()  # before usearch's kernels, see above
    numkong = importlib.import_module("numkong")
    return np.asarray(numkong.cdist(query[None, :], matrix, "angular"))[0]


@contextmanager
def damage_of(part: Literal["keywords", "vectors"]) -> Iterator[None]:
    """Whatever a library says or does against its files is damage of that index.

    Raises DamagedIndexError, and ShortageError where the machine has run short of something.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        # Rust's libraries put the number of the system's error into words.
        numbers = [*re.findall(r"(?:os error|code:) (\d+)", str(error)), getattr(error, "errno", None) or 0]
        if SHORTAGES.intersection(map(int, numbers)):
            raise ShortageError(f"the index of {part} cannot be written: {error}") from error
        raise DamagedIndexError(part, f"{type(error).__name__}: {error}") from error
