"""Names and words as people type them: accents, TeX accents, case, name order. Pure functions."""

import re
import unicodedata
from typing import Final

# \"o \'{e} \c{c} \v s: the accent macros of TeX, with or without braces.
_ACCENT: Final = r"""\\(?:["'`^~=.]\s*|[cHkruvbd](?:\s+|(?=\{)))\{?\\?([A-Za-z])\}?"""
_TEX_ACCENT: Final = re.compile(rf"\{{{_ACCENT}\}}|{_ACCENT}")
_TEX_LETTER: Final = {
    r"\o": "o",
    r"\l": "l",
    r"\ss": "ss",
    r"\ae": "ae",
    r"\oe": "oe",
    r"\aa": "a",
    r"\i": "i",
}
_TEX_LETTERS: Final = re.compile(r"\{?\\(ss|ae|oe|aa|o|l|i)\b\s*(?:\{\})?\}?", re.IGNORECASE)
_PLAIN: Final = str.maketrans(
    {
        "ø": "o",
        "ł": "l",
        "đ": "d",
        "ð": "d",
        "þ": "th",
        "æ": "ae",
        "œ": "oe",
        "\u0131": "i",
        "\u2019": "'",
        "\u02bc": "'",
        "`": "'",
        "\u2010": "-",
        "\u2011": "-",
    }
)
_NAME_TOKEN: Final = re.compile(r"[^\W_]+(?:[-'’‐][^\W_]+)*", re.UNICODE)  # noqa: RUF001  real apostrophes
_PARTICLES: Final = frozenset(
    "van von der den de del della di da das dos du la le el al bin ibn ter ten st".split()  # noqa: SIM905
)
_SUFFIXES: Final = frozenset(("jr", "sr", "ii", "iii", "iv"))


def plain_tex(text: str) -> str:
    r"""Replace TeX accent macros by the bare letter: `Schr\"odinger` reads `Schrodinger`."""
    if "\\" not in text:
        return text
    text = _TEX_ACCENT.sub(lambda match: match[1] or match[2], text)
    return _TEX_LETTERS.sub(lambda match: _TEX_LETTER["\\" + match[1].lower()], text)


def fold(text: str) -> str:
    """Lower case without accents, TeX or Unicode."""
    decomposed = unicodedata.normalize("NFKD", plain_tex(text).casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c)).translate(_PLAIN)


def name_words(name: str) -> list[str]:
    """The folded words of a name, given names first: of `Beethoven, Ludwig van` and `Ludwig van Beethoven` the same.

    Suffixes (Jr.) are left out.
    """
    family_part, _, given_part = fold(name).partition(",")
    family, given = _NAME_TOKEN.findall(family_part), _NAME_TOKEN.findall(given_part)
    return _without_suffixes(given) + family[:1] + _without_suffixes(family[1:])


def _without_suffixes(words: list[str]) -> list[str]:
    return [word for word in words if word not in _SUFFIXES]


def author_terms(name: str) -> set[str]:
    """The index terms of one author.

    `Ashish K. Vaswani` gives `vaswani`, `vaswani|ashish` and `vaswani|a*`; an author of whom only an initial is
    known gives `vaswani|a.` instead of the full name. The last word is always the family name, or the end of it:
    `Gabriel García Márquez` can also be found as `garcia marquez`, `J. D. van der Waals` as `van der waals`.
    """
    *given, last = name_words(name) or [""]
    if not last:
        return set()
    terms = {last}
    if given:
        first = given[0]
        terms |= {f"{last}|{first}" if len(first) > 1 else f"{last}|{first}.", f"{last}|{first[0]}*"}
    family = last
    for word in reversed(given):
        family = f"{word} {family}"
        terms.add(family)
        if word not in _PARTICLES:
            break
    return terms


def author_query_terms(name: str) -> set[str]:
    """The terms of which any one makes an author match `name`.

    A family name alone matches everyone of that name; with a given name or an initial, the first of them must
    agree, where an initial agrees with every name that begins so.
    """
    *given, last = name_words(name) or [""]
    if not last:
        return set()
    if not given:
        return {last}
    first = given[0]
    if len(first) == 1:
        return {f"{last}|{first}*"}
    terms = {f"{last}|{first}", f"{last}|{first[0]}."}
    if _PARTICLES.issuperset(given[1:]):  # perhaps all of it is the family name: García Márquez, van der Waals
        terms.add(" ".join([*given, last]))
    return terms


def category_terms(category: str) -> list[str]:
    """The filters that a category satisfies: itself and every archive above it (`cs.LG` -> `cs`, `cs.LG`)."""
    parts = category.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def category_query_term(category: str) -> str:
    """`cs.*` and `cs` mean the same: `cs` and all below it."""
    return category.removesuffix(".*")


def day_number(date: str) -> int | None:
    """`2020-05-12` -> 20200512; `2020-05` counts as the first of the month; None without a date."""
    return int(date.replace("-", "").ljust(8, "0")) + (1 if len(date) < len("YYYY-MM-DD") else 0) if date else None


_ARXIV_ID: Final = re.compile(
    r"""(?:(?:https?://)?(?:[\w-]+\.)*arxiv\.org/(?:abs|pdf|html|format|e-print|ps)/
        | (?:(?:https?://)?(?:dx\.)?doi\.org/ | doi:\s*)?10\.48550/arxiv\. | arxiv:\s*)?
        (?P<id>\d{4}\.\d{4,5} | [a-z][a-z-]*(?:\.[a-z]{2})?/\d{7})
        (?P<version>v\d+)?(?:\.pdf)?/?(?:[?#]\S*)?
        (?:\s*\[[\w.-]+\](?:\s+\d+\s[a-z]{3}\s\d{4})?)?  # as the margin of a PDF says it: [cs.CL] 12 Jun 2017""",
    re.IGNORECASE | re.VERBOSE,
)


def arxiv_id_forms(arxiv_id: str) -> list[str]:
    """The forms under which a corpus may hold an id: as given, else of the old style `math.GT/..` as `math/..`."""
    archive, slash, number = arxiv_id.partition("/")
    return list(dict.fromkeys([arxiv_id, f"{archive.lower().partition('.')[0]}/{number}"])) if slash else [arxiv_id]


def arxiv_id_of(query: str) -> str | None:
    """The arXiv id that a query consists of: bare, with `arXiv:`, a version, a category, as an address or a DOI."""
    match = _ARXIV_ID.fullmatch(query.strip())
    return match["id"] if match else None
