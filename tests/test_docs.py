"""The documents say what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_generated_pages_are_what_the_code_says() -> None:
    done = subprocess.run([sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "commands.md").read_text("utf-8")
    names = [
        f"{group} {name}".strip()
        for group, command in [("", cli), *((name, found) for name, found in cli.commands.items())]
        for name in getattr(command, "commands", {})
        if not hasattr(cli.commands.get(name, None) if not group else None, "commands")
    ]
    assert [name for name in names if f"`{name}" not in text] == []


def test_the_readme_shows_only_commands_that_exist() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    shown = set(re.findall(r"arxplorer-agent (?:--\S+ \S+ )*([a-z]+)", text))
    assert shown
    assert shown <= set(cli.commands)
    for script in re.findall(r"scripts/([a-z-]+)", text):
        assert (ROOT / "scripts" / script).exists(), script
