"""The page of checks: what one script writes leaves alone what another one wrote."""

from pathlib import Path

import pytest
from check_report import HEAD, PAGE, table, write_checks, write_section

HERS = "## bookworm arm64, emulated\n\n2026-01-02, package 1.\n\nAnother script's words.\n\n### More\n\n- of them\n"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    file = tmp_path / "page.md"
    file.write_text(f"{HEAD}\n## bookworm amd64\n\nold\n\n{HERS}\n## bookworm amd64 container\n\nkept\n", "utf-8")
    return file


def test_a_section_is_replaced_in_its_place_and_the_others_stay(page: Path) -> None:
    write_section("bookworm amd64", "package 2", "new\n", page=page)
    text = page.read_text("utf-8")
    before, _, after = text.partition("## bookworm amd64\n\n")
    assert before == f"{HEAD}\n"
    new, _, rest = after.partition("\n## ")
    assert new.endswith(", package 2.\n\nnew\n")
    assert "old" not in text
    assert f"## {rest}" == f"{HERS}\n## bookworm amd64 container\n\nkept\n"


def test_a_section_that_is_new_goes_to_the_end(page: Path) -> None:
    before = page.read_text("utf-8")
    write_section("trixie", "package 2", "new", page=page)
    assert page.read_text("utf-8").startswith(f"{before}\n## trixie\n\n2")


def test_writing_the_same_again_changes_nothing_and_a_page_is_made_where_there_is_none(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for _ in range(2):
        write_section("one", "package 1", "body", page=page)
        write_section("two", "package 1", "body", page=page)
    text = page.read_text("utf-8")
    assert (text.startswith(f"{HEAD}\n## one\n"), text.count("## one\n"), text.count("## two\n")) == (True, 1, 1)


def test_what_a_check_saw_cannot_break_its_table() -> None:
    rows = [("dpkg", "NO", "a | b\nc")]
    assert table(("", "holds", "seen"), rows) == "| | holds | seen |\n|---|---|---|\n| dpkg | NO | a \\| b c |\n"


@pytest.mark.parametrize("result", ["yes", "NO"])
def test_one_check_that_does_not_hold_is_written_down_and_told(tmp_path: Path, result: str) -> None:
    checks = [{"check": "it runs", "result": "yes", "seen": "1 s"}, {"check": "it ends", "result": result, "seen": "x"}]
    assert write_checks("one", "package 1", checks, page=tmp_path / "page.md") is (result == "yes")
    assert f"| it runs | yes | 1 s |\n| it ends | {result} | x |\n" in (tmp_path / "page.md").read_text("utf-8")


def test_the_page_in_the_repository_begins_as_a_new_one_would() -> None:
    assert PAGE.read_text("utf-8").startswith(HEAD)
