"""What arXiv's OAI-PMH interface sends: pages of XML that are not trusted, and records that become papers."""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from oai_server import HEAD, OaiPaper, OaiServer, papers

from agent.corpus.arxiv_oai import belongs, import_record, names_of, set_of
from agent.corpus.oai_xml import (
    MAX_DEPTH,
    MAX_PAGE_BYTES,
    MAX_RECORD_CHARS,
    MAX_TOKEN_BYTES,
    PageError,
    UnsafePageError,
    read_page,
)
from agent.corpus.records import RecordError, parse_record
from agent.domain import Paper

# -- pages ------------------------------------------------------------------------------------------------------------

OPEN = HEAD.format(date="2026-11-26T09:30:00Z")
BILLION_LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>
<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><responseDate>&c;</responseDate></OAI-PMH>"""
XXE = """<?xml version="1.0"?>
<!DOCTYPE foo [<!ENTITY xxe SYSTEM "file:///etc/passwd">]>
<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><error code="&xxe;">&xxe;</error></OAI-PMH>"""
EXTERNAL_DTD = '<!DOCTYPE OAI-PMH SYSTEM "http://127.0.0.1:1/evil.dtd"><OAI-PMH/>'


def sent(*given: OaiPaper) -> bytes:
    """The page that the interface gives of them."""
    query = {"verb": "ListRecords", "metadataPrefix": "arXivRaw", "set": "cs", "from": "2005-09-16"}
    return OaiServer(list(given)).answer(query)


HOSTILE = {
    "billion laughs": BILLION_LAUGHS,
    "an external entity": XXE,
    "an external document type": EXTERNAL_DTD,
    "a parameter entity": '<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]><a/>',
    "nested without end": OPEN + "<a>" * (MAX_DEPTH + 5),
    "a tag without end": OPEN + "<a " + "b" * (MAX_TOKEN_BYTES + 200_000),
}


def pieces(text: str | bytes, size: int = 64 * 1024) -> Iterator[bytes]:
    content = text.encode() if isinstance(text, str) else text
    return (content[start : start + size] for start in range(0, len(content), size))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_xml_that_could_harm_its_reader_is_refused(text: str) -> None:
    for size in (64 * 1024, 7):
        if size > 7 or len(text) < 10_000:
            with pytest.raises(UnsafePageError):
                read_page(pieces(text, size))


def test_an_answer_without_end_is_given_up() -> None:
    with pytest.raises(UnsafePageError, match="MiB"):
        read_page(b" " * 65536 if number else OPEN.encode() for number in range(MAX_PAGE_BYTES // 65536 + 2))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00\x01\x02",
        "{}",
        "<html><body>sorry</body></html>",
        OPEN,
        OPEN + "</OAI-PMH>x",
        OPEN + "&nbsp;</OAI-PMH>",
        OPEN.replace("2026-11-26T09:30:00Z", "yesterday") + "</OAI-PMH>",
        '<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"></OAI-PMH>',
        OPEN.replace("http://www.openarchives.org/OAI/2.0/", "urn:another") + "</OAI-PMH>",
    ],
)
def test_what_is_no_whole_answer_is_said_to_be_none(text: str) -> None:
    with pytest.raises(PageError):
        read_page(pieces(text))


def test_any_damage_gives_a_page_or_an_error_of_ours() -> None:
    whole = sent(*papers(3))
    rng = random.Random(7)
    for _ in range(2_000):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        cut_at = rng.choice([len(damaged), rng.randrange(len(damaged))])
        try:
            page = read_page(pieces(bytes(damaged[:cut_at]), rng.choice([1, 1000, 65536]) if cut_at < 500 else 65536))
        except PageError:
            continue
        for record in page.records:
            with suppress(RecordError):
                import_record(record)


def test_a_bad_byte_and_a_control_character_do_not_cost_the_page() -> None:
    content = sent(OaiPaper("2611.00001", "2026-11-20", title="A \x0btitle \x00of \x1ftwo"))
    page = read_page(pieces(content.replace(b"abstract>An", b"abstract>\xff An")))
    assert [import_record(record)["abstract"] for record in page.records] == ["\ufffd An abstract"]


# -- records -----------------------------------------------------------------------------------------------------------


def paper_of(given: OaiPaper) -> Paper:
    (record,) = read_page([sent(given)]).records
    return parse_record(import_record(record))


def test_a_record_gives_the_paper_that_the_snapshot_gives() -> None:
    harvested = paper_of(
        OaiPaper(
            "0704.0001",
            "2008-11-26",
            title="Calculation of prompt diphoton production cross sections at Tevatron and\n  LHC energies",
            abstract='  A fully differential calculation in perturbative quantum chromodynamics is\npresented, for $a < b$ & "more".\n',
            authors="C. Balázs, E. L. Berger, P. M. Nadolsky, C.-P. Yuan",
            categories="hep-ph cs.LG",
            versions=("Mon, 2 Apr 2007 19:18:42 GMT", "Tue, 24 Jul 2007 20:10:27 GMT"),
        )
    )
    snapshot = {
        "id": "0704.0001",
        "submitter": "Pavel Nadolsky",
        "authors": "C. Balázs, E. L. Berger, P. M. Nadolsky, C.-P. Yuan",
        "title": "Calculation of prompt diphoton production cross sections at Tevatron and\n  LHC energies",
        "categories": "hep-ph cs.LG",
        "abstract": '  A fully differential calculation in perturbative quantum chromodynamics is\npresented, for $a < b$ & "more".\n',
        "versions": [
            {"version": "v1", "created": "Mon, 2 Apr 2007 19:18:42 GMT"},
            {"version": "v2", "created": "Tue, 24 Jul 2007 20:10:27 GMT"},
        ],
        "update_date": "2008-11-26",
        "authors_parsed": [
            ["Balázs", "C.", ""],
            ["Berger", "E. L.", ""],
            ["Nadolsky", "P. M.", ""],
            ["Yuan", "C.-P.", ""],
        ],
    }
    assert harvested == parse_record(snapshot)
    assert (harvested.version, harvested.published, harvested.updated) == (2, "2007-04-02", "2008-11-26")


def test_an_id_of_the_old_style_is_kept() -> None:
    old = OaiPaper("hep-th/9901001", "2026-11-20", categories="hep-th", sets=("physics:hep-th", "cs:cs:LG"))
    assert paper_of(old).arxiv_id == "hep-th/9901001"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("Ileana Streinu and Louis Theran", ["Ileana Streinu", "Louis Theran"]),
        ("A. Bee (MIT (US), 2), C. Dee, Jr. and\n  E. Eff, et al.", ["A. Bee", "C. Dee, Jr.", "E. Eff"]),
        ("the ATLAS Collaboration: G. Aad, and B. Abbott", ["the ATLAS Collaboration", "G. Aad", "B. Abbott"]),
        (r"H. M\"uller (1 and 2), Anders And ((1) ETH, (2) and others)", [r"H. M\"uller", "Anders And"]),
        ("Ludwig van der Berg III & Cher", ["Ludwig van der Berg III", "Cher"]),
        ("Robert Alandson", ["Robert Alandson"]),
        ("A. Bee (unclosed, and C. Dee", ["A. Bee"]),
        ("", []),
        ("(" * 100_000, []),
    ],
)
def test_names_are_told_apart_as_arxiv_does_it(line: str, names: list[str]) -> None:
    assert names_of(line) == names


@pytest.mark.parametrize(
    ("category", "spec"),
    [
        ("cs.LG", "cs:cs:LG"),
        ("cs.*", "cs:cs"),
        ("math", "math:math"),
        ("hep-th", "physics:hep-th"),
        ("physics.optics", "physics:physics:optics"),
        ("cond-mat.mes-hall", "physics:cond-mat:mes-hall"),
        ("astro-ph.GA", "physics:astro-ph:GA"),
        ("q-bio.NC", "q-bio:q-bio:NC"),
        ("cs:cs:LG", None),
        ("machine learning", None),
        ("cs.LG&set=math", None),
        ("", None),
    ],
)
def test_a_category_is_asked_for_by_the_set_that_arxiv_gives_it(category: str, spec: str | None) -> None:
    assert set_of(category) == spec


def test_a_paper_belongs_to_a_category_by_its_own_word_or_by_its_sets() -> None:
    given = OaiPaper("2611.00001", "2026-11-20", categories="math.MP stat.ML", sets=("cs:cs:LG", "physics:math-ph"))
    (record,) = read_page([sent(given)]).records
    assert [belongs(record, one) for one in ("math.MP", "math.*", "stat", "cs.LG", "cs", "math-ph")] == [True] * 6
    assert [belongs(record, one) for one in ("math.AG", "cs.CL", "hep-th")] == [False] * 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda text: text.replace("<title>A title</title>", "", 1), "title"),
        (lambda text: text.replace("<id>2611.00001", "<id>2611.00009"), "id"),
        (lambda text: text.replace("An abstract", "long " * (MAX_RECORD_CHARS // 4), 1), "long"),
        (lambda text: text.replace("<datestamp>2026-11-20", "<datestamp>today", 1), "update_date"),
    ],
)
def test_a_malformed_record_is_named_and_its_neighbours_are_read(change: Callable[[str], str], field: str) -> None:
    content = sent(OaiPaper("2611.00001", "2026-11-20"), OaiPaper("2611.00002", "2026-11-20", title="Another"))
    bad, good = read_page(pieces(change(content.decode()))).records
    with pytest.raises(RecordError, match=field):
        import_record(bad)
    assert import_record(good)["title"] == "Another"
