"""Records of arXiv metadata into the corpus."""

import gzip
import io
import json
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import zstandard
from click.testing import CliRunner
from conftest import run_command
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cli import cli
from agent.corpus.importer import ImportReport, import_papers, read_vectors
from agent.corpus.records import RecordError, parse_line, parse_record
from agent.domain import Paper
from agent.errors import CorpusError
from agent.search.corpus_index import CorpusIndex
from agent.store.generations import EMBEDDING_LOCK, FolderLock
from agent.store.papers import PaperStore

MODEL, DIMENSIONS = "test-model", 8

OURS = {
    "arxiv_id": "1706.03762",
    "title": "Attention Is All You Need",
    "abstract": "We drop recurrence.",
    "authors": ["Ashish Vaswani", "Noam Shazeer"],
    "categories": ["cs.CL", "cs.LG"],
    "published": "2017-06-12",
    "updated": "2017-12-06",
    "src": "x",
}
SNAPSHOT = {
    "id": "0704.0001",
    "submitter": "Pavel Nadolsky",
    "authors": "C. Bal\\'azs, E. L. Berger",
    "authors_parsed": [["Balázs", "C.", ""], ["Berger", "E. L.", ""], ["Davis", "Sammy", "Jr."]],
    "title": "Calculation of prompt diphoton production cross sections at Tevatron and\n  LHC energies",
    "abstract": "  A fully differential calculation in\nperturbative QCD is presented.\n",
    "categories": "hep-ph hep-ex",
    "versions": [
        {"version": "v1", "created": "Mon, 2 Apr 2007 19:18:42 GMT"},
        {"version": "v2", "created": "Tue, 24 Jul 2007 20:10:27 GMT"},
    ],
    "update_date": "2008-11-26",
}


@pytest.fixture
def index(tmp_path: Path):
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as opened:
        yield opened


def write(path: Path, *rows: dict | bytes) -> str:
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


def rows(count: int) -> list[dict]:
    return [{**OURS, "arxiv_id": f"2401.{number:05d}", "title": f"Paper number {number}"} for number in range(count)]


def test_our_own_fields_are_read_as_given() -> None:
    expected = Paper(
        arxiv_id="1706.03762",
        title="Attention Is All You Need",
        abstract="We drop recurrence.",
        authors=("Ashish Vaswani", "Noam Shazeer"),
        categories=("cs.CL", "cs.LG"),
        published="2017-06-12",
        updated="2017-12-06",
    )
    assert expected == parse_record(OURS)


def test_the_fields_of_the_full_snapshot_are_read() -> None:
    expected = Paper(
        arxiv_id="0704.0001",
        title="Calculation of prompt diphoton production cross sections at Tevatron and LHC energies",
        abstract="A fully differential calculation in perturbative QCD is presented.",
        authors=("C. Balázs", "E. L. Berger", "Sammy Davis Jr."),
        categories=("hep-ph", "hep-ex"),
        published="2007-04-02",
        updated="2008-11-26",
        version=2,
    )
    assert expected == parse_record(SNAPSHOT)


TEXT = st.text(min_size=1).filter(str.strip)


@given(title=TEXT, abstract=st.text(), authors=st.lists(TEXT, max_size=3), categories=st.lists(TEXT, max_size=3))
def test_latex_and_unicode_survive_as_given(title, abstract, authors, categories) -> None:
    record = {
        "arxiv_id": "2401.00001",
        "title": title,
        "abstract": abstract,
        "authors": authors,
        "categories": categories,
    }
    paper = parse_line(json.dumps(record).encode())
    assert (title, abstract, tuple(authors), tuple(categories)) == (
        paper.title,
        paper.abstract,
        paper.authors,
        paper.categories,
    )


DATES = st.sampled_from(
    ["Mon, 2 Apr 99999 19:18:42 GMT", "Mon, 2 Apr 2007 19:18:42 +99999999999999", "2 Apr 1 0:0 +9959"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | DATES | st.just("2017-06-12"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["created", "version"]), inner),
    max_leaves=6,
)
IDS = st.from_regex(r"(arXiv:)?([0-9]{4}\.[0-9]{4,5}|math(\.GT)?/[0-9]{7})(v[0-9]{1,25})?", fullmatch=True)
VERSIONS = st.lists(st.fixed_dictionaries({"created": DATES | JSON}), min_size=1, max_size=2)
ODD = st.fixed_dictionaries({}, optional={"id": IDS, "versions": VERSIONS}) | st.dictionaries(
    st.sampled_from([*OURS, *SNAPSHOT]), JSON, max_size=2
)
RECORDS = st.builds(lambda record, odd: {**record, **odd}, st.sampled_from([OURS, SNAPSHOT]), ODD)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory):
    with closing(PaperStore(tmp_path_factory.mktemp("papers") / "papers.db")) as store:
        yield store


