"""How papers and vectors stand in the rows of papers.db, each with a checksum of its own."""

import json
import zlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.domain import Paper

INSERT_PAPER: Final = "INSERT INTO papers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_names: Final = msgspec.json.Decoder(tuple[str, ...])

Int8Matrix = NDArray[np.int8]
"""Shape (n, dimensions): each vector scaled by its own largest component to +-127."""


class Change(NamedTuple):
    """One step of the corpus: `paper` is None when `arxiv_id` was removed."""

    number: int
    arxiv_id: str
    paper: Paper | None


class PutReport(NamedTuple):
    """What became of a batch. `keys[i]` is the row key of the i-th paper, None where a newer version stood."""

    keys: list[int | None]
    added: int
    updated: int
    unchanged: int
    older: int


class StoredVectors(NamedTuple):
    """A run of vectors in order of arrival; `last_seq` is where the next run continues."""

    keys: NDArray[np.int64]
    matrix: Int8Matrix
    last_seq: int


def row_of(key: int, paper: Paper) -> list[Any]:
    row = [
        key,
        paper.arxiv_id,
        paper.title,
        paper.abstract,
        json.dumps(paper.authors, ensure_ascii=False),
        json.dumps(paper.categories, ensure_ascii=False),
        paper.published,
        paper.updated,
        paper.version,
    ]
    return [*row, row_crc(row)]


def row_crc(row: Sequence[Any]) -> int:
    """CRC-32 of a paper's row, its crc left out: bits may rot on a card, and SQLite does not notice that in a text."""
    return zlib.crc32("\x1f".join(map(str, row)).encode("utf-8", "surrogatepass"))


def blob_crc(blob: bytes) -> int:
    return zlib.crc32(blob)


def is_whole_paper(row: Sequence[Any]) -> bool:
    """Whether a row is as it was written."""
    return bool(row_crc(row[:-1]) == row[-1])


def is_whole_vector(blob: Any, crc: Any) -> bool:
    return isinstance(blob, bytes) and blob_crc(blob) == crc


def paper_of(row: Sequence[Any]) -> Paper:
    _, arxiv_id, title, abstract, authors, categories, published, updated, version, _ = row
    return Paper(
        arxiv_id,
        title,
        abstract,
        _names.decode(authors),
        _names.decode(categories),
        published,
        updated,
        version,
    )


def compare(stored: Paper, given: Paper) -> str:
    """What `given` is beside the stored version: `unchanged`, `older` or `updated`.

    arXiv's version number decides where both have one, else the date of the update; `2020-05` is not older than
    `2020-05-12`. At the same age the one that came last wins, so that a corrected record can be imported again.
    """
    if stored == given:
        return "unchanged"
    if stored.version and given.version and stored.version != given.version:
        return "older" if given.version < stored.version else "updated"
    if given.updated < stored.updated and not stored.updated.startswith(given.updated):
        return "older"
    return "updated"
