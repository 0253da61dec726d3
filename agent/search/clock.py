"""Stage times of one search."""

import time


class StageClock:
    """Milliseconds by stage, on monotonic time; a stage that runs twice adds up."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Book the time since the last lap under `stage`."""
        now = time.perf_counter()
        self.timings_ms[stage] = round(self.timings_ms.get(stage, 0.0) + (now - self._last) * 1e3, 3)
        self._last = now
