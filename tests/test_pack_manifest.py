"""manifest.json of a pack: what is written is read again; anything else is refused by the name of its field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import PackError
from agent.protocol.pack_manifest import (
    MAX_MANIFEST_BYTES,
    Base,
    PackManifest,
    Part,
    Selection,
    dump_pack_manifest,
    parse_pack_manifest,
)

SHA = "0123456789abcdef" * 4
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
versions = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
names = st.from_regex(r"[a-z0-9_][a-z0-9._-]{0,60}", fullmatch=True).filter(lambda name: name != "manifest.json")
paths = st.builds(lambda folder, name: f"{folder}/{name}", st.sampled_from(["vectors", "keywords", "model"]), names)
lengths = st.integers(0, 1 << 40)


@st.composite
def manifests(draw: st.DrawFn) -> PackManifest:
    base = draw(st.none() | st.builds(Base, versions, hashes))
    more = [] if base else draw(st.lists(paths, unique=True, max_size=5))
    places = ["changes.db" if base else "papers.db", *more]
    files = draw(st.lists(names, unique=True, min_size=len(places), max_size=len(places)))
    parts = tuple(
        Part(name, 1 + draw(lengths) // 2, draw(hashes), place, draw(lengths), draw(hashes))
        for name, place in zip(files, places, strict=True)
    )
    papers = draw(st.integers(0, 1 << 32))
    dates = st.none() | st.dates().map(lambda date: f"{date:%4Y-%m-%d}".zfill(10))
    selection = st.builds(Selection, st.lists(st.text(min_size=1, max_size=200), max_size=3).map(tuple), dates)
    return PackManifest(
        version=draw(versions),
        model=draw(versions),
        dimensions=draw(st.integers(1, 4096)),
        papers=papers,
        embedded=draw(st.integers(0, papers)),
        contents=draw(hashes),
        selection=draw(selection),
        base=base,
        parts=parts,
    )


@given(manifests())
def test_what_is_written_is_read_again(manifest: PackManifest) -> None:
    document = dump_pack_manifest(manifest)
    assert parse_pack_manifest(document, where="manifest.json") == manifest
    assert dump_pack_manifest(manifest) == document


def good() -> dict[str, Any]:
    part = {"bytes": 9, "sha256": SHA, "unpacked_bytes": 9, "unpacked_sha256": SHA}
    parts = [part | {"name": "papers.db.zst", "path": "papers.db"}, part | {"name": "a.zst", "path": "vectors/a"}]
    return {
        "format": 1,
        "version": "7",
        "model": "m",
        "dimensions": 384,
        "papers": 2,
        "embedded": 1,
        "contents": SHA,
        "parts": parts,
    }


def changed(field: str, value: Any) -> bytes:
    document = good()
    holder: Any = document
    *way, last = field.split(".")
    for step in way:
        holder = holder[int(step) if step.isdigit() else step]
    holder[last] = value
    return json.dumps(document).encode()


def test_the_unchanged_one_is_accepted() -> None:
    assert parse_pack_manifest(json.dumps(good()).encode(), where="it").papers == 2


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("format", 2, "format: 2 was made for a newer version"),
        ("format", 0, "format: expected 1"),
        ("format", "1", "format: "),
        ("version", "../7", "version: "),
        ("version", "7\n", "version: "),
        ("model", "a/b", "model: "),
        ("model", "m\n", "model: "),
        ("contents", SHA + "\n", "contents: "),
        ("dimensions", 0, "dimensions: "),
        ("papers", -1, "papers: "),
        ("papers", True, "papers: "),
        ("papers", 1 << 70, "papers: "),
        ("embedded", 3, "embedded: expected at most papers, 2"),
        ("contents", SHA.upper(), "contents: "),
        ("selection", {"categories": [""]}, r"selection.categories\[0\]: "),
        ("selection", {"published_from": "2020-13"}, "selection.published_from: "),
        ("selection", {"limit": 0}, "selection.limit: "),
        ("base", {"version": "6"}, "base: .*contents"),
        ("base", {"version": "6", "contents": SHA}, "parts: an increment has changes.db"),
        ("parts", [], "parts: "),
        ("parts", {}, "parts: "),
        ("extra", 1, "Object contains unknown field `extra`"),
        ("parts.0.extra", 1, "parts.*extra"),
        ("parts.0.bytes", 0, r"parts\[0\].bytes: "),
        ("parts.0.bytes", 1.5, r"parts\[0\].bytes: "),
        ("parts.0.unpacked_bytes", -1, r"parts\[0\].unpacked_bytes: "),
        ("parts.0.unpacked_bytes", (1 << 40) + 1, r"parts\[0\].unpacked_bytes: "),
        ("parts.0.sha256", SHA[1:], r"parts\[0\].sha256: "),
        ("parts.0.name", "../papers.db", r"parts\[0\].name: expected a plain file name"),
        ("parts.0.name", "/etc/passwd", r"parts\[0\].name: "),
        ("parts.0.name", "a\0b", r"parts\[0\].name: "),
        ("parts.0.name", "..", r"parts\[0\].name: "),
        ("parts.0.name", "", r"parts\[0\].name: "),
        ("parts.0.name", "Manifest.json", r"parts\[0\].name: "),
        ("parts.1.name", "Papers.DB.zst", r"parts\[1\].name: .* twice"),
        ("parts.0.path", "papers.db\n", r"parts\[0\].path: "),
        ("parts.0.path", "changes.db", "parts: a whole pack has papers.db"),
        ("parts.1.path", "vectors/../papers.db", r"parts\[1\].path: "),
        ("parts.1.path", "vectors/..", r"parts\[1\].path: "),
        ("parts.1.path", "/vectors/a", r"parts\[1\].path: "),
        ("parts.1.path", "previous", r"parts\[1\].path: "),
        ("parts.1.path", "vectors/a/b", r"parts\[1\].path: "),
        ("parts.1.path", "papers.db-wal", r"parts\[1\].path: "),
        ("parts.1.path", "PAPERS.db", r"parts\[1\].path: "),
        ("parts.1.path", "papers.db", r"parts\[1\].path: .* twice"),
        ("parts.1.path", 5, r"parts\[1\].path: "),
    ],
)
def test_a_hostile_manifest_is_refused_by_the_name_of_its_field(field: str, value: Any, told: str) -> None:
    with pytest.raises(PackError, match=f"^it: {told}"):
        parse_pack_manifest(changed(field, value), where="it")


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 500_000, b"{}" + b" " * MAX_MANIFEST_BYTES, b'{"format": 1}'],
    ids=lambda document: repr(document[:12]),
)
def test_what_is_no_manifest_is_refused(document: bytes) -> None:
    with pytest.raises(PackError, match=r"^it"):
        parse_pack_manifest(document, where="it")


@given(st.binary(max_size=300))
def test_garbage_raises_nothing_else(document: bytes) -> None:
    with pytest.raises(PackError):
        parse_pack_manifest(document, where="it")
