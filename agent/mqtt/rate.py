"""So many a second, in bursts of a bounded size. Pure: the time is handed in."""

from typing import Final


class Rate:
    def __init__(self, per_second: float, burst: float | None = None) -> None:
        """`burst` may come at once after a pause; by default one second's worth."""
        self._per_second: Final = per_second
        self._burst: Final = float(per_second if burst is None else burst)
        self._left = self._burst
        self._seen: float | None = None

    def take(self, now: float) -> bool:
        """Whether one more is within the rate, and if so, count it."""
        self._refill(now)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def wait(self, now: float) -> float:
        """Seconds until one more is within the rate."""
        self._refill(now)
        return max(0.0, (1 - self._left) / self._per_second)

    def reserve(self, now: float, amount: int = 1) -> float:
        """Count `amount` more in any case; the seconds that it has to wait to be within the rate."""
        self._refill(now)
        self._left -= amount
        return max(0.0, -self._left / self._per_second)

    def _refill(self, now: float) -> None:
        elapsed = 0.0 if self._seen is None else now - self._seen
        self._seen = now
        self._left = min(self._burst, self._left + elapsed * self._per_second)
