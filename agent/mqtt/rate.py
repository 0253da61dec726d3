"""So many a second, in bursts of as many. Pure: the time is handed in."""

from typing import Final


class Rate:
    def __init__(self, per_second: int) -> None:
        self._per_second: Final = per_second
        self._left = float(per_second)
        self._seen: float | None = None

    def take(self, now: float) -> bool:
        """Whether one more is within the rate, and if so, count it."""
        self._refill(now)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def reserve(self, now: float) -> float:
        """Count one more in any case; the seconds that it has to wait to be within the rate."""
        self._refill(now)
        self._left -= 1
        return max(0.0, -self._left / self._per_second)

    def _refill(self, now: float) -> None:
        elapsed = 0.0 if self._seen is None else now - self._seen
        self._seen = now
        self._left = min(float(self._per_second), self._left + elapsed * self._per_second)
