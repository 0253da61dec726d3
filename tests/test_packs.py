"""Packs: what is packed comes out again; damage is refused by the name of the part; the same input makes the same bytes."""

import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from click.testing import CliRunner

from agent.cli import cli
from agent.corpus import packing
from agent.corpus.packing import pack
from agent.corpus.packs import open_pack, required_bytes
from agent.corpus.upkeep import verify
from agent.domain import Paper
from agent.errors import CorpusError, PackError, ShortageError
from agent.footprint import choose
from agent.protocol.pack_manifest import PackManifest, Selection, dump_pack_manifest
from agent.search.corpus_index import CorpusIndex
from agent.store.fresh import Snapshot
from agent.store.papers import PaperStore

MODEL, DIMENSIONS = "all-MiniLM-L6-v2", 384
FITS = choose(512, 2)


def paper(number: int, **changed: Any) -> Paper:
    fields: dict[str, Any] = {
        "arxiv_id": f"2301.{number:05d}",
        "title": f"common word{number}",
        "abstract": f"as all of them, and wörd{number % 7}",
        "authors": ("Ä. One", f"Author {number}"),
        "categories": ("cs.LG", "stat.ML") if number % 3 else ("math.AG",),
        "published": f"20{10 + number % 10}-0{1 + number % 9}-11",
        "updated": "2023-01-02",
        "version": 1,
    }
    return Paper(**{**fields, **changed})


def vector_of(number: int) -> Any:
    return np.random.default_rng(number).integers(-127, 128, DIMENSIONS).astype(np.int8)


def fill(folder: Path, numbers: list[int], *, without: tuple[int, ...] = ()) -> Path:
    """A generation with these papers, each with its vector but for some."""
    folder.mkdir(parents=True, exist_ok=True)
    with CorpusIndex(folder, MODEL, DIMENSIONS, owner=True, fits=FITS) as index:
        keys = index.papers.put([paper(number) for number in numbers]).keys
        given = [(key, vector_of(number)) for key, number in zip(keys, numbers, strict=True) if number not in without]
        index.papers.put_vectors(MODEL, [key or 0 for key, _ in given], np.stack([vector for _, vector in given]))
        index.catch_up()
    return folder


def make(corpus: Path, target: Path, **options: Any) -> PackManifest:
    return pack(corpus, MODEL, DIMENSIONS, target, **options)


def rows_of(folder: Path, name: str = "papers.db") -> list[tuple[Paper, bytes | None]]:
    with Snapshot(folder / name, MODEL, DIMENSIONS) as snapshot:
        return list(snapshot.rows())


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty papers, three without a vector; not to be changed."""
    return fill(tmp_path_factory.mktemp("corpus") / "0001", list(range(60)), without=(3, 30, 59))


@pytest.fixture(scope="module")
def packed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of them; not to be changed."""
    folder = tmp_path_factory.mktemp("packed") / "pack"
    make(corpus, folder)
    return folder


def test_what_is_packed_comes_out_again_searchable_and_with_nothing_to_build(
    corpus: Path, packed: Path, tmp_path: Path
) -> None:
    with open_pack(packed) as opened:
        opened.verify()
        done: list[int] = []
        assert opened.unpack(tmp_path / "new", progress=done.append)
        assert (opened.manifest.papers, opened.manifest.embedded) == (60, 57)
        assert done[-1] == opened.manifest.unpacked_bytes
    assert rows_of(tmp_path / "new") == rows_of(corpus)
    assert verify(tmp_path / "new") == []
    assert (tmp_path / "new" / "manifest.json").read_bytes() == (packed / "manifest.json").read_bytes()
    before = files_in(tmp_path / "new" / "vectors") | files_in(tmp_path / "new" / "keywords")
    with CorpusIndex(tmp_path / "new", MODEL, DIMENSIONS, owner=True, fits=FITS) as index:
        assert index.writable
        assert index.problems() == []
        assert (index.keywords.reached, index.vectors.reached, len(index.vectors)) == (60, 57, 57)
        assert len(index.keywords.search(["word7"], 10).keys) == 1
        index.catch_up()
    after = files_in(tmp_path / "new" / "vectors") | files_in(tmp_path / "new" / "keywords")
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("form", ["manifest", "tar", "tar of folder"])
def test_a_pack_is_a_folder_its_manifest_or_a_tar(form: str, packed: Path, tmp_path: Path) -> None:
    path = packed / "manifest.json"
    if form != "manifest":
        path = tmp_path / "pack.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(packed, arcname="." if form == "tar" else "some/pack-7")
    with open_pack(path) as opened:
        opened.unpack(tmp_path / "new")
    assert verify(tmp_path / "new") == []


def test_the_same_papers_make_the_same_bytes_whatever_their_history(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(packing, "KEYWORDS_A_SEGMENT", 5)  # so that tantivy merges some
    monkeypatch.setattr(packing, "SEGMENT_ROWS", 25)
    one = fill(tmp_path / "one", list(range(80)))
    other = fill(tmp_path / "other", [*range(79, 40, -1), 99])
    fill(other, list(range(41)))
    with closing(PaperStore(other / "papers.db")) as papers:
        papers.remove(["2301.00099"])
    first, second = make(one, tmp_path / "a"), make(other, tmp_path / "b")
    assert first == second
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")
    assert first.version == first.contents[:12]
