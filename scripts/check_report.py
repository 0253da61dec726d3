"""docs/device-checks.md: a section for each system that a script under scripts/ has checked, written by that script."""

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "device-checks.md"
HEAD = """# What was checked, and on what

Written by `scripts/test-device`: the package installed in a booted systemd-nspawn container on a development machine.
`scripts/test-container` adds what it saw of the image, under podman; `scripts/test-arm64` the arm64 package, emulated.
No Raspberry Pi was at hand; times are those of that machine.
"""


def table(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table of Markdown; whatever a cell says, it stays a cell."""
    head = _line(titles)
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *(_line(row) for row in rows)]) + "\n"


def _line(cells: Iterable[object]) -> str:
    words = [re.sub(r"\s+", " ", str(cell)).replace("|", "\\|") for cell in cells]
    return "|" + "|".join(f" {word} " if word else " " for word in words) + "|"


def write_section(title: str, facts: str, body: str, *, page: Path = PAGE) -> None:
    """Put a section into the page, in the place of the one of this title; the others stay as they are.

    `facts` follow the date: `package 0.1.0+deb12, systemd 252`.
    """
    today = dt.datetime.now(dt.UTC).date()
    section = f"## {title}\n\n{today}, {facts}.\n\n{body.strip()}\n"
    head, *sections = re.split(r"\n(?=## )", page.read_text("utf-8") if page.exists() else HEAD)
    titles = [part.partition("\n")[0] for part in sections]
    if f"## {title}" in titles:
        sections[titles.index(f"## {title}")] = section
    else:
        sections.append(section)
    page.write_text("\n".join(part.rstrip("\n") + "\n" for part in [head, *sections]), "utf-8")


def write_checks(title: str, facts: str, checks: Sequence[Mapping[str, str]], *, page: Path = PAGE) -> bool:
    """The section of what was checked on one system, by `check`, `result` and `seen`; whether all of it holds."""
    rows = [(check["check"], check["result"], check["seen"]) for check in checks]
    write_section(title, facts, table(("", "holds", "seen"), rows), page=page)
    return all(check["result"] == "yes" for check in checks)
