"""The comparison that scripts/test-arm64 makes of two processors: what it takes for the same and what not."""

import copy
import json
import re
import subprocess
from pathlib import Path

import arm64_report
import check_report
import numpy as np
import pytest
from arm64_report import column, compare, compare_vectors, difference
from conftest import ROOT

LIST = [("a", 0.9), ("b", 0.8), ("c", 0.7995), ("d", 0.7)]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (LIST, None),
        ([("a", 0.9005), ("b", 0.8), ("c", 0.7995), ("d", 0.6991)], None),
        ([("a", 0.901), ("b", 0.8), ("c", 0.7995), ("d", 0.7)], None),  # just within
        ([("a", 0.9), ("c", 0.7998), ("b", 0.7997), ("d", 0.7)], None),  # a swap
        ([("a", 0.9), ("b", 0.8), ("c", 0.7995), ("e", 0.7)], None),  # a swap with what follows
        ([("a", 0.9012), ("b", 0.8), ("c", 0.7995), ("d", 0.7)], "a has"),
        ([("b", 0.9), ("a", 0.9), ("c", 0.7995), ("d", 0.7)], "has"),
        ([("b", 0.8), ("a", 0.9), ("c", 0.7995), ("d", 0.7)], "b before a"),
        ([("a", 0.9), ("c", 0.7995), ("d", 0.7), ("b", 0.8)], "d before b"),
        ([("a", 0.9), ("b", 0.8), ("e", 0.7995), ("d", 0.7)], "c has 0.7995, against 0.7 of the last one"),
        ([("e", 0.9), ("b", 0.8), ("c", 0.7995), ("d", 0.7)], "a has 0.9, against 0.7 of the last one"),
        ([("a", 0.9), ("b", 0.8), ("e", 0.75), ("c", 0.7995)], "d before|last one"),
        ([("a", 0.9), ("b", 0.8), ("c", 0.7995)], "3 results"),
        ([*LIST, ("e", 0.6)], "5 results"),
        ([("a", 0.9), ("b", 0.8), ("b", 0.8), ("d", 0.7)], "4 results, 3 papers"),
        ([("a", float("nan")), ("b", 0.8), ("c", 0.7995), ("d", 0.7)], "a has"),
        ([], "0 results"),
    ],
)  # fmt: skip
def test_only_scores_within_a_thousandth_may_swap(found: list[tuple[str, float]], reason: str | None) -> None:
    said = difference(LIST, found)
    assert said is None if reason is None else re.search(reason, said or "")


@pytest.mark.parametrize(
    "found",
    [[[1.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]], [[float("nan"), 0.0], [0.0, 1.0]], []],
)
def test_other_shapes_and_no_numbers_are_no_vectors(found: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="vectors"):
        compare_vectors([[1.0, 0.0], [0.0, 1.0]], found)


RESULTS = {
    "vectors": [[1.0, 0.0], [0.6, 0.8]],
    "rankings": {"hybrid: one": [["a", 0.9], ["b", 0.8]], "keyword: two": [["c", 7.0005], ["d", 7.0]]},
}


@pytest.mark.parametrize(("angle", "holds"), [(0.0, "yes"), (0.0199, "yes"), (0.0201, "NO")])
def test_the_worst_cosine_decides(angle: float, holds: str) -> None:
    found = {
        **RESULTS,
        "vectors": [
            [1.0, 0.0],
            [*(np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [0.6, 0.8])],
        ],
    }
    result, seen = compare(RESULTS, found)["vectors as on x86-64"]
    assert (result, f"cosine {np.cos(angle):.7f} at worst, {(1 + np.cos(angle)) / 2:.7f} in the mean" in seen) == (
        holds,
        True,
    )


def test_swaps_are_counted_and_what_goes_beyond_is_named() -> None:
    found = copy.deepcopy(RESULTS)
    found["rankings"]["keyword: two"].reverse()
    assert compare(RESULTS, found)["top 10 as on x86-64"] == ("yes", "2: 1 equal, 1 with swaps")
    found["rankings"]["hybrid: one"][1][1] = 0.5
    result, seen = compare(RESULTS, found)["top 10 as on x86-64"]
    assert (result, seen.endswith("1 different beyond them: hybrid: one: b has 0.8, against 0.5")) == ("NO", True)
    with pytest.raises(ValueError, match="1 rankings instead of 2"):
        compare(RESULTS, {**RESULTS, "rankings": {"hybrid: one": []}})


def test_a_processor_that_found_nothing_or_less_is_a_failure_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(arm64_report, "write_section", lambda *args: check_report.write_section(*args, page=page))
    whole = {**RESULTS, "checks": {"it starts": ["yes", "at once"]}, "took_s": 61.2}
    (tmp_path / "x86.json").write_text(json.dumps(RESULTS))
    (tmp_path / "a53.json").write_text(json.dumps(whole))
    arguments = ("bookworm", "package 1", str(tmp_path / "x86.json"), str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        arm64_report.main(*arguments, "a53")
    assert (ended.value.code, "| it starts | at once |\n" in page.read_text("utf-8")) == (0, True)
    (tmp_path / "a72.json").write_text(json.dumps({**whole, "checks": {"it starts": ["NO", "at all"]}}))
    with pytest.raises(SystemExit, match="a72: NO: at all\na76: NO: not reached"):
        arm64_report.main(*arguments, "a53", "a72", "a76")
    assert "| it starts | at once | NO: at all | NO: not reached |\n" in page.read_text("utf-8")
    (tmp_path / "torn.json").write_text("{")
    assert [result for result, _ in column(RESULTS, tmp_path / "torn.json").values()] == ["NO"]


@pytest.mark.parametrize(
    ("argument", "programs", "said"),
    [
        ("buster", {}, "bookworm or trixie, not buster"),
        ("bookworm", {"uname": "echo aarch64", "id": "echo 0"}, "this one is aarch64"),
        ("bookworm", {"uname": "echo x86_64", "id": "echo 1000"}, "needs root"),
        ("bookworm", {"uname": "echo x86_64", "id": "echo 0"}, "mmdebstrap is missing (apt install "),
    ],
)
def test_a_machine_that_cannot_is_told_why(argument: str, programs: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    script = str(ROOT / "scripts" / "test-arm64")
    done = subprocess.run(["bash", script, argument], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode != 0, said in done.stderr) == (True, True), done.stderr
