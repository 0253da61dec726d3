"""Increments: a whole pack and what changed since lead to the same papers, vectors and answers as the next whole pack."""

import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packs import DIMENSIONS, MODEL, files_in, fill, make, open_index, paper, rows_of, vector_of

from agent.corpus import increments
from agent.corpus.increments import apply_increment, copy_generation, require_base
from agent.corpus.packs import open_pack
from agent.corpus.upkeep import verify
from agent.errors import PackError
from agent.protocol.pack_manifest import PackManifest, Selection
from agent.search import vectors
from agent.store.papers import PaperStore


def change(corpus: Path) -> None:
    """Every kind of change there is."""
    with closing(PaperStore(corpus / "papers.db")) as papers:
        papers.put([paper(1, version=2, title="another title altogether")])  # its vector is gone
        papers.put([paper(2, version=2)])  # keeps its vector
        papers.remove([paper(number).arxiv_id for number in (4, 5, 6, 7)])
        keys = papers.put([paper(5), paper(6, version=0, updated="2022-01-01"), *map(paper, range(60, 70))]).keys
        chosen = [vector_of(number) for number in (500, 6, *range(60, 69))]  # of 5 another, of 69 none
        papers.put_vectors(MODEL, [key or 0 for key in keys[:-1]], np.stack(chosen))
        key, _ = papers.find(paper(3).arxiv_id) or (0, None)
        papers.put_vectors(MODEL, [key], vector_of(3)[None])  # had none


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """whole1, whole2 and the increment between; not to be changed."""
    folder = tmp_path_factory.mktemp("chain")
    corpus = fill(folder / "corpus", list(range(60)), without=(3, 30))
    make(corpus, folder / "whole1", version="1")
    change(corpus)
    make(corpus, folder / "whole2", version="2")
    make(corpus, folder / "increment", version="2", since=folder / "whole1")
    return folder


def unpacked(pack: Path, into: Path) -> PackManifest:
    with open_pack(pack) as opened:
        assert opened.unpack(into)
        return opened.manifest


def apply(increment: Path, generation: Path, scratch: Path) -> None:
    unpacked(increment, scratch)
    with open_index(generation) as index:
        assert apply_increment(index.papers, scratch / "changes.db", MODEL, DIMENSIONS)
        index.catch_up()


def test_a_whole_pack_and_an_increment_are_the_next_whole_pack(chain: Path, tmp_path: Path) -> None:
    unpacked(chain / "whole1", tmp_path / "new")
    last = unpacked(chain / "whole2", tmp_path / "whole2")
    for _ in range(2):  # a second time is the same
        apply(chain / "increment", tmp_path / "new", tmp_path / "scratch")
        shutil.rmtree(tmp_path / "scratch")
        assert rows_of(tmp_path / "new") == rows_of(tmp_path / "whole2")
    assert verify(tmp_path / "new") == []
    assert answers(tmp_path / "new") == answers(tmp_path / "whole2")
    with open_pack(chain / "increment") as opened:
        manifest = opened.manifest
    assert (manifest.contents, manifest.papers, manifest.embedded) == (last.contents, last.papers, last.embedded)
    assert make(tmp_path / "new", tmp_path / "again", version="2") == last, "packed again it is the very same"


def answers(generation: Path) -> Any:
    """By meaning with scores, and by keyword without: BM25 counts removed papers until tantivy merges them away."""
    with open_index(generation) as index:
        names = {key: one.arxiv_id for key, one in index.papers.papers()}
        query = np.random.default_rng(1).normal(size=DIMENSIONS).astype(np.float32)
        query /= np.linalg.norm(query)
        keys = np.array(sorted(names), np.int64)
        scores = dict(
            zip((names[key] for key in keys.tolist()), index.vectors.scores(query, keys).tolist(), strict=True)
        )
        nearest = {names[key] for key in index.vectors.nearest_among(query, keys, 10).tolist()}
        found = {
            word: {names[key] for key in index.keywords.search([word], 100).keys.tolist()}
            for word in ("common", "word5", "another", "word69", "word7")
        }
        return {name: round(score, 4) for name, score in scores.items() if score == score}, nearest, found  # noqa: PLR0124  not NaN


def test_an_increment_holds_what_changed_and_no_more(chain: Path, tmp_path: Path) -> None:
    unpacked(chain / "increment", tmp_path / "new")
    assert set(files_in(tmp_path / "new")) == {"changes.db", "manifest.json"}
    changed = [1, 2, 3, 5, 6, *range(60, 70)]
    assert [one.arxiv_id for one, _ in rows_of(tmp_path / "new", "changes.db")] == [paper(n).arxiv_id for n in changed]


@pytest.mark.parametrize("seed", range(5))
def test_any_changes_between_two_corpora_are_carried(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)

    def some(folder: Path) -> Path:
        folder.mkdir()
        with closing(PaperStore(folder / "papers.db")) as papers:
            for number in chance.sample(range(20), 12):
                given = paper(number, version=chance.randrange(3), title=f"common {chance.randrange(2)}")
                keys = papers.put([given]).keys
                if chance.random() < 0.7:
                    papers.put_vectors(MODEL, [keys[0] or 0], vector_of(chance.randrange(2))[None])
        return folder

    one, other = some(tmp_path / "one"), some(tmp_path / "other")
    make(one, tmp_path / "whole")
    make(other, tmp_path / "increment", since=tmp_path / "whole")
    unpacked(tmp_path / "whole", tmp_path / "new")
    apply(tmp_path / "increment", tmp_path / "new", tmp_path / "scratch")
    assert rows_of(tmp_path / "new") == rows_of(other)