@settings(max_examples=200)
@given(st.binary(max_size=100) | RECORDS.map(lambda record: json.dumps(record).encode()))
def test_any_line_gives_a_reason_or_a_paper_that_can_be_stored(papers: PaperStore, line: bytes) -> None:
    try:
        paper = parse_line(line)
    except RecordError as error:
        assert "cannot be read" not in str(error)  # the last resort is for what nobody has thought of
    else:
        papers.put([paper])
        assert papers.find(paper.arxiv_id)


def test_whatever_goes_wrong_with_a_line_is_a_malformed_line(index, tmp_path: Path, monkeypatch) -> None:
    read = Paper

    def exotic(**fields):
        if fields["title"] == "odd":
            raise BufferError("who would have thought")
        return read(**fields)

    monkeypatch.setattr("agent.corpus.records.Paper", exotic)
    report = import_papers(write(tmp_path / "rows", *rows(2), {**OURS, "title": "odd"}), index, MODEL)
    assert (report.added, report.malformed, report.problems[0].line) == (2, 1, 3)
    assert "who would have thought" in report.problems[0].reason


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"arxiv_id": None}, "arxiv_id"),
        ({"arxiv_id": ""}, "arxiv_id"),
        ({"arxiv_id": 1706.03762}, "arxiv_id"),
        ({"arxiv_id": "x" * 200}, "arxiv_id"),
        ({"arxiv_id": "1706.03762v99999999999999999999"}, "arxiv_id"),
        ({"arxiv_id": None, "id": 5}, "arxiv_id"),
        ({"title": None}, "title"),
        ({"title": "   "}, "title"),
        ({"title": 5}, "title"),
        ({"abstract": ["x"]}, "abstract"),
        ({"authors": {"a": 1}}, "authors"),
        ({"authors": [1]}, "authors"),
        ({"authors_parsed": "x"}, "authors_parsed"),
        ({"authors_parsed": [[]]}, "authors_parsed"),
        ({"categories": [None]}, "categories"),
        ({"published": "June 2017"}, "published"),
        ({"updated": 2017}, "updated"),
    ],
)
def test_a_malformed_record_is_refused_with_the_field_named(change: dict, named: str) -> None:
    with pytest.raises(RecordError, match=rf"^{named}: expected"):
        parse_record({**OURS, **change})


@pytest.mark.parametrize("given_id", ["1706.03762v5", "arXiv:1706.03762v5"])
def test_a_version_in_the_id_is_the_papers_version(given_id: str) -> None:
    paper = parse_record({**OURS, "arxiv_id": given_id})
    assert (paper.arxiv_id, paper.version) == ("1706.03762", 5)


@pytest.mark.parametrize(
    ("given_ids", "expected"),
    [
        ({"arxiv_id": None, "id": "1706.03762"}, "1706.03762"),
        ({"arxiv_id": "1706.03762", "id": None}, "1706.03762"),
        ({"id": "math.GT/0309136v2"}, "math/0309136"),
        ({"id": "math/0309136"}, "math/0309136"),
        ({"id": "arXiv:HEP-TH/9711200"}, "hep-th/9711200"),
        ({"id": "My.Own/1"}, "My.Own/1"),
    ],
)
def test_an_id_is_stored_in_arxivs_own_form(given_ids: dict, expected: str) -> None:
    assert parse_record({**given_ids, "title": "t"}).arxiv_id == expected


@pytest.mark.parametrize(
    "created", [5, None, "soon", "Mon, 2 Apr 99999 19:18:42 GMT", "2 Apr 2007 1:2:3 +99999999999999"]
)
def test_a_first_version_without_a_readable_date_leaves_the_paper_undated(created) -> None:
    paper = parse_record({**SNAPSHOT, "versions": [{"version": "v1", "created": created}]})
    assert (paper.arxiv_id, paper.published, paper.version) == ("0704.0001", "", 1)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda data: zstandard.compress(data[:500]) + zstandard.compress(data[500:])])  # fmt: skip
def test_plain_gzip_and_zstd_files_are_told_by_their_content(pack, index, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", *rows(30))
    packed = tmp_path / "no-telling-name"
    packed.write_bytes(pack(Path(plain).read_bytes()))
    assert ImportReport(lines=30, added=30) == import_papers(str(packed), index, MODEL)
    assert index.papers.count() == 30


class Trickle(io.RawIOBase):
    """A pipe that delivers a byte at a time."""

    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.data.readinto(memoryview(buffer)[:1])


def skippable_first(data: bytes) -> bytes:
    """As pzstd and the seekable format write it: a frame that says something else before the data."""
    return struct.pack("<II", 0x184D2A5A, 6) + b"titles" + zstandard.compress(data)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress, skippable_first])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("stream", [io.BytesIO, Trickle])
