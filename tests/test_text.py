"""Names, words, ids and categories as people type them."""

import io
import json
import unicodedata
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from agent.domain import is_date
from agent.search.text import (
    arxiv_id_forms,
    arxiv_id_of,
    author_query_terms,
    author_terms,
    category_query_term,
    category_terms,
    day_number,
    fold,
    plain_tex,
)


def matches(query: str, author: str) -> bool:
    return bool(author_query_terms(query) & author_terms(author))


@pytest.mark.parametrize(
    ("query", "author", "expected"),
    [
        ("Vaswani", "Ashish Vaswani", True),
        ("vaswani", "Ashish K. Vaswani", True),
        ("A. Vaswani", "Ashish Vaswani", True),
        ("Ashish Vaswani", "A. Vaswani", True),
        ("Vaswani, Ashish", "Ashish Vaswani", True),
        ("Ashish Vaswani", "Vaswani, Ashish", True),
        ("B. Vaswani", "Ashish Vaswani", False),
        ("Anna Vaswani", "Ashish Vaswani", False),
        ("Ashish", "Ashish Vaswani", False),
        ("Vaswan", "Ashish Vaswani", False),
        ("Erdos", "Paul Erdős", True),
        ("Erdős", "P. Erd\\H{o}s", True),
        ("Erwin Schrödinger", 'E. Schr\\"odinger', True),
        ("Schrodinger", 'E. Schr{\\"o}dinger', True),
        ("Gunter Ziegler", "Günter M. Ziegler", True),
        ("Soren Kierkegaard", "S{\\o}ren Kierkegaard", True),
        ("Lukasz Kaiser", "Łukasz Kaiser", True),
        ("van der Waals", "J. D. van der Waals", True),
        ("Waals", "Johannes Diderik van der Waals", True),
        ("García Márquez", "Gabriel Garcia Marquez", True),
        ("Gabriel García Márquez", "Gabriel Garcia Marquez", True),
        ("Daume", "Hal Daumé III", True),
        ("Sammy Davis", "Sammy Davis Jr.", True),
        ("Collaboration", "ATLAS Collaboration", True),
        ("O'Neill", "Barrett O'Neill", True),
        ("O\u2019Neill", "Barrett O'Neill", True),
        ("O'Donnell", "Ryan O`Donnell", True),
        ("Lennard\u2010Jones", "John Lennard-Jones", True),
        ("Le", "Quoc V. Le", True),
        ("Quoc Le", "Le, Quoc V.", True),
        ("Du, Simon", "Simon S. Du", True),
        ("Xia Du", "Simon S. Du", False),
        ("Bin Yu", "Bin Yu", True),
        ("Bin Yu", "Yu, B.", True),
        ("B. Yu", "Bin Yu", True),
        ("Yu", "Bin Yu", True),
        ("Bin Yu", "Ming Yu", False),
        ("Van Nguyen", "Nguyen, Thanh", False),
        ("Abhijit Das", "Das, Abhijit", True),
        ("El Ghaoui", "Laurent El Ghaoui", True),
        ("Ghaoui, Laurent El", "Laurent El Ghaoui", True),
        ("de la Cruz", "Juan Pérez de la Cruz", True),
        ("Pérez de la Cruz", "Pérez de la Cruz, Juan", True),
        ("Ana de la Cruz", "Juan de la Cruz", False),
        ("Johannes van der Waals", "J. D. van der Waals", True),
        ("Quoc Le", "Quoc V. Le Jr.", True),
        ("Davis, Jr., Sammy", "Sammy Davis, Jr.", True),
        ("I. Ramakrishnan", "IV Ramakrishnan", True),
        ("...", "Ashish Vaswani", False),
        ("", "Ashish Vaswani", False),
    ],
)
def test_an_author_matches_on_family_name_and_on_given_names_when_present(query, author, expected) -> None:
    assert expected == matches(query, author)


@given(st.text(max_size=60))
def test_any_name_that_has_terms_finds_itself(name: str) -> None:
    if author_query_terms(name):
        assert matches(name, name)


def test_the_ways_to_write_a_name_agree_with_each_other() -> None:
    names = ["Ludwig van Beethoven", "Beethoven, Ludwig van", "van Beethoven, Ludwig"]
    for query in [*names, "L. van Beethoven", "van Beethoven", "Ludwig Beethoven", "Beethoven"]:
        assert all(matches(query, name) for name in names), query
    for query in ["Johann van Beethoven", "Ludwig van", "Ludwig"]:
        assert not any(matches(query, name) for name in names), query


def is_one_name(word: str) -> bool:
    """Not so a suffix (II), nor a letter that falls apart into several words (U+013F is L and a dot)."""
    letters = all(unicodedata.category(one)[0] in "LM" for one in unicodedata.normalize("NFKD", word))
    return letters and len(author_terms(f"x {word}")) > 1


LETTERS = st.text(st.characters(categories=["L"]), min_size=1, max_size=8).filter(is_one_name)
WORD = LETTERS | st.sampled_from(["Le", "van", "de", "Bin"])


