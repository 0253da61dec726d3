"""What a pack holds, as one hash: the same on any machine and with any version of the libraries.

Over each paper in the order of arXiv ids (of their UTF-8 bytes): its fields and its vector, each with its length before
it, so that no two corpora look alike.
"""

import hashlib
import struct
from typing import Final

from agent.domain import Paper

_LENGTH: Final = struct.Struct("<I")
_VERSION: Final = struct.Struct("<Q")
HEAD: Final = "arxplorer contents 1"


class Contents:
    """The hash of papers and vectors of one model, as they are added one by one in order; counts them too."""

    def __init__(self, model: str, dimensions: int) -> None:
        self.papers = 0
        self.embedded = 0
        self._hash = hashlib.sha256(_texts(HEAD, model, str(dimensions)))

    def add(self, paper: Paper, vector: bytes | None) -> None:
        self.papers += 1
        self.embedded += vector is not None
        single = _texts(paper.arxiv_id, paper.title, paper.abstract, paper.published, paper.updated)
        several = _texts(*paper.authors), _texts(*paper.categories)
        blob = vector or b""
        self._hash.update(
            b"".join((single, *several, _VERSION.pack(paper.version), _LENGTH.pack(len(blob)), blob)),
        )

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _texts(*texts: str) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(
        [_LENGTH.pack(len(encoded)), *(part for text in encoded for part in (_LENGTH.pack(len(text)), text))]
    )
