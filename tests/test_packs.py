"""Packs: what is packed comes out again, with nothing left to build; the same papers make the same bytes."""

import json
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from packs import MODEL, files_in, fill, make, open_index, paper, rows_of, vector_of

from agent.cli import cli
from agent.corpus import packing
from agent.corpus.packs import open_pack
from agent.corpus.upkeep import verify
from agent.errors import CorpusError, DamagedPapersError
from agent.protocol.pack_manifest import Selection
from agent.store.papers import PaperStore


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


def unpacked(pack: Path, into: Path) -> Path:
    with open_pack(pack) as opened:
        assert opened.unpack(into)
    return into


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
    with open_index(tmp_path / "new") as index:
        assert (index.writable, index.problems()) == (True, [])
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
    assert verify(unpacked(path, tmp_path / "new")) == []


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
    assert sum(part.path.endswith(".usearch") for part in first.parts) == 4, "of 25, 25, 25 and 5"


CHANGES: dict[str, dict[str, Any]] = {
    "title": {"title": "other"},
    "author": {"authors": ("Ä. One", "Author", "7")},
    "category": {"categories": ("cs.LG",)},
    "date": {"updated": "2023-01-03"},
    "version": {"version": 2},
    "the border of two fields": {"title": "common word7.", "abstract": paper(7).abstract[1:]},
    "vector": {},
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_paper_makes_other_contents(change: str, packed: Path, tmp_path: Path) -> None:
    other = fill(tmp_path / "other", list(range(60)), without=(3, 30, 59, *((7,) if change == "vector" else ())))
    with closing(PaperStore(other / "papers.db")) as papers:
        papers.put([paper(7, **CHANGES[change])])
        key, _ = papers.find(paper(7).arxiv_id) or (0, None)
        papers.put_vectors(MODEL, [key], vector_of(107 if change == "vector" else 7)[None])
    with open_pack(packed) as opened:
        assert make(other, tmp_path / "pack").contents != opened.manifest.contents


# -- the selection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(("cs.*",)), lambda one: one % 3),
        (Selection(("cs",)), lambda one: one % 3),
        (Selection(("cs.LG", "math.AG")), lambda _: True),
        (Selection(("stat.ML",), "2015-06-11"), lambda one: one % 3 and (one % 10, 1 + one % 9) >= (5, 6)),
        (Selection(published_from="2015-07"), lambda one: (one % 10, 1 + one % 9) >= (5, 7)),
        (Selection(limit=60), lambda _: True),
        (Selection(limit=1_000), lambda _: True),
    ],
    ids=lambda value: str(value) if isinstance(value, Selection) else "",
)
def test_a_selection_means_what_the_filters_of_a_search_mean(
    selection: Selection, chosen: Any, corpus: Path, tmp_path: Path
) -> None:
    manifest = make(corpus, tmp_path / "pack", selection=selection)
    found = [one.arxiv_id for one, _ in rows_of(unpacked(tmp_path / "pack", tmp_path / "new"))]
    assert found == [paper(number).arxiv_id for number in range(60) if chosen(number)]
    assert (manifest.papers, manifest.selection) == (len(found), selection)


def test_a_limit_takes_the_newest_and_of_one_day_the_greatest_ids(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    dates = {1: "2020-02", 2: "", 3: "2020-01-05", 4: "2020-02-01", 5: "2020-02-01", 6: "1999-01-01"}
    with closing(PaperStore(tmp_path / "corpus" / "papers.db")) as papers:
        papers.put([paper(number, published=date) for number, date in dates.items()])
    for limit, expected in ((1, [5]), (2, [4, 5]), (3, [1, 4, 5]), (4, [1, 3, 4, 5]), (5, [1, 3, 4, 5, 6])):
        folder = tmp_path / str(limit)
        make(tmp_path / "corpus", folder, selection=Selection(limit=limit))
        found = [one.arxiv_id for one, _ in rows_of(unpacked(folder, tmp_path / f"new{limit}"))]
        assert found == [paper(number).arxiv_id for number in expected]


def test_an_empty_selection_is_refused_and_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="holds no papers"):
        make(corpus, tmp_path / "pack", selection=Selection(("hep-th",)))
    assert list((tmp_path / "pack").iterdir()) == []


def test_a_damaged_paper_stops_a_pack(tmp_path: Path) -> None:
    corpus = fill(tmp_path / "corpus", list(range(5)))
    file = corpus / "papers.db"
    file.write_bytes(file.read_bytes().replace(b"common word3", b"common werd3"))
    with pytest.raises(DamagedPapersError, match=r"2301\.00003"):
        make(corpus, tmp_path / "pack")
    assert list((tmp_path / "pack").iterdir()) == []


def test_a_folder_with_anything_in_it_is_left_alone(corpus: Path, packed: Path, tmp_path: Path) -> None:
    before = files_in(packed)
    with pytest.raises(CorpusError, match="is not empty"):
        make(corpus, packed)
    (tmp_path / "letter.zst").write_text("of somebody")
    with pytest.raises(CorpusError, match="is not empty"):
        make(corpus, tmp_path)
    assert (files_in(packed), (tmp_path / "letter.zst").read_text()) == (before, "of somebody")


# -- beside a writer -----------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from packs import paper
from agent.store.papers import PaperStore
papers, round = PaperStore(Path(sys.argv[1]) / "papers.db"), 1
while True:
    round += 1
    papers.put([paper(number, version=round, title=f"common round{round}") for number in range(300)])
    print(round, flush=True)
"""


def test_a_pack_is_of_one_moment_while_others_write(tmp_path: Path) -> None:
    corpus = fill(tmp_path / "corpus", list(range(300)))
    command = [sys.executable, "-c", WRITER, str(corpus), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        try:
            for number in range(3):
                writer.stdout.readline()
                make(corpus, tmp_path / str(number))
                rows = rows_of(unpacked(tmp_path / str(number), tmp_path / f"new{number}"))
                assert len(rows) == 300
                assert len({one.version for one, _ in rows}) == 1, "all of one transaction"
        finally:
            writer.kill()


# -- the command line ----------------------------------------------------------------------------------------------------


def test_the_command_packs_with_the_model_and_says_what_it_did(sample_data_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "pack"
    options = ["--category", "cs", "--from", "2010", "--with-model", "--version", "7", "--json"]
    done = CliRunner().invoke(cli, ["--data-dir", str(sample_data_dir), "corpus", "pack", str(target), *options])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    with open_pack(target) as opened:
        manifest = opened.manifest
        assert opened.unpack(tmp_path / "new")
    assert (told["version"], told["papers"], told["bytes"]) == ("7", manifest.papers, manifest.packed_bytes)
    assert manifest.selection == Selection(("cs",), "2010-01")
    assert 0 < manifest.papers < 149
    assert {path.name for path in (tmp_path / "new" / "model").iterdir()} >= {"model.onnx", "model.yaml"}
    assert {path.name for path in target.iterdir()} == {"manifest.json", *(part.name for part in manifest.parts)}
    assert verify(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--from", "yesterday"], 2, "expected YYYY, YYYY-MM or YYYY-MM-DD"),
        (["--limit", "0"], 2, "--limit"),
        (["--version", "../7"], 1, "version"),
    ],
)
def test_a_wish_that_cannot_be_met_is_named(
    options: list[str], code: int, told: str, sample_data_dir: Path, tmp_path: Path
) -> None:
    command = ["--data-dir", str(sample_data_dir), "corpus", "pack", str(tmp_path / "pack"), *options]
    done = subprocess.run([sys.executable, "-m", "agent", *command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "pack" / "manifest.json").exists()