def test_an_increment_keeps_the_selection_of_its_base(chain: Path, tmp_path: Path) -> None:
    selection = Selection(("cs",), limit=20)
    make(chain / "corpus", tmp_path / "base", selection=selection, version="1")
    corpus = shutil.copytree(chain / "corpus", tmp_path / "corpus")
    with closing(PaperStore(corpus / "papers.db")) as papers:
        papers.put([paper(61, published="2030-01-01", version=9), paper(63, published="2030-01-01", version=9)])
    whole = make(corpus, tmp_path / "whole", selection=selection, version="2")
    manifest = make(corpus, tmp_path / "increment", since=tmp_path / "base", version="2")
    assert (manifest.selection, manifest.contents, manifest.papers) == (selection, whole.contents, 20)


def test_the_same_change_makes_the_same_increment(chain: Path, tmp_path: Path) -> None:
    make(chain / "corpus", tmp_path / "again", version="2", since=chain / "whole1")
    assert files_in(tmp_path / "again") == files_in(chain / "increment")


def test_an_increment_fits_its_base_only(chain: Path) -> None:
    manifests = {}
    for name in ("whole1", "whole2", "increment"):
        with open_pack(chain / name) as opened:
            manifests[name] = opened.manifest
    require_base(manifests["increment"], manifests["whole1"])
    require_base(manifests["whole2"], None)
    for present, told in ((manifests["whole2"], r"is version 2 \(contents "), (None, "is of no pack")):
        with pytest.raises(PackError, match=rf"changes version 1 \(contents .*\), but the corpus here {told}"):
            require_base(manifests["increment"], present)


@pytest.mark.parametrize(
    ("since", "told"), [("increment", "is an increment itself"), ("whole2", "nothing has changed")]
)
def test_an_increment_that_cannot_be_made_is_refused_and_leaves_nothing(
    since: str, told: str, chain: Path, tmp_path: Path
) -> None:
    with pytest.raises(PackError, match=told):
        make(chain / "corpus", tmp_path / "new", since=chain / since)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_copy_of_a_generation_in_use_is_whole_and_leaves_the_original_alone(chain: Path, tmp_path: Path) -> None:
    original = tmp_path / "0001"
    unpacked(chain / "whole1", original)
    with open_index(original) as owner:
        before = files_in(original / "vectors") | files_in(original / "keywords")
        copy_generation(original, tmp_path / "copy")
        assert verify(tmp_path / "copy") == []
        linked = [path for path in (tmp_path / "copy").rglob("*") if path.stat().st_nlink > 1]
        assert {path.suffix for path in linked} >= {".usearch", ".npy", ".store"}
        apply(chain / "increment", tmp_path / "copy", tmp_path / "scratch")
        with open_index(tmp_path / "copy") as index:
            assert index.rebuild()  # writes each file of the indexes anew
        assert (files_in(original / "vectors") | files_in(original / "keywords")) == before
        assert owner.papers.count() == 60
        owner.papers.put([paper(99)])
        owner.catch_up()
    unpacked(chain / "whole2", tmp_path / "whole2")
    assert rows_of(tmp_path / "copy") == rows_of(tmp_path / "whole2")
    assert verify(original) == []


def test_a_copy_is_whole_while_its_owner_replaces_files(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(vectors, "TAIL_ROWS", 15)  # a new segment every few papers
    original = fill(tmp_path / "0001", list(range(30)))
    done, rounds = threading.Event(), 0

    def own() -> None:
        nonlocal rounds
        with open_index(original) as index:
            while not done.is_set():
                rounds += 1
                numbers = range(20 * (rounds % 20), 20 * (rounds % 20) + 20)
                given = [paper(number, version=rounds, title=f"common {rounds}") for number in numbers]
                keys = index.papers.put(given).keys
                index.papers.put_vectors(MODEL, [key or 0 for key in keys], np.stack(list(map(vector_of, numbers))))
                index.catch_up()

    waits, link = 0, increments.link_or_copy

    def overtaken(source: Path, copy: Path) -> None:
        """Link a file only after the owner has gone on, the first few times of a copy."""
        nonlocal waits
        if waits:
            waits -= 1
            before = rounds + 2
            while rounds < before and not owner.done():
                done.wait(0.01)
        link(source, copy)

    monkeypatch.setattr(increments, "link_or_copy", overtaken)
    with ThreadPoolExecutor(1) as pool:
        owner = pool.submit(own)
        try:
            for number in range(4):
                waits = 3
                copy = tmp_path / f"copy{number}"
                copy_generation(original, copy)
                assert verify(copy) == []
                assert (copy / "keywords" / "reached.json").exists(), "copied whole, if not at once"
                assert (copy / "vectors" / "segments.json").exists()
                with open_index(copy) as index:
                    index.catch_up()
                    found = index.keywords.search(["common"], 1_000).keys
                    assert sorted(found.tolist()) == index.papers.keys().tolist()
        finally:
            done.set()
        owner.result()
