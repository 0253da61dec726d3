"""Damaged and hostile packs: refused by the name of the part, and nothing is ever written outside the folder."""

import hashlib
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from packs import files_in, fill, make

from agent.corpus.packs import open_pack, required_bytes
from agent.errors import PackError, ShortageError
from agent.protocol.pack_manifest import PackManifest, Part, dump_pack_manifest, parse_pack_manifest


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a pack of thirty papers."""
    folder = tmp_path_factory.mktemp("packed")
    make(fill(folder / "corpus", list(range(30))), folder / "pack")
    return files_in(folder / "pack")


def manifest_of(files: dict[str, bytes]) -> PackManifest:
    return parse_pack_manifest(files["manifest.json"], where="it")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def refusal(path: Path, into: Path) -> str:
    """What verifying says against a pack; unpacking says the same and leaves no manifest."""
    with pytest.raises(PackError) as verifying, open_pack(path) as opened:
        opened.verify()
    with pytest.raises(PackError) as unpacking, open_pack(path) as opened:
        opened.unpack(into)
    assert verifying.value.message == unpacking.value.message
    assert not (into / "manifest.json").exists()
    return verifying.value.message


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :]


def regions(content: bytes) -> list[int]:
    """Places in the head, the middle, the checksum at the end, and some by chance."""
    size = len(content)
    return sorted({0, 4, 5, size // 2, size - 5, size - 1, *(random.Random(size).randrange(size) for _ in range(6))})


DAMAGES: dict[str, Callable[[bytes], list[bytes]]] = {
    "flipped": lambda content: [flipped(content, at) for at in regions(content)],
    "shorter": lambda content: [content[:-1], content[: len(content) // 2], content[:3], b""],
    "longer": lambda content: [content + b"\0", content + content, content + zstandard.compress(b"more")],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_any_region_of_any_part_is_refused_by_the_name_of_the_part(
    damage: str, packed: dict[str, bytes], tmp_path: Path
) -> None:
    folder = write(tmp_path / "pack", packed)
    for part in manifest_of(packed).parts:
        for content in DAMAGES[damage](packed[part.name]):
            (folder / part.name).write_bytes(content)
            with pytest.raises(PackError, match=f": {part.name} ") as refused, open_pack(folder) as opened:
                opened.verify()
            if damage != "flipped":
                assert f"expected {part.bytes}" in refused.value.message, "says what would be right"
        (folder / part.name).write_bytes(packed[part.name])
    with open_pack(folder) as opened:
        opened.verify()


def test_what_is_damaged_is_refused_in_unpacking_as_well(packed: dict[str, bytes], tmp_path: Path) -> None:
    for number, part in enumerate(manifest_of(packed).parts):
        folder = write(tmp_path / f"pack{number}", {**packed, part.name: flipped(packed[part.name], part.bytes // 2)})
        assert part.name in refusal(folder, tmp_path / f"new{number}")


def test_a_missing_part_is_named_and_a_further_file_is_never_read(packed: dict[str, bytes], tmp_path: Path) -> None:
    folder = write(tmp_path / "pack", packed)
    os.mkfifo(folder / "further.zst")  # reading it would wait for ever
    (folder / "._papers.db.zst").write_bytes(b"of another system")
    with open_pack(folder) as opened:
        assert opened.unpack(tmp_path / "whole")
        assert set(files_in(tmp_path / "whole")) == {"manifest.json", *(part.path for part in opened.manifest.parts)}
    (folder / "papers.db.zst").unlink()
    assert refusal(folder, tmp_path / "new") == f"{folder}: papers.db.zst is missing"
    os.mkfifo(folder / "papers.db.zst")
    assert "papers.db.zst cannot be read: it is no file" in refusal(folder, tmp_path / "other")


def test_parts_of_another_pack_do_not_fit(packed: dict[str, bytes], tmp_path: Path) -> None:
    make(fill(tmp_path / "corpus", list(range(31))), tmp_path / "other")
    folder = write(tmp_path / "pack", {**packed, "papers.db.zst": (tmp_path / "other" / "papers.db.zst").read_bytes()})
    assert "papers.db.zst" in refusal(folder, tmp_path / "new")


# -- what only somebody who makes the manifest could do ------------------------------------------------------------------


def part_of(content: bytes, **wrong: Any) -> tuple[Part, bytes]:
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    sha, unpacked_sha = (hashlib.sha256(one).hexdigest() for one in (packed, content))
    part = Part("papers.db.zst", len(packed), sha, "papers.db", len(content), unpacked_sha)
    return msgspec.structs.replace(part, **wrong), packed


def pack_of(folder: Path, part: Part, content: bytes) -> Path:
    sha = "0" * 64
    manifest = PackManifest(version="7", model="m", dimensions=384, papers=1, embedded=0, contents=sha, parts=(part,))
    return write(folder, {"manifest.json": dump_pack_manifest(manifest), part.name: content})


def test_a_bomb_stops_at_the_length_that_was_said(tmp_path: Path) -> None:
    part, bomb = part_of(bytes(200_000_000), unpacked_bytes=1_000)
    assert len(bomb) < 20_000
    told = refusal(pack_of(tmp_path / "pack", part, bomb), tmp_path / "new")
    assert "papers.db.zst unpacks to more, expected 1000 bytes" in told
    assert (tmp_path / "new" / "papers.db").stat().st_size <= 1_000


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"unpacked_bytes": 5}, "unpacks to 4 bytes with 0 left, expected 5 bytes"),
        ({"unpacked_sha256": "0" * 64}, "unpacks to sha256 "),
        ({"sha256": "0" * 64}, "has sha256 "),
    ],
)
def test_a_manifest_that_says_other_than_the_part_is_refused(wrong: dict[str, Any], told: str, tmp_path: Path) -> None:
    assert told in refusal(pack_of(tmp_path / "pack", *part_of(b"four", **wrong)), tmp_path / "new")


def test_a_window_that_takes_much_memory_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = stream.compress(random.Random(1).randbytes(100_000)) + stream.flush()
    part, _ = part_of(b"")
    part = msgspec.structs.replace(
        part, bytes=len(packed), sha256=hashlib.sha256(packed).hexdigest(), unpacked_bytes=100_000
    )
    assert "cannot be unpacked" in refusal(pack_of(tmp_path / "pack", part, packed), tmp_path / "new")


def test_nothing_is_written_through_a_link_or_over_a_file(packed: dict[str, bytes], tmp_path: Path) -> None:
    folder = write(tmp_path / "pack", packed)
    outside = tmp_path / "outside"
    outside.write_text("of somebody")
    for link in (True, False):
        into = tmp_path / f"new{link}"
        into.mkdir()
        if link:
            (into / "papers.db").symlink_to(outside)
        else:
            (into / "papers.db").write_text("of somebody")
        with pytest.raises(Exception, match=r"papers\.db cannot be written"), open_pack(folder) as opened:
            opened.unpack(into)
        assert (into / "papers.db").read_text() == "of somebody"


# -- tars ----------------------------------------------------------------------------------------------------------------


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def members_of(files: dict[str, bytes]) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(tarfile.TarInfo(name), content) for name, content in files.items()]


def test_a_tar_is_only_looked_into_for_the_files_of_its_manifest(packed: dict[str, bytes], tmp_path: Path) -> None:
    evil = tarfile.TarInfo("../../evil")
    link = tarfile.TarInfo("papers")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = tar_of(tmp_path / "a.tar", [(evil, b"evil"), (link, b""), *members_of(packed)])
    with open_pack(path) as opened:
        assert opened.unpack(tmp_path / "in" / "new")
    assert {one.name for one in tmp_path.iterdir()} == {"a.tar", "in"}


def test_a_tar_with_a_link_in_the_place_of_a_part_lacks_the_part(packed: dict[str, bytes], tmp_path: Path) -> None:
    link = tarfile.TarInfo("papers.db.zst")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    rest = {name: content for name, content in packed.items() if name != "papers.db.zst"}
    assert "papers.db.zst is missing" in refusal(
        tar_of(tmp_path / "a.tar", [(link, b""), *members_of(rest)]), tmp_path / "new"
    )


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("no tar", "is no pack"),
        ("empty", "is no pack"),
        ("no manifest", "holds no manifest.json"),
        ("two manifests", "manifest.json is there twice"),
        ("cut", "papers.db.zst|is no pack"),
        ("compressed", "is no pack"),
        ("long header", "is no pack"),
    ],
)
def test_what_is_no_pack_is_refused(kind: str, told: str, packed: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    whole = tar_of(path, members_of(packed)).read_bytes()
    if kind == "no manifest":
        tar_of(path, members_of({"papers.db.zst": b"it"}))
    elif kind == "two manifests":
        tar_of(path, [*members_of(packed), *members_of({"manifest.json": packed["manifest.json"]})])
    elif kind == "long header":
        member = tarfile.TarInfo("manifest.json")
        member.pax_headers = {"comment": "x" * 5_000_000}
        tar_of(path, [(member, packed["manifest.json"])])
    else:
        cut = whole[: whole.index(zstandard.MAGIC_NUMBER.to_bytes(4, "little")) + 50]
        path.write_bytes(
            {"no tar": b"words" * 1000, "empty": b"", "cut": cut, "compressed": zstandard.compress(whole)}[kind]
        )
    with pytest.raises(PackError, match=told), open_pack(path) as opened:
        opened.verify()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "a.tar", tmp_path / "manifest.json"):
        with pytest.raises(PackError), open_pack(path):
            pass
    with pytest.raises(PackError, match=r"manifest\.json is missing"), open_pack(tmp_path):
        pass


# -- what the machine lacks ----------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_shortage_and_may_be_known_before(small_disk: Path, tmp_path: Path) -> None:
    content = random.Random(2).randbytes(40_000_000)
    folder = pack_of(tmp_path / "pack", *part_of(content))
    with open_pack(folder) as opened:
        assert required_bytes(opened.manifest) > 40_000_000
        with pytest.raises(ShortageError, match="No space left"):
            opened.unpack(small_disk / "new")


def test_unpacking_stops_when_asked_to(packed: dict[str, bytes], tmp_path: Path) -> None:
    with open_pack(write(tmp_path / "pack", packed)) as opened:
        asked = iter([False, True])
        assert not opened.unpack(tmp_path / "new", stop=lambda: next(asked))
    assert not (tmp_path / "new" / "manifest.json").exists()
    assert json.loads((tmp_path / "pack" / "manifest.json").read_bytes())["format"] == 1
