"""What a run of the lab has shown: whether all of it held, and a table for people."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

LINKS: Final = ("local", "cloud")
NONE_OF: Final = ("unanswered", "wrong", "strangers")
COUNTS: Final = ("requests", "answered", "unanswered", "wrong", "strangers", "answered_again", "sent", "slowest_s")


def failures(report: Mapping[str, Any]) -> list[str]:
    """What should not have been; nothing where all is well."""
    return [f"{part}: {what}" for part, found in _runs(report) for what in _failures(found)] + [
        f"the agent ended by itself: {crash}" for crash in report.get("crashes", ())
    ]


def _runs(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((part, found) for part, found in report.items() if isinstance(found, dict) and "audit" in found)


def _failures(found: Mapping[str, Any]) -> Iterator[str]:
    for link in LINKS:
        for name in NONE_OF:
            if found[link][name]:
                yield f"{link}: {found[link][name]} {name}"
        if found["audit"][link]["early"]:
            yield f"{link}: acknowledged early: {', '.join(found['audit'][link]['early'])}"
        if not found["audit"][link]["acknowledged"]:
            yield f"{link}: nothing was audited"
    yield from (f"wrong: {what}" for what in found.get("wrong", ()))
    if found.get("changed_files"):
        yield f"queries changed {', '.join(found['changed_files'])}"
    if found.get("written_bytes_per_1000") and not found["log_bytes_per_1000"]:
        yield f"queries wrote {found['written_bytes_per_1000']} bytes per 1,000 to disk, and said nothing"
    if found.get("one_process") is False:
        yield "it was not one process all the time, so what it takes says nothing"


def table(report: Mapping[str, Any]) -> str:
    lines = [
        f"seed {report['seed']}",
        f"agent: {report['restarts']} restarts, {len(report['crashes'])} of them crashes",
    ]
    lines.append(f"connects: local {report['connects']['local']}, cloud {report['connects']['cloud']}")
    if report["spared"]:
        lines.append(f"NOT TRIED HERE: faults of {', '.join(report['spared'])}")
    for part, found in _runs(report):
        lines += ["", f"== {part}" + (f", {found['seconds']:.0f} s" if "seconds" in found else "")]
        lines.append(f"{'':16}{'local':>10}{'cloud':>10}")
        for name in COUNTS:
            lines.append(f"{name:16}" + "".join(f"{found[link][name]:>10}" for link in LINKS))
        for name in ("acknowledged", "stored"):
            lines.append(f"{name:16}" + "".join(f"{found['audit'][link][name]:>10}" for link in LINKS))
        lines.append(f"{'early':16}" + "".join(f"{len(found['audit'][link]['early']):>10}" for link in LINKS))
        lines += _details(found)
    wrong = failures(report)
    return "\n".join([*lines, "", *(wrong or ["all requests answered, none wrongly, none acknowledged early"])])


def _details(found: Mapping[str, Any]) -> Iterator[str]:
    for link in LINKS:
        if found[link]["errors"]:
            yield f"errors, {link}: " + ", ".join(f"{count} {code}" for code, count in found[link]["errors"].items())
    if "faults" in found:
        faults = found["faults"]
        yield f"faults: {sum(faults.values())}: " + ", ".join(f"{count} {kind}" for kind, count in faults.items())
    if "written_bytes_per_1000" in found:
        changed = ", ".join(found["changed_files"]) or "none"
        yield f"bytes written per 1,000 requests: {found['written_bytes_per_1000']}, of these to the log: {found['log_bytes_per_1000']}"
        if not found["counted"]:
            yield "NOT COUNTED HERE: bytes written, as the folder lies in memory"
        yield f"files changed in the data folder: {changed}"
    for name, growth in found.get("growth", {}).items():
        if "per_hour" in growth:
            yield f"{name:16}{growth['first']:>14,.0f} -> {growth['last']:,.0f}, {growth['per_hour']:+,.1f} an hour"
