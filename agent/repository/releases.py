"""What a repository offers, and which of it a device should install. Pure."""

import heapq
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import count
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from agent.errors import RepositoryError
from agent.protocol.manifest import ModelName, Sha256
from agent.protocol.pack_manifest import Base, Bytes, PackManifest, Version

Channel = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
NAMED: Final = 20
"""How many versions an error message names."""
_State = tuple[str, str, str]
"""A corpus as packs lead to it: its model, version and contents."""


class Release(Struct, frozen=True):
    """One pack in a channel of a repository.

    `number` is higher than that of anything published before, and so says what is newer. `bytes` are the lengths of its
    parts, as they are fetched. `target` is the path of its manifest.
    """

    channel: Channel
    version: Version
    number: Annotated[int, Meta(ge=1)]
    model: ModelName
    contents: Sha256
    bytes: Bytes
    target: str = ""
    categories: tuple[str, ...] = ()
    base: Base | None = None

    @property
    def state(self) -> _State:
        """What it leads to."""
        return (self.model, self.version, self.contents)

    def __str__(self) -> str:
        return f"{self.channel}/{self.version}" + (f" (since {self.base.version})" if self.base else "")


def release_of(manifest: PackManifest, channel: str, number: int) -> Release:
    """A pack as it will be offered. Raises RepositoryError for a channel's name that no path can have."""
    here = manifest.contents[:16] + (f"-since-{manifest.base.contents[:16]}" if manifest.base else "")
    document = {
        "channel": channel,
        "version": manifest.version,
        "number": number,
        "model": manifest.model,
        "contents": manifest.contents,
        "bytes": manifest.packed_bytes,
        "target": f"{channel}/{manifest.version}/{here}/manifest.json",
        "categories": sorted(manifest.selection.categories),
        "base": manifest.base,
    }
    try:
        return msgspec.convert(document, Release, from_attributes=True)
    except msgspec.ValidationError as error:
        raise RepositoryError(f"{channel!r} cannot be a channel: {error}") from error


def choose(
    releases: Iterable[Release],
    *,
    channel: str,
    version: str | None = None,
    model: str | None = None,
    categories: Sequence[str] | None = None,
    installed: tuple[str, str | None] | None = None,
    avoid: Collection[tuple[str, str]] = (),
) -> list[Release]:
    """What to install, in this order, to get from what is installed to what is wished for.

    Without a `version` the newest is wished for; without a `model` any; without `categories` packs of all categories,
    or where there are none, any. `installed` is (version, contents or None where they are not known). Empty where that
    is it already. What is to be avoided, as (version, contents), lies on no way to something else. Raises
    RepositoryError, naming what there is.
    """
    in_channel = _having(releases, channel, "channel", "the repository", lambda release: release.channel)
    wished, place = in_channel, f"channel {channel}"
    if version is not None:
        wished = _having(wished, version, "version", place, lambda release: release.version)
        place = f"version {version} of {place}"
    if model is not None:
        wished = _having(wished, model, "pack for the model", place, lambda release: release.model)
    if categories is not None:
        wished = _having(wished, _listed(categories), "pack of", place, lambda release: _listed(release.categories))
    else:
        wished = [release for release in wished if not release.categories] or wished
    first: dict[_State, int] = {}
    for release in wished:
        # A later way to the same papers does not make them newer.
        first[release.state] = min(release.number, first.get(release.state, release.number))
    goal = max(first, key=lambda state: first[state])
    if installed and installed[0] == goal[1] and installed[1] in (None, goal[2]):
        return []
    passable = [release for release in in_channel if release.state == goal or release.state[1:] not in avoid]
    way = _way(passable, goal, installed)
    if way is None:
        bases = sorted({release.base.version for release in wished if release.state == goal and release.base})
        raise RepositoryError(
            f"{channel}/{goal[1]} is there only as what changed since {', '.join(bases)}, "
            "to which nothing leads from what is installed",
            hint="publish it as a whole pack as well",
        )
    return way


def _having(
    releases: Iterable[Release], wanted: str, kind: str, place: str, of: Callable[[Release], str]
) -> list[Release]:
    releases = list(releases)
    found = [release for release in releases if of(release) == wanted]
    if not found:
        newest_first = sorted(releases, key=lambda release: -release.number)
        names = list(dict.fromkeys(of(release) for release in newest_first))
        there = ", ".join(names[:NAMED]) + (" .." if len(names) > NAMED else "")
        raise RepositoryError(f"{place} has no {kind} {wanted}; it has: {there or 'none'}")
    return found


def _listed(categories: Sequence[str]) -> str:
    return " ".join(sorted(set(categories))) or "all categories"


def _way(releases: list[Release], goal: _State, installed: tuple[str, str | None] | None) -> list[Release] | None:
    """The whole pack, or what changed since what is installed if that is less; else a whole one and what changed since.

    A chain from nothing would often be less than the whole pack too, but it is installed as often as it has links.
    """
    here = [state for state in map(_base, releases) if state and installed and state[1:] == installed]
    ways = [[release] for release in releases if release.state == goal and not release.base]
    ways += [way for state in here if (way := _shortest(releases, state, goal)) is not None]
    return min(ways, key=lambda way: (_bytes(way), len(way))) if ways else _shortest(releases, None, goal)


def _shortest(releases: list[Release], start: _State | None, goal: _State) -> list[Release] | None:
    """Dijkstra's way from a corpus, or from nothing, to the goal in the fewest bytes; None where there is none."""
    order = count()
    waiting: list[tuple[int, int, _State | None, list[Release]]] = [(0, next(order), start, [])]
    done = set[_State | None]()
    while waiting:
        cost, _, state, way = heapq.heappop(waiting)
        if state == goal:
            return way
        if state not in done:
            done.add(state)
            for release in releases:
                if _base(release) == state:
                    heapq.heappush(waiting, (cost + release.bytes, next(order), release.state, [*way, release]))
    return None


def _bytes(way: list[Release]) -> int:
    return sum(release.bytes for release in way)


def _base(release: Release) -> _State | None:
    """What it builds upon: None of a whole pack."""
    return (release.model, release.base.version, release.base.contents) if release.base else None