def test_standard_input_is_a_file_like_any_other(pack, mark, stream, index, tmp_path: Path, monkeypatch) -> None:
    packed = pack(mark + Path(write(tmp_path / "rows", *rows(3))).read_bytes())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(stream(packed))))
    assert ImportReport(lines=3, added=3) == import_papers("-", index, MODEL)
    (tmp_path / "packed").write_bytes(packed)
    assert ImportReport(lines=3, unchanged=3) == import_papers(str(tmp_path / "packed"), index, MODEL)


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n\n", gzip.compress(b"", mtime=0)])
def test_a_file_without_records_is_no_error(data: bytes, index, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(data)
    report = import_papers(str(tmp_path / "rows"), index, MODEL)
    assert (report.added, report.malformed) == (0, 0)


def test_importing_twice_changes_nothing(index, tmp_path: Path) -> None:
    file = write(tmp_path / "rows", *rows(10), SNAPSHOT)
    import_papers(file, index, MODEL)
    before = index.papers.last_change()
    assert ImportReport(lines=11, unchanged=11) == import_papers(file, index, MODEL)
    assert before == index.papers.last_change()


def test_newer_versions_replace_older_ones_and_older_ones_are_passed_over(index, tmp_path: Path) -> None:
    old, new = OURS, {**OURS, "title": "Attention!", "updated": "2018-01-01"}
    import_papers(write(tmp_path / "old", old), index, MODEL)
    assert import_papers(write(tmp_path / "new", new), index, MODEL).updated == 1
    assert import_papers(write(tmp_path / "old", old), index, MODEL).older == 1
    found = index.papers.find("1706.03762")
    assert found[1].title == "Attention!"
    assert index.papers.count() == 1
    assert [found[0]] == index.keywords.search(index.keywords.terms("attention"), 10).keys.tolist()


def test_malformed_lines_are_counted_with_their_numbers_and_the_rest_is_imported(index, tmp_path: Path) -> None:
    good = rows(3)
    file = write(tmp_path / "rows", good[0], b"{", b"", good[1], b"\xff\xfe", {**OURS, "title": None}, b"[]", good[2])
    report = import_papers(file, index, MODEL)
    assert (report.lines, report.added, report.malformed) == (8, 3, 4)
    assert [problem.line for problem in report.problems] == [2, 5, 6, 7]
    assert "title" in report.problems[2].reason


def test_an_endless_line_is_passed_over_without_being_held_in_memory(index, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("agent.corpus.source.MAX_LINE_BYTES", 1_000)
    file = write(tmp_path / "rows", rows(1)[0], b"x" * 5_000, {**OURS})
    report = import_papers(file, index, MODEL)
    assert (report.lines, report.added, [problem.line for problem in report.problems]) == (3, 2, [2])


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_truncated_file_is_an_error_and_what_came_before_is_kept(pack, index, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 2**62, 4_000)
    many = [{**row, "abstract": str(noise[i % 4000])} for i, row in enumerate(rows(4_000))]
    packed = pack(Path(write(tmp_path / "rows", *many)).read_bytes())
    cut = tmp_path / "cut"
    cut.write_bytes(packed[: len(packed) * 3 // 4])
    with pytest.raises(CorpusError, match="damaged or truncated"):
        import_papers(str(cut), index, MODEL)
    kept = index.papers.count()
    assert 0 < kept < 4_000
    assert kept == index.papers.last_change() == index.keywords.reached


def test_given_vectors_belong_to_lines_malformed_ones_included(index, tmp_path: Path) -> None:
    matrix = np.random.default_rng(2).integers(-127, 127, (4, DIMENSIONS)).astype(np.int8)
    np.save(tmp_path / "vectors.npy", matrix)
    papers = rows(3)
    file = write(tmp_path / "rows", papers[0], b"{", papers[1], papers[2])
    report = import_papers(file, index, MODEL, vectors=read_vectors(tmp_path / "vectors.npy", DIMENSIONS))
    assert (report.added, report.vectors) == (3, 3)
    stored = index.papers.vectors_since(0, MODEL, DIMENSIONS, 10)
    assert matrix[[0, 2, 3]].tolist() == stored.matrix.tolist()
    assert import_papers(file, index, MODEL, vectors=matrix).vectors == 0


def test_float_vectors_are_scaled_to_int8(tmp_path: Path) -> None:
    odd = [[np.nan, 1.0], [1.0, -np.inf], [0.0, 0.0]]
    np.save(tmp_path / "f32.npy", np.array([[0.5, -1.0], [2.0, 0.0], *odd], np.float32))
    assert read_vectors(tmp_path / "f32.npy", 2).tolist() == [[64, -127], [127, 0], [0, 0], [0, 0], [0, 0]]


def test_a_row_that_is_no_vector_leaves_its_paper_to_be_embedded(index, tmp_path: Path) -> None:
    matrix = np.ones((4, DIMENSIONS), np.float32)
    matrix[1], matrix[2, 3] = 0, np.nan
    np.save(tmp_path / "v.npy", matrix)
    file = write(tmp_path / "rows", *rows(4))
    report = import_papers(file, index, MODEL, vectors=read_vectors(tmp_path / "v.npy", DIMENSIONS))
    assert (report.vectors, report.unusable_vectors) == (2, 2)
    waiting = {index.papers.get([key])[key].title for key, _ in index.papers.without_vector(MODEL, 9)}
    assert waiting == {"Paper number 1", "Paper number 2"}


def zipped(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.ones((2, DIMENSIONS), np.int8))


def pickled(path: Path) -> None:
    np.save(path, np.array([[{}] * DIMENSIONS], object), allow_pickle=True)


def cut_short(path: Path) -> None:
    np.save(path, np.ones((9, DIMENSIONS), np.int8))
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: np.save(path, np.ones((2, 3), np.int8)), r"shape \(2, 3\), expected \(lines, 8\)"),
        (lambda path: np.save(path, np.ones(8, np.int8)), "shape"),
        (lambda path: np.save(path, np.ones((2, 8), np.float64)), "float64"),
        (lambda path: np.save(path, np.zeros((2, 8), np.int8)), "no vector"),
        (lambda path: np.save(path, np.full((2, 8), np.nan, np.float32)), "no vector"),
        (zipped, "cannot be read as .npy"),
        (lambda path: path.write_bytes(b""), "cannot be read as .npy"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x04\x00{(((" * 3), "cannot be read as .npy"),
        (pickled, "cannot be read as .npy"),
        (cut_short, "cannot be read as .npy"),
    ],
)
def test_a_file_that_holds_no_fitting_vectors_is_refused(make, said: str, tmp_path: Path) -> None:
    make(tmp_path / "v.npy")
    with pytest.raises(CorpusError, match=said):
        read_vectors(tmp_path / "v.npy", DIMENSIONS)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_of_vectors_for_another_number_of_lines_none_is_stored(count: int, index, tmp_path: Path) -> None:
    file, report = write(tmp_path / "rows", *rows(3)), ImportReport()
    with pytest.raises(CorpusError, match=rf"{count} rows, but the input has 3 lines"):
        import_papers(file, index, MODEL, vectors=np.ones((count, DIMENSIONS), np.int8), report=report)
    assert (report.added, report.vectors, index.papers.count(), index.papers.count_embedded(MODEL)) == (3, 0, 3, 0)
    import_papers(file, index, MODEL, vectors=np.ones((3, DIMENSIONS), np.int8))
    assert index.papers.count_embedded(MODEL) == 3


def test_vectors_follow_the_last_of_a_papers_lines_and_pass_over_older_ones(index, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("agent.corpus.importer.BATCH", 2)
    first, second, third = rows(3)
    newer = {**first, "title": "Rewritten", "updated": "2020-01-01"}
    import_papers(write(tmp_path / "before", {**third, "updated": "2021-01-01"}), index, MODEL)
    matrix = np.arange(1, 4 * DIMENSIONS + 1, dtype=np.int8).reshape(4, DIMENSIONS)
    report = import_papers(write(tmp_path / "rows", first, second, third, newer), index, MODEL, vectors=matrix)
    assert (report.added, report.updated, report.older, report.vectors) == (2, 1, 1, 2)
    stored = index.papers.vectors_since(0, MODEL, DIMENSIONS, 10)
    titles = [index.papers.get([key])[key].title for key in stored.keys.tolist()]
    assert dict(zip(titles, stored.matrix.tolist(), strict=True)) == {
        "Paper number 1": matrix[1].tolist(),
        "Rewritten": matrix[3].tolist(),
    }


def test_nobody_embeds_papers_that_are_about_to_get_a_given_vector(index, tmp_path: Path) -> None:
    taken = []

    def try_to_embed(_: int) -> None:
        with FolderLock(index.folder / EMBEDDING_LOCK) as lock:
            taken.append(lock.acquire())

    file = write(tmp_path / "rows", *rows(3))
    import_papers(file, index, MODEL, progress=try_to_embed)
    import_papers(file, index, MODEL, vectors=np.ones((3, DIMENSIONS), np.int8), progress=try_to_embed)
    try_to_embed(0)
    assert taken == [True, False, True]


def test_the_command_reports_in_words_and_in_json(tmp_path: Path) -> None:
    data = Path(write(tmp_path / "rows", *rows(2), b"nonsense")).read_bytes()
    said = run_command("corpus", "import", "-", "--no-embed", data_dir=tmp_path / "d", stdin=data)
    assert b"3 lines: 2 added, 1 malformed" in said.stdout
    assert b"line 3: not valid JSON" in said.stderr
    document = json.loads(run_command("corpus", "import", "-", "--json", data_dir=tmp_path / "d", stdin=data).stdout)
    assert (document["unchanged"], document["malformed"], document["embedded"]) == (2, 1, 2)


def test_the_command_tells_what_was_done_before_an_input_breaks_off(tmp_path: Path) -> None:
    data = gzip.compress(Path(write(tmp_path / "rows", *rows(3), b"nonsense")).read_bytes())[:-4]
    said = run_command("corpus", "import", "-", data_dir=tmp_path / "d", stdin=data)
    assert (said.returncode, b"4 lines: 3 added, 1 malformed" in said.stdout) == (1, True)
    assert b"line 4: not valid JSON" in said.stderr
    assert b"damaged or truncated after line 4" in said.stderr
    again = run_command("corpus", "import", "-", "--json", data_dir=tmp_path / "d", stdin=data)
    document = json.loads(again.stdout)
    assert (again.returncode, document["unchanged"], document["problems"][0][0]) == (1, 3, 4)
    assert "damaged or truncated" in document["error"]


def test_a_thousand_malformed_lines_are_named_in_json_and_the_first_ones_on_the_screen(tmp_path: Path) -> None:
    data = b"nonsense\n" * 1_200
    said = run_command("corpus", "import", "-", data_dir=tmp_path / "d", stdin=data)
    assert len(said.stderr.splitlines()) == 21
    assert b"and 1180 more" in said.stderr
    document = json.loads(run_command("corpus", "import", "-", "--json", data_dir=tmp_path / "d", stdin=data).stdout)
    assert (document["malformed"], document["problems"][-1][0]) == (1_200, 1_000)


def test_papers_without_a_given_vector_are_embedded_in_the_same_run(tmp_path: Path) -> None:
    data = Path(write(tmp_path / "rows", *rows(3))).read_bytes()
    matrix = np.ones((3, 384), np.int8)
    matrix[1] = 0
    np.save(tmp_path / "v.npy", matrix)
    command = ["corpus", "import", "-", "--vectors", str(tmp_path / "v.npy"), "--json"]
    later = run_command(*command, "--no-embed", data_dir=tmp_path / "later", stdin=data)
    assert json.loads(later.stdout)["embedded"] == 0
    document = json.loads(run_command(*command, data_dir=tmp_path / "d", stdin=data).stdout)
    assert [document[name] for name in ("vectors", "unusable_vectors", "embedded")] == [2, 1, 1]


def test_given_vectors_need_no_installed_model(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("agent.paths.shared_models_dir", lambda: tmp_path / "none")
    file = write(tmp_path / "rows", *rows(3))
    np.save(tmp_path / "v.npy", np.eye(3, 384, 1, np.int8) * np.array([[1], [0], [1]], np.int8))
    options = ["--data-dir", str(tmp_path / "d"), "corpus", "import", file, "--vectors", str(tmp_path / "v.npy")]
    done = CliRunner().invoke(cli, options)
    assert (done.exit_code, "2 vectors taken over" in done.stdout) == (0, True)
    assert "1 papers have no vector yet: model all-MiniLM-L6-v2 is not installed" in done.stdout


def test_ten_thousand_real_papers_import_with_the_vectors_at_hand(shared: Path, tmp_path: Path) -> None:
    file = str(shared / "data" / "arxiv_dev_10k.jsonl.zst")
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=True) as index:
        report = import_papers(file, index, MODEL)
        assert (report.lines, report.added, report.malformed) == (10_000, 10_000, 0)
        assert index.keywords.reached == 10_000
    with zstandard.open(file, "rb") as lines:
        given_first = json.loads(next(io.BufferedReader(lines)))
    with CorpusIndex(tmp_path, MODEL, DIMENSIONS, owner=False) as index:
        stored = index.papers.find(given_first["arxiv_id"])[1]
    assert (given_first["title"], given_first["abstract"]) == (stored.title, stored.abstract)
