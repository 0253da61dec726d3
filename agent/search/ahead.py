"""Work that another thread may do while this one is busy."""

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """A computation offered to a pool. If nobody has begun it by the time its result is asked for, it runs here.

    So it saves time where a core is free, and costs next to nothing where none is.
    """

    def __init__(self, pool: Executor, work: Callable[[], T]) -> None:
        self._work: Final = work
        self._future: Final = pool.submit(work)

    def result(self) -> T:
        """Wait for the result, or compute it; raises what the work raises."""
        return self._work() if self._future.cancel() else self._future.result()
