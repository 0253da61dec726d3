"""A wall clock of the agent's own that can jump, by libfaketime; monotonic time goes on as it is."""

from pathlib import Path
from typing import Final

LIBRARIES: Final = ("/usr/lib", "/usr/local/lib")
CACHE_S: Final = "1"
"""Between two looks at the file: a look at each reading of the clock would cost more than the agent does."""


class Clock:
    def __init__(self, file: Path) -> None:
        self._file: Final = file
        self._library: Final = library()
        self.jump(0.0)

    @property
    def available(self) -> bool:
        return self._library is not None

    def environment(self) -> dict[str, str]:
        """What makes a process go by this clock; nothing where the library is missing."""
        if self._library is None:
            return {}
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": CACHE_S,
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, offset_s: float) -> None:
        """Be so far off from here on."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{offset_s:+.0f}\n", "ascii")
        fresh.replace(self._file)


def library() -> Path | None:
    """libfaketime for programs with threads; None where it is not installed (Debian: libfaketime)."""
    found = (file for folder in LIBRARIES for file in Path(folder).glob("**/faketime/libfaketimeMT.so.1"))
    return next(found, None)