@given(st.lists(WORD, min_size=1, max_size=3), st.lists(WORD, min_size=1, max_size=3))
def test_the_order_of_a_name_does_not_matter_and_its_last_word_finds_it(given_names, family) -> None:
    name = " ".join([*given_names, *family])
    assert author_terms(name) == author_terms(f"{' '.join(family)}, {' '.join(given_names)}")
    assert not author_terms(name) or matches(family[-1], name)


def test_every_real_author_is_found_by_the_last_word_and_by_the_whole_name(shared: Path) -> None:
    with zstandard.open(shared / "data" / "arxiv_dev_10k.jsonl.zst", "rb") as lines:
        authors = {name for line in io.BufferedReader(lines) for name in json.loads(line)["authors"]}
    assert len(authors) > 30_000
    lost = set()
    for name in authors:
        words = [word for word in name.replace(".", " ").split() if word.lower() not in ("jr", "ii", "iii", "iv")]
        if not matches(words[-1], name) or not matches(name, name):
            lost.add(name)
    assert lost <= {":"}  # no name at all


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("1706.03762", "1706.03762"),
        ("  1706.03762v5 ", "1706.03762"),
        ("arXiv:1706.03762v5", "1706.03762"),
        ("arxiv: 1706.03762", "1706.03762"),
        ("https://arxiv.org/abs/1706.03762", "1706.03762"),
        ("http://www.arxiv.org/pdf/1706.03762v2.pdf", "1706.03762"),
        ("arxiv.org/abs/hep-th/9711200v3", "hep-th/9711200"),
        ("https://export.arxiv.org/abs/1706.03762?context=cs", "1706.03762"),
        ("hep-th/9711200", "hep-th/9711200"),
        ("math.GT/0309136", "math.GT/0309136"),
        ("0704.0001", "0704.0001"),
        ("https://doi.org/10.48550/arXiv.1706.03762", "1706.03762"),
        ("doi:10.48550/arXiv.hep-th/9711200", "hep-th/9711200"),
        ("10.48550/arxiv.1706.03762", "1706.03762"),
        ("arXiv:1706.03762 [cs.CL]", "1706.03762"),
        ("arXiv:1706.03762v5  [cs.CL]  6 Dec 2017", "1706.03762"),
        ("arxiv.org/format/1706.03762", "1706.03762"),
        ("1706.03762 attention", None),
        ("see 1706.03762 for more", None),
        ("1706.03762 [cs.CL] attention", None),
        ("https://doi.org/10.1038/1706.03762", None),
        ("1706.037", None),
        ("https://example.org/abs/1706.03762", None),
        ("3.14159265", None),
        ("", None),
    ],
)
def test_an_arxiv_id_is_recognised_in_every_usual_form(query: str, expected: str | None) -> None:
    assert expected == arxiv_id_of(query)


def test_an_old_id_is_looked_up_with_and_without_its_subject_class() -> None:
    assert arxiv_id_forms("math.GT/0309136") == ["math.GT/0309136", "math/0309136"]
    assert arxiv_id_forms("HEP-TH/9711200") == ["HEP-TH/9711200", "hep-th/9711200"]
    assert arxiv_id_forms("1706.03762") == ["1706.03762"]


@pytest.mark.parametrize(
    ("category", "wanted", "expected"),
    [
        ("cs.LG", "cs.LG", True),
        ("cs.LG", "cs.*", True),
        ("cs.LG", "cs", True),
        ("cs", "cs.*", True),
        ("math-ph", "math", False),
        ("math.AG", "math", True),
        ("cs.LG", "cs.L", False),
        ("68T07, 68U05,", "68T07, 68U05,", True),
        ("cs.LG", "stat.ML", False),
        ("cs.LG", "cs.LG.*", True),
    ],
)
def test_a_category_filter_means_the_category_and_all_below_it(category: str, wanted: str, expected: bool) -> None:
    assert expected == (category_query_term(wanted) in category_terms(category))


@pytest.mark.parametrize(
    ("date", "valid", "number"),
    [
        ("2020-05-12", True, 20200512),
        ("2020-05", True, 20200501),
        ("2020-13-01", False, None),
        ("2021-02-29", False, None),
        ("2020", False, None),
        ("20200512", False, None),
        ("٢٠٢٠-٠٥-١٢", False, None),
    ],
)
def test_dates_are_checked_and_a_month_counts_from_its_first_day(date: str, valid: bool, number: int | None) -> None:
    assert valid == is_date(date)
    if valid:
        assert number == day_number(date)


def test_a_paper_without_a_date_has_no_day() -> None:
    assert day_number("") is None


@given(st.text(max_size=80))
def test_text_without_tex_is_left_alone(text: str) -> None:
    if "\\" not in text:
        assert text == plain_tex(text)
    assert fold(text) == fold(text)
    assert isinstance(plain_tex(text), str)


def test_mathematics_is_not_mistaken_for_accents() -> None:
    assert plain_tex(r"$\beta$ and \cite{x}") == r"$\beta$ and \cite{x}"
