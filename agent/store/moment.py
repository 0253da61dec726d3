"""How much time has passed since something was written down, also across restarts, as well as the clocks allow. Pure.

Within one boot the kernel's own clock tells, whatever is done to the wall clock. Across boots only the wall clock can,
if it was right both times; else nothing is known, and nothing counts as passed: a message delivered late is better
than one that is lost.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

PLAUSIBLE_S: Final = 1_767_225_600.0
"""2026-01-01, before this was built: a wall clock that shows less was never set."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Moment(NamedTuple):
    """Now, by each clock: which boot, the seconds since then (sleep included), the seconds since 1970."""

    boot: str
    uptime_s: float
    wall_s: float

    @classmethod
    def now(cls) -> Self:
        boot = ""
        with suppress(OSError):
            boot = BOOT_ID.read_text("ascii").strip()
        return cls(boot, time.clock_gettime(time.CLOCK_BOOTTIME), time.time())

    def since(self, earlier: "Moment") -> float:
        """Seconds from `earlier` to here; 0 where no clock can tell."""
        if self.boot and self.boot == earlier.boot and self.uptime_s >= earlier.uptime_s:
            return self.uptime_s - earlier.uptime_s
        if min(self.wall_s, earlier.wall_s) < PLAUSIBLE_S:
            return 0.0
        return max(0.0, self.wall_s - earlier.wall_s)
