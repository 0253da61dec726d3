"""kill -9 while a pack is made, unpacked or applied: a whole pack or none; the corpus it came to as it was."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from crash_cases import cases, killed_at
from packs import MODEL, files_in, fill, make, open_index, paper, rows_of, vector_of

from agent.cli import cli
from agent.corpus.increments import apply_increment
from agent.corpus.packs import open_pack
from agent.corpus.upkeep import verify
from agent.errors import PackError
from agent.store.generations import activate

WORKER = """
import sys
from contextlib import closing
from pathlib import Path
from agent.corpus.increments import apply_increment, copy_generation
from agent.corpus.packs import open_pack
from agent.store.papers import PaperStore
pack, into = Path(sys.argv[1]), Path(sys.argv[2])
if len(sys.argv) > 3:
    copy_generation(Path(sys.argv[3]), into)
with open_pack(pack) as opened:
    opened.unpack(into)
if len(sys.argv) > 3:
    with closing(PaperStore(into / "papers.db")) as papers:
        apply_increment(papers, into / "changes.db", "all-MiniLM-L6-v2", 384)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder, its pack, the same changed, and the increment between; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    corpus = fill(folder / "data" / "generations" / "0001", list(range(40)))
    activate(folder / "data", corpus, instead_of=None)
    make(corpus, folder / "whole", version="1")
    later = shutil.copytree(corpus, folder / "later")
    with open_index(later) as index:
        keys = index.papers.put([paper(1, version=2, title="another"), paper(41)]).keys
        index.papers.put_vectors(MODEL, [keys[1] or 0], vector_of(41)[None])
        index.papers.remove([paper(2).arxiv_id])
    make(later, folder / "increment", version="2", since=folder / "whole")
    return folder


@pytest.mark.parametrize(("scenario", "point"), cases("pack"))
def test_a_killed_pack_is_whole_or_none_and_the_same_command_makes_it(
    scenario: str, point: str, made: Path, tmp_path: Path
) -> None:
    target = tmp_path / "pack"
    command = ["--data-dir", str(made / "data"), "corpus", "pack", str(target), "--version", "1"]
    killed_at(point, "-m", "agent", *command)
    if (target / "manifest.json").exists():
        with open_pack(target) as opened:
            opened.verify()
        assert files_in(target) == files_in(made / "whole")
        return
    with pytest.raises(PackError, match=r"manifest\.json is missing"), open_pack(target):
        pass
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert files_in(target) == files_in(made / "whole"), "and nothing of the killed one is left"


@pytest.mark.parametrize(("scenario", "point"), cases("unpack"))
def test_what_was_not_unpacked_to_the_end_has_no_manifest(
    scenario: str, point: str, made: Path, tmp_path: Path
) -> None:
    killed_at(point, "-c", WORKER, str(made / "whole"), str(tmp_path / "new"))
    assert not (tmp_path / "new" / "manifest.json").exists()


@pytest.mark.parametrize(("scenario", "point"), cases("increment"))
def test_a_killed_increment_leaves_its_base_alone_and_can_be_applied_again(
    scenario: str, point: str, made: Path, tmp_path: Path
) -> None:
    original, copy = made / "data" / "generations" / "0001", tmp_path / "copy"
    killed_at(point, "-c", WORKER, str(made / "increment"), str(copy), str(original))
    assert verify(original) == []
    assert len(rows_of(original)) == 40
    if (copy / "changes.db").exists():
        with open_index(copy) as index:
            apply_increment(index.papers, copy / "changes.db", MODEL, 384)
            index.catch_up()
        assert rows_of(copy) == rows_of(made / "later")
        assert verify(copy) == []
