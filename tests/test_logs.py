"""The log, and how much it says."""

import logging
import os
import subprocess
import sys
from pathlib import Path

from conftest import COMMAND

from agent.logs import JournalFormatter, RepeatFilter, to_journal

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


def record(message: str, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("agent.mqtt", level, "file.py", 1, message, None, None)


def test_a_journal_gets_priorities_and_no_time() -> None:
    formatter = JournalFormatter()
    said = [
        formatter.format(record("x", level))
        for level in (logging.CRITICAL, logging.WARNING, logging.INFO, logging.DEBUG)
    ]
    assert said == [f"<{priority}>agent.mqtt: x" for priority in (3, 4, 6, 7)]
    assert formatter.format(record("two\nlines")) == "<4>agent.mqtt: two\n<4>lines"


def test_a_journal_knows_an_error_that_ends_a_command_for_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("serach: {}\n")
    with (tmp_path / "log").open("wb") as log:
        status = os.fstat(log.fileno())
        environment = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        subprocess.run([COMMAND, "config", "show"], cwd=tmp_path, env=environment, stderr=log, check=False, timeout=60)
    said = (tmp_path / "log").read_text().splitlines()
    assert said
    assert all(line.startswith("<3>") for line in said)


def test_a_journal_is_told_by_the_file_that_the_log_goes_to(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        status = os.fstat(log.fileno())
        assert to_journal(log.fileno(), {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        assert not to_journal(log.fileno(), {"JOURNAL_STREAM": f"{status.st_dev}:1"})
        assert not to_journal(log.fileno(), {})


def test_the_same_warning_is_logged_once_a_minute() -> None:
    now = [0.0]
    passes = RepeatFilter(lambda: now[0])
    assert [passes.filter(record("disk full")) for _ in range(3)] == [True, False, False]
    assert passes.filter(record("another"))
    assert [passes.filter(record("news", logging.INFO)) for _ in range(2)] == [True, True]
    now[0] = 60.0
    assert [passes.filter(record("disk full")) for _ in range(2)] == [True, False]
