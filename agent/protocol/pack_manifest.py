"""manifest.json of a pack: what it holds, of which lengths and with which hashes. Pure; corpus/packs.py has the files.

A pack is a folder, or a plain tar, of compressed parts and this manifest. A whole pack unpacks into a generation; an
increment holds what changed since another pack, its `base`, as one database `changes.db`. There are no time stamps in
it: the same papers and vectors make the same manifest.
"""

import re
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from agent.domain import is_date
from agent.errors import PackError, validation_place
from agent.protocol.manifest import ModelName, Sha256

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 1024 * 1024
"""A corpus of a million papers has about a hundred parts, of 400 bytes each in the manifest."""
MAX_PARTS: Final = 2_000
MAX_BYTES: Final = 1 << 40
"""More than any board's disk, and far from where sums would overflow in some other reader."""
MAX_PAPERS: Final = 1 << 32

PAPERS: Final = "papers.db"
CHANGES: Final = "changes.db"
MODEL: Final = "model"

# `path` decides what an unpacking process writes: nothing that rules a generation (locks, marks) can be named so.
_PATH: Final = re.compile(
    r"papers\.db|changes\.db|(?:vectors|keywords|model)/\.?[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII
)
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,126}", re.ASCII)

Version = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", description="What a pack is called, such as 2026-11 or 7.")
]
Bytes = Annotated[int, Meta(ge=0, le=MAX_BYTES)]
Count = Annotated[int, Meta(ge=0, le=MAX_PAPERS)]
Text = Annotated[str, Meta(min_length=1, max_length=200)]


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """One file: `name` in the pack, compressed with zstd; `path` where it goes in the folder it is unpacked to."""

    name: str
    bytes: Annotated[int, Meta(ge=1, le=MAX_BYTES)]
    sha256: Sha256
    path: str
    unpacked_bytes: Bytes
    unpacked_sha256: Sha256


class Selection(Struct, frozen=True, forbid_unknown_fields=True):
    """Which papers of a corpus a pack holds: of any of the categories, published from a date, the newest so many."""

    categories: Annotated[tuple[Text, ...], Meta(max_length=200)] = ()
    published_from: Annotated[str, Meta(max_length=10)] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAPERS)] | None = None


class Base(Struct, frozen=True, forbid_unknown_fields=True):
    """The pack that an increment builds upon."""

    version: Version
    contents: Sha256


class PackManifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One pack.

    `contents` is the SHA-256 of its papers and vectors (corpus/contents.py), the same on any machine. `papers` and
    `embedded` count them; those of an increment are of the corpus that it leads to, as its `contents` is.
    """

    format: int = FORMAT
    version: Version
    model: ModelName
    dimensions: Annotated[int, Meta(ge=1, le=4096)]
    papers: Count
    embedded: Count
    contents: Sha256
    selection: Selection = Selection()
    base: Base | None = None
    parts: Annotated[tuple[Part, ...], Meta(min_length=1, max_length=MAX_PARTS)]

    @property
    def packed_bytes(self) -> int:
        """What its parts take as they are."""
        return sum(part.bytes for part in self.parts)

    @property
    def unpacked_bytes(self) -> int:
        """What its parts take unpacked."""
        return sum(part.unpacked_bytes for part in self.parts)


class _Head(Struct):
    format: int


class _Wish(Struct):
    version: Version
    selection: Selection


def check_wish(version: str, selection: Selection) -> None:
    """Raise PackError, naming the field, if a pack cannot be called so, or hold such a selection."""
    _decoded(msgspec.json.encode(_Wish(version, selection)), _Wish, "the pack")


def parse_pack_manifest(document: bytes, *, where: str) -> PackManifest:
    """Read a manifest.json; `where` names it in errors. Raises PackError, naming the field and what would be right."""
    if len(document) > MAX_MANIFEST_BYTES:
        raise PackError(f"{where} has {len(document)} bytes, expected at most {MAX_MANIFEST_BYTES}")
    head = _decoded(document, _Head, where)
    if head.format > FORMAT:
        raise PackError(
            f"{where}: format: {head.format} was made for a newer version of the agent, which knows format {FORMAT}",
            hint="update the agent",
        )
    if head.format != FORMAT:
        raise PackError(f"{where}: format: expected {FORMAT}, got {head.format}")
    manifest: PackManifest = _decoded(document, PackManifest, where)
    for field, reason in _contradictions(manifest):
        raise PackError(f"{where}: {field}: {reason}")
    return manifest


def dump_pack_manifest(manifest: PackManifest) -> bytes:
    """The one way to write a manifest."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def _decoded(document: bytes, kind: type[Any], where: str) -> Any:
    try:
        return msgspec.json.decode(document, type=kind)
    except msgspec.ValidationError as error:
        place, reason = validation_place(str(error))
        raise PackError(f"{where}: {place}: {reason}" if place else f"{where}: {reason}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PackError(f"{where} is not valid JSON: {error}") from error


def _contradictions(manifest: PackManifest) -> list[tuple[str, str]]:
    """What fits the types and still makes no pack: fields, and what would be right."""
    found: list[tuple[str, str]] = []
    if manifest.embedded > manifest.papers:
        found.append(("embedded", f"expected at most papers, {manifest.papers}, got {manifest.embedded}"))
    first = manifest.selection.published_from
    if first is not None and not is_date(first):
        found.append(("selection.published_from", f"expected YYYY-MM-DD or YYYY-MM, got {first!r}"))
    names, paths = set[str](), set[str]()
    for position, part in enumerate(manifest.parts):
        place = f"parts[{position}]"
        # Without regard to case, since a stick's file system may have none.
        name, path = part.name.lower(), part.path.lower()
        if not _NAME.fullmatch(part.name) or name == MANIFEST:
            found.append((f"{place}.name", f"expected a plain file name, got {part.name[:100]!r}"))
        if not _PATH.fullmatch(part.path):
            right = "papers.db, changes.db, or a file in vectors/, keywords/ or model/"
            found.append((f"{place}.path", f"expected {right}, got {part.path[:100]!r}"))
        for field, text, seen in (("name", name, names), ("path", path, paths)):
            if text in seen:
                found.append((f"{place}.{field}", f"{text[:100]!r} is there twice"))
            seen.add(text)
    wanted, other = (CHANGES, PAPERS) if manifest.base else (PAPERS, CHANGES)
    folders = {path.split("/")[0] for path in paths}
    if wanted not in paths or other in paths or (manifest.base and folders - {CHANGES, MODEL}):
        kind = "an increment has changes.db" if manifest.base else "a whole pack has papers.db"
        found.append(("parts", f"{kind} and no {other}, got {', '.join(sorted(folders))[:100]}"))
    return found
