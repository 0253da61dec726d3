"""Of what a repository offers, what a device installs: the newest or what is wished for, in the fewest bytes."""

import hashlib
from collections.abc import Sequence
from itertools import count, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import RepositoryError
from agent.protocol.pack_manifest import Base
from agent.repository.releases import Release, choose

A, B = "model-a", "model-b"


def contents(version: str, model: str = A, categories: tuple[str, ...] = ()) -> str:
    return hashlib.sha256(f"{version} {model} {categories}".encode()).hexdigest()


def release(
    number: int,
    version: str,
    bytes_: int,
    *,
    since: str | None = None,
    model: str = A,
    channel: str = "stable",
    categories: tuple[str, ...] = (),
) -> Release:
    base = Base(since, contents(since, model)) if since else None
    return Release(
        channel=channel,
        version=version,
        number=number,
        model=model,
        contents=contents(version, model, categories),
        bytes=bytes_,
        categories=categories,
        base=base,
    )


OFFERED = [
    release(1, "1", 100),
    release(2, "2", 110),
    release(3, "2", 5, since="1"),
    release(4, "3", 120),
    release(5, "3", 6, since="2"),
    release(6, "3", 200, since="1"),
    release(7, "3", 90, model=B),
    release(8, "9", 40, channel="test"),
    release(9, "4", 50, categories=("cs.CL",), channel="small"),
    release(10, "4", 60, categories=("cs.LG", "cs.CL"), channel="small"),
    release(11, "2", 4, since="1"),
    release(12, "4", 30, channel="lean"),
    release(13, "5", 3, since="4", channel="lean"),
    release(14, "6", 3, since="5", channel="lean"),
]


@pytest.mark.parametrize(
    ("wish", "installed", "numbers"),
    [
        ({"model": A}, None, [4]),
        ({"model": A}, ("1", contents("1")), [11, 5]),
        ({"model": A}, ("2", contents("2")), [5]),
        ({"model": A}, ("3", contents("3")), []),
        ({"model": A}, ("3", None), []),
        ({"model": A}, ("3", contents("of other papers")), [4]),
        ({"model": A}, ("2", None), [4]),
        ({"model": A}, ("local", None), [4]),
        ({"model": A, "version": "2"}, ("3", contents("3")), [2]),
        ({"model": A, "version": "2"}, ("1", contents("1")), [11]),
        ({"model": B}, ("3", contents("3")), [7]),
        ({"version": "3", "model": B}, ("3", contents("3", B)), []),
        ({}, ("1", contents("1")), [7]),
        ({"channel": "test"}, ("3", contents("3")), [8]),
        ({"channel": "small", "categories": ["cs.CL", "cs.LG"]}, None, [10]),
        ({"channel": "small", "categories": ["cs.CL"]}, None, [9]),
        ({"channel": "small"}, None, [10]),
        ({"categories": [], "model": A}, None, [4]),
        ({"channel": "lean"}, ("1", contents("1")), [12, 13, 14]),
        ({"channel": "lean"}, ("5", contents("5")), [14]),
    ],
)
def test_what_is_installed(wish: dict, installed: tuple[str, str | None] | None, numbers: list[int]) -> None:
    wish.setdefault("channel", "stable")
    chosen = choose(reversed(OFFERED), installed=installed, **wish)
    assert [one.number for one in chosen] == numbers


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"channel": "beta"}, "the repository has no channel beta; it has: lean, stable, small, test"),
        ({"version": "7"}, "channel stable has no version 7; it has: 2, 3, 1"),
        (
            {"version": "2", "model": B},
            "version 2 of channel stable has no pack for the model model-b; it has: model-a",
        ),
        ({"model": "model-c"}, "channel stable has no pack for the model model-c; it has: model-a, model-b"),
        ({"categories": ["cs.CL"]}, "channel stable has no pack of cs.CL; it has: all categories"),
        ({"channel": "small", "categories": []}, "has no pack of all categories; it has: cs.CL cs.LG, cs.CL"),
    ],
)
def test_a_wish_for_what_is_not_there_is_told_what_is(wish: dict, said: str) -> None:
    wish.setdefault("channel", "stable")
    with pytest.raises(RepositoryError, match=said):
        choose(OFFERED, **wish)


def test_increments_upon_what_nobody_has_any_more_are_said_to_be_so() -> None:
    with pytest.raises(RepositoryError, match="stable/2 is there only as what changed since 1"):
        choose([release(3, "2", 5, since="1")], channel="stable", installed=("1", None))


@given(
    packs=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5), st.integers(1, 50)), min_size=1, max_size=9),
    installed=st.none() | st.integers(1, 5),
)
def test_no_other_order_of_packs_leads_there_in_fewer_bytes(
    packs: list[tuple[int, int, int]], installed: int | None
) -> None:
    numbers = count(1)
    offered = [
        release(next(numbers), str(to), size, since=str(since) if since else None)
        for to, since, size in packs
        if to != since
    ]
    here = (str(installed), contents(str(installed))) if installed else None
    if not offered:
        return
    firsts = {one.version: one.number for one in reversed(offered)}
    goal = max(firsts, key=lambda version: firsts[version])
    if here and here[0] == goal:
        assert choose(offered, channel="stable", installed=here) == []
        return
    starts = {at: _costs(offered, at, goal) for at in {here and here[0], None}}
    whole = [one.bytes for one in offered if one.version == goal and not one.base]
    wanted = (whole + (starts[here[0]] if here else [])) or starts[None]
    if not wanted:
        with pytest.raises(RepositoryError):
            choose(offered, channel="stable", installed=here)
        return
    chosen = choose(offered, channel="stable", installed=here)
    assert sum(one.bytes for one in chosen) == min(wanted)
    assert _leads(chosen, here and here[0]) == goal or _leads(chosen, None) == goal


def _costs(offered: list[Release], start: str | None, goal: str) -> list[int]:
    """Of each order of packs that leads there, each upon the one before."""
    orders = (order for length in range(1, 5) for order in permutations(offered, length))
    return [sum(one.bytes for one in order) for order in orders if _leads(order, start) == goal]


def _leads(order: Sequence[Release], at: str | None) -> str | None:
    for one in order:
        if (one.base and one.base.version) != at:
            return None
        at = one.version
    return at
