"""The log, and how much it says."""

import subprocess
import sys
from pathlib import Path

LEVELS = """
import logging, sys, time
from pathlib import Path
from awscrt import io
from agent.logs import set_level, set_up_logging
log = Path(sys.argv[1])
set_up_logging("warning")
for level in ("warning", "debug", "info", "debug"):
    set_level(level)
    logging.getLogger("agent").info("said at %s", level)
    said = len(log.read_text())
    while level == "debug" and "[DEBUG]" not in log.read_text()[said:]:  # the library writes from a thread of its own
        io.ClientTlsContext(io.TlsContextOptions())
        time.sleep(0.01)
"""


def test_the_level_may_change_at_any_time_and_debug_opens_the_librarys_own_log(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("wb") as log:
        subprocess.run([sys.executable, "-c", LEVELS, str(file)], stderr=log, check=True, timeout=60)
    said = [line for line in file.read_text().split("\n") if "said at" in line]
    assert [line.rpartition(" ")[2] for line in said] == ["debug", "info", "debug"]
