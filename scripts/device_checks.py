"""What scripts/test-device does inside the booted container, and the page it makes of the results.

Runs there with Debian's own Python, so it imports nothing else.
"""

import datetime as dt
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

UNIT = "arxplorer-agent.service"
DATA = Path("/var/lib/arxplorer-agent")
DROP_IN = Path(f"/run/systemd/system/{UNIT}.d/checks.conf")
WATCHDOG_S = 4
STOP_S = 5
PAPERS = 20_000
PAGE = Path(__file__).parents[1] / "docs" / "device-checks.md"

HANGS = """
import pathlib, time
from agent.search.engine import SearchEngine
search = SearchEngine.search
def hanging(self, request):
    while pathlib.Path("/run/arxplorer-agent/hang").exists():
        time.sleep(0.05)
    return search(self, request)
SearchEngine.search = hanging
"""
MANY = f"""
import json, numpy, random
words = [chr(97 + i % 26) * 2 + chr(97 + i // 26 % 26) + chr(97 + i // 676) for i in range(5000)]
with open("/root/many.jsonl", "w") as out:
    for i in range({PAPERS}):
        text = " ".join(random.choices(words, k=60))
        out.write(json.dumps({{"id": f"2001.{{i:05}}", "title": text[:40], "abstract": text}}) + "\\n")
numpy.save("/root/many.npy", numpy.random.default_rng(1).integers(-127, 127, ({PAPERS}, 384), dtype="i1"))
"""

results: list[dict[str, str]] = []


class FailedError(Exception):
    """A check that does not hold."""


def run(*command: str, check: bool = True, timeout: float = 120) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise FailedError(f"{' '.join(command)}: {done.stdout[-300:]}{done.stderr[-1500:]}")
    return done.stdout + done.stderr


def show(name: str) -> str:
    return run("systemctl", "show", "-p", name, "--value", UNIT).strip()


def agent(*arguments: str, check: bool = True) -> str:
    return run("arxplorer-agent", *arguments, check=check)


def holds(fact: object, what: str) -> None:
    if not fact:
        raise FailedError(what)


