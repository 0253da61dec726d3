"""The fault lab, at length: what is written while nothing fails, many faults, hours of one process; then the report."""

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults import lab
from faults.report import failures, table
from faults.schedule import schedule
from faults.world import World

ONLINE_REQUESTS = 1_000
ENDLESS = 100_000
"""Faults drawn for a long run; it ends long before they do."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0, help="of one process under faults that it survives")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=10_000, help="of the campaign with kills of the agent")
    parser.add_argument("--faults", type=int, default=200, help="of the campaign; 0: none")
    parser.add_argument("--report", type=Path, help="write the report here as well, as JSON")
    parser.add_argument("--keep", type=Path, help="folder for logs and all, kept; default: a temporary one")
    return parser.parse_args()


def main() -> int:
    given = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left mounted or running
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = given.keep or Path(temporary)
        report = run(given, folder)
    print(table(report))
    if given.report:
        given.report.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 1 if failures(report) else 0


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = {"seed": given.seed, "restarts": 0, "crashes": [], "connects": {"local": 0, "cloud": 0}}
    # In an ordinary folder: what is written to a file system in memory is not counted.
    with new_world(folder / "online", spare_disk=False) as world:
        report["online"] = lab.online(world, ONLINE_REQUESTS, given.seed)
        note(report, world)
    if given.faults:
        with new_world(folder / "campaign") as world:
            faults = schedule(given.seed, given.faults, without=world.spared())
            report["campaign"] = lab.campaign(world, faults, given.requests, given.seed, say)
            note(report, world)
    if given.hours:
        with new_world(folder / "endurance") as world:
            faults = schedule(given.seed, ENDLESS, kills=0, without=world.spared())
            report["endurance"] = lab.endurance(world, iter(faults).__next__, given.hours * 3600, given.seed, say)
            note(report, world)
    return report


def new_world(folder: Path, *, spare_disk: bool = True) -> World:
    folder.mkdir(parents=True)
    folder.parent.chmod(0o755)
    return World(folder, spare_disk=spare_disk)


def note(report: dict[str, Any], world: World) -> None:
    report["restarts"] += world.restarts
    report["crashes"] += world.crashes
    report["spared"] = sorted(world.spared())
    for link, count in world.connects().items():
        report["connects"][link] += count


def say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
