"""What the checks of scripts/device_checks.py do things with, and the code that they run in the agent or beside it."""

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNIT = "arxplorer-agent.service"
DATA = Path("/var/lib/arxplorer-agent")
CONFIG = Path("/etc/arxplorer-agent/config.yaml")
PROGRAM = Path("/opt/arxplorer-agent")
DROP_IN = Path(f"/run/systemd/system/{UNIT}.d/checks.conf")
PAPERS = 20_000
ASKS = 100
ASKS_A_SECOND = 2
LINES = 20_000

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
FLOODS = f"""
import os, sys
if "JOURNAL_STREAM" in os.environ:
    for number in range({LINES}):
        print("flood", number, file=sys.stderr)
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
ASKING = f"""
import asyncio, json, time
from agent.aws import AWSIoTMQTTClient
async def main():
    client = AWSIoTMQTTClient()
    await client.connect()
    async def ask(number):
        await asyncio.sleep(number / {ASKS_A_SECOND})
        started = time.monotonic()
        answer = await client.ask("heavy neutrinos", {{"max_results": 1}}, timeout_s=30)
        return time.monotonic() - started if answer.get("results") else str(answer)
    print(json.dumps([str(a) if isinstance(a, Exception) else a
        for a in await asyncio.gather(*map(ask, range({ASKS})), return_exceptions=True)]))
asyncio.run(main())
"""
LOCAL_CLOUD = """
import sys
sys.path.append("/root/local-cloud")
from agent.__main__ import main
main()
"""


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


def journal(*arguments: str) -> str:
    return run("journalctl", "-u", UNIT, "-b", "--no-pager", *arguments)


def listens(host: str, port: int = 1883) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def files() -> set[str]:
    """Every file and folder but those that any installation leaves: dpkg's and apt's own, logs, caches, backups."""
    passed_over = "/root /tmp /var/tmp /var/cache /var/log /var/lib/apt /var/lib/dpkg /var/lib/mosquitto"
    options = [word for path in passed_over.split() for word in ("-path", path, "-prune", "-o")]
    found = run("find", "/", "-xdev", *options, "-print") + run("find", "/run", "-name", "*arxplorer*")
    return {path for path in found.splitlines() if not path.endswith(("-", ".pyc", "/__pycache__"))}


@contextmanager
def hooked(code: str) -> Iterator[None]:
    """The program with some code of ours run at its start, by a .pth file: Debian has a sitecustomize of its own."""
    site = next(PROGRAM.glob("lib/python3*/site-packages"))
    hook = (site / "hooked.py", site / "hooked.pth")
    hook[0].write_text(code)
    hook[1].write_text("import hooked\n")
    try:
        yield
    finally:
        for file in hook:
            file.unlink()


@contextmanager
def starved(share: float) -> Iterator[None]:
    """The service gets only this share of the time, in slices of 100 ms, from its start on."""
    over = threading.Event()

    def starve() -> None:
        while not over.is_set():
            with suppress(ProcessLookupError):
                pid = int(show("MainPID") or 0)
                while pid and not over.is_set():
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(0.1 * (1 - share))
                    os.kill(pid, signal.SIGCONT)
                    time.sleep(0.1 * share)

    thread = threading.Thread(target=starve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def tried(checks: Iterable[Callable[[], str]]) -> Iterator[dict[str, str]]:
    """What became of each check, in order: its name as a sentence, whether it holds, what was seen."""
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            yield {"check": name, "result": "yes", "seen": check()}
        except (FailedError, OSError, ValueError, subprocess.SubprocessError) as error:
            yield {"check": name, "result": "NO", "seen": re.sub(r"\s+", " ", str(error))[-300:]}


def seconds(value: float) -> str:
    return f"{value:.1f} s"