def until(condition: Callable[[], object], limit_s: float, what: str) -> float:
    started = time.monotonic()
    while not condition():
        holds(time.monotonic() - started < limit_s, f"not within {limit_s} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - started


def answers(query: str = "heavy neutrinos and the lack of antimatter") -> bool:
    document = run("arxplorer-agent", "ask", query, "--json", "--max-results", "1", check=False)
    return '"arxiv_id"' in document


def seconds(value: float) -> str:
    return f"{value:.1f} s"


# -- the checks, in this order ----------------------------------------------------------------------------------------


def installed_it_runs() -> str:
    started = time.monotonic()
    run("dpkg", "-i", "/root/this.deb")
    took = time.monotonic() - started
    holds(show("ActiveState") == "active", show("ActiveState"))
    begun, ready = (int(show(f"{name}TimestampMonotonic")) / 1e6 for name in ("ExecMainStart", "ActiveEnter"))
    return f"installed in {seconds(took)}, ready {ready - begun:.2f} s after its start"


def without_a_corpus_it_stays_up() -> str:
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(f"[Service]\nWatchdogSec={WATCHDOG_S}\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", UNIT)
    time.sleep(3 * WATCHDOG_S)
    holds(show("NRestarts") == "0", "it was started anew")
    holds("no papers" in show("StatusText"), show("StatusText"))
    agent("health")
    return f"{3 * WATCHDOG_S} s under a watchdog of {WATCHDOG_S} s, status `{show('StatusText')}`, healthy"


def a_request_is_answered() -> str:
    agent("corpus", "import", "--sample")
    return f"{seconds(until(answers, 10, 'an answer'))} after root's import"


def a_member_of_the_group_uses_the_same_corpus() -> str:
    run("useradd", "-G", "arxplorer", "member")
    record = json.dumps({"id": "2401.00001", "title": "Zebra crossings of the lattice", "abstract": "Zebras."})
    run("runuser", "-u", "member", "--", "arxplorer-agent", "corpus", "add", record)
    search = ("runuser", "-u", "member", "--", "arxplorer-agent", "search", "zebra crossings")
    until(lambda: "Zebra crossings" in run(*search), 10, "the new paper")
    run("runuser", "-u", "member", "--", "arxplorer-agent", "health")
    foreign = run("find", str(DATA), "!", "-group", "arxplorer")
    holds(not foreign, foreign)
    others = run("runuser", "-u", "nobody", "--", "ls", str(DATA), check=False)
    holds("Permission denied" in others, "others can look in")
    return "adds, searches, sees its health; others see nothing"


def killed_it_answers_again() -> str:
    run("systemctl", "kill", "-s", "KILL", UNIT)
    took = until(answers, 5, "an answer after kill -9")
    return f"answered {seconds(took)} after kill -9"


def a_hung_worker_is_noticed() -> str:
    # Debian has a sitecustomize of its own; a line of a .pth file is run as well.
    site = next(Path("/opt/arxplorer-agent/lib").glob("python3*/site-packages"))
    hook = (site / "hanging.py", site / "hanging.pth")
    hook[0].write_text(HANGS)
    hook[1].write_text("import hanging\n")
    try:
        run("systemctl", "restart", UNIT)
        until(answers, 5, "an answer")
        before = int(show("NRestarts"))
        Path("/run/arxplorer-agent/hang").touch()  # goes with the folder when the service ends
        took = until(lambda: int(show("NRestarts")) > before, 4 * WATCHDOG_S, "a new start")
        again = until(answers, 5, "an answer")
    finally:
        for file in hook:
            file.unlink()
        run("systemctl", "restart", UNIT)
    journal = run("journalctl", "-u", UNIT, "-b", "--no-pager")
    holds("in hanging" in journal, "the journal does not say where it hung")
    return f"started anew after {seconds(took)} (watchdog {WATCHDOG_S} s), answered {seconds(again)} later"


def while_it_rebuilds_it_stays_up_and_answers() -> str:
    run("/opt/arxplorer-agent/bin/python3", "-I", "-c", MANY)
    run("systemctl", "stop", UNIT)
    agent("corpus", "import", "/root/many.jsonl", "--vectors", "/root/many.npy")
    for cache in ("vectors", "keywords"):
        run("rm", "-rf", str(DATA / "current" / cache))
    started = time.monotonic()
    run("systemctl", "start", UNIT)
    ready = time.monotonic() - started
    took = until(answers, 30, "an answer")
    built = until(lambda: show("StatusText") == "answering", 120, "the end of the rebuild")
    holds(show("NRestarts") == "0", "it was started anew")
    return f"{PAPERS} papers, no index: ready in {seconds(ready)}, answer {took:.1f} s later, whole {built:.1f} s later"


def it_stops_in_time() -> str:
    load = [subprocess.Popen(["arxplorer-agent", "ask", "zebra"], stdout=subprocess.DEVNULL) for _ in range(4)]
    started = time.monotonic()
    run("systemctl", "stop", UNIT)
    took = time.monotonic() - started
    for client in load:
        client.kill()
        client.wait()
    holds(took < STOP_S, seconds(took))
    holds(show("Result") == "success", show("Result"))
    run("systemctl", "start", UNIT)
    return seconds(took)


def an_upgrade_keeps_what_is_there() -> str:
    until(answers, 10, "an answer")
    before = json.loads(agent("corpus", "stats", "--json"))["papers"]
    config = Path("/etc/arxplorer-agent/config.yaml")
    config.write_text(config.read_text() + "# changed by hand\n")
    run("dpkg", "-i", "/root/next.deb")
    until(answers, 10, "an answer")
    after = json.loads(agent("corpus", "stats", "--json"))["papers"]
    holds(before == after > PAPERS, f"{before} papers became {after}")
    holds("changed by hand" in config.read_text(), "the configuration was replaced")
    return f"{after} papers before and after, the changed configuration kept"


def removing_keeps_and_purging_leaves_nothing() -> str:
    run("dpkg", "-r", "arxplorer-agent")
    holds((DATA / "current" / "papers.db").exists(), "the corpus went with the program")
    holds(not Path("/opt/arxplorer-agent").exists(), "/opt/arxplorer-agent was left")
    DROP_IN.unlink()
    DROP_IN.parent.rmdir()
    run("dpkg", "-P", "arxplorer-agent")
    left = run("find", "/", "-xdev", "-name", "*arxplorer*", "-not", "-path", "/proc/*")
    left += run("getent", "passwd", "arxplorer", check=False) + run("getent", "group", "arxplorer", check=False)
    holds(not left, left)
    return "no file, user or group"


def a_broker_set_up_before_is_left_alone() -> str:
    own = Path("/etc/mosquitto/conf.d/own.conf")
    own.write_text("listener 1883 127.0.0.1\nallow_anonymous true\n")
    said = run("dpkg", "-i", "/root/this.deb")
    run("systemctl", "restart", "mosquitto")
    agent("corpus", "import", "--sample")
    until(answers, 10, "an answer")
    holds("listeners already" in said and not own.with_name("arxplorer.conf").exists(), said)
    run("dpkg", "-P", "arxplorer-agent")
    left = sorted(path.name for path in own.parent.iterdir())
    holds(left == ["README", "own.conf"], str(left))
    return "ours was put aside, and is gone after purge"


CHECKS = (
    installed_it_runs,
    without_a_corpus_it_stays_up,
    a_request_is_answered,
    a_member_of_the_group_uses_the_same_corpus,
    killed_it_answers_again,
    a_hung_worker_is_noticed,
    while_it_rebuilds_it_stays_up_and_answers,
    it_stops_in_time,
    an_upgrade_keeps_what_is_there,
    removing_keeps_and_purging_leaves_nothing,
    a_broker_set_up_before_is_left_alone,
)


def main() -> None:
    version = run("dpkg-deb", "-f", "/root/this.deb", "Version").strip()
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            results.append({"check": name, "result": "yes", "seen": check()})
        except (FailedError, OSError, ValueError, subprocess.SubprocessError) as error:
            results.append({"check": name, "result": "NO", "seen": re.sub(r"\s+", " ", str(error))[-300:]})
            print(run("journalctl", "-u", UNIT, "-b", "--no-pager", "-n", "40", check=False))
        print(results[-1])
    system = run("systemctl", "--version").split()[1]
    Path("/root/results.json").write_text(json.dumps({"version": version, "systemd": system, "checks": results}))


def report(file: str, suite: str, arch: str) -> None:
    """Put the results of this suite into the page, and exit 1 if a check failed."""
    found = json.loads(Path(file).read_text("utf-8"))
    rows = [f"| {check['check']} | {check['result']} | {check['seen']} |" for check in found["checks"]]
    today = dt.datetime.now(dt.UTC).date()
    head = f"## {suite} {arch}\n\n{today}, package {found['version']}, systemd {found['systemd']}.\n\n"
    section = head + "| | holds | seen |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    text = PAGE.read_text("utf-8") if PAGE.exists() else ""
    text = text or (
        "# What was checked on a booted system\n\nWritten by `scripts/test-device`: the package installed in a booted "
        "systemd-nspawn container on a development machine.\nNo Raspberry Pi was at hand; times are those of that "
        "machine.\n"
    )
    parts = [part for part in re.split(r"\n(?=## )", text) if not part.startswith(f"## {suite} {arch}\n")]
    PAGE.write_text("\n".join(part.rstrip("\n") + "\n" for part in [*parts, section]), "utf-8")
    sys.exit(any(check["result"] != "yes" for check in found["checks"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--report"]:
        report(*sys.argv[2:])
    else:
        main()
