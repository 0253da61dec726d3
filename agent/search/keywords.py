"""Full-text search and filters. The only module that imports tantivy.

The index is a cache of papers.db: `reached` says up to which change number it holds the corpus, and following the
changes from there is idempotent (delete, then add).
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import tantivy
from numpy.typing import NDArray
from tantivy import Filter, Occur, Query, Tokenizer

from agent.domain import Filters, Paper
from agent.paths import write_file
from agent.search.text import (
    author_query_terms,
    author_terms,
    category_query_term,
    category_terms,
    day_number,
    plain_tex,
)
from agent.store.papers import Change

SCHEMA_VERSION: Final = 1
WRITER_HEAP_BYTES: Final = 15_000_000
"""tantivy's smallest; its default of 128 MB would not fit a small board."""
MAX_QUERY_TERMS: Final = 256
EARLIEST, LATEST = 0, 99_999_999


class Matches(NamedTuple):
    """Keys and BM25 scores, best first."""

    keys: NDArray[np.int64]
    scores: NDArray[np.float64]


class KeywordIndex:
    """A folder with a tantivy index. One process writes; searches may run in any thread."""

    def __init__(self, folder: Path, *, writable: bool) -> None:
        """Open; start anew where there is none or it is damaged, on disk if `writable`, else empty in memory."""
        self.folder: Final = folder
        self.writable: Final = writable
        self._analyzer: Final = _analyzer()
        self._query_analyzer: Final = _analyzer(stop_words=True)
        self._schema: Final = _schema()
        self.reached = 0
        self._open()

    def _open(self) -> None:
        try:
            reached = _read_reached(self.folder)
            if not tantivy.Index.exists(str(self.folder)):
                raise ValueError("no index")  # noqa: TRY301  opening would quietly make an empty one
            index = tantivy.Index(self._schema, path=str(self.folder))
        except (ValueError, OSError, KeyError, TypeError):
            reached = 0
            if self.writable:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
            index = tantivy.Index(self._schema, path=str(self.folder) if self.writable else None)
        index.register_tokenizer("body", _analyzer())
        self._index = index
        self._searcher = index.searcher()
        self.reached = reached

    # -- writing ----------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change], reached: int) -> None:
        """Follow changes of the corpus and make them searchable. `reached` is remembered after the commit."""
        writer = self._index.writer(heap_size=WRITER_HEAP_BYTES, num_threads=1)
        try:
            for change in changes:
                writer.delete_documents_by_term("arxiv_id", change.arxiv_id)
                if change.paper:
                    writer.add_document(_document(change.number, change.paper))
            writer.commit()
        finally:
            writer.wait_merging_threads()  # releases the writer's lock as well
        write_file(self.folder / "reached.json", json.dumps({"schema": SCHEMA_VERSION, "change": reached}).encode())
        self.reached = reached
        self._index.reload()
        self._searcher = self._index.searcher()

    def reload(self) -> None:
        """See what another process has committed since."""
        with suppress(ValueError, OSError, KeyError, TypeError):
            if _read_reached(self.folder) != self.reached:
                self._open()

    # -- searching --------------------------------------------------------------------------------------------

    def terms(self, text: str) -> list[str]:
        """The distinct index terms of a query, in order, at most MAX_QUERY_TERMS.

        English stop words are left out, unless there is nothing else: they rank nothing and cost half the time.
        """
        text = plain_tex(text)
        found = self._query_analyzer.analyze(text) or self._analyzer.analyze(text)
        return list(dict.fromkeys(found))[:MAX_QUERY_TERMS]

    def search(self, terms: Sequence[str], limit: int, filters: Filters | None = None) -> Matches:
        """The best `limit` papers that hold any of the terms and satisfy the filters."""
        return self._run(self._restricted(self._any_of(terms), filters), limit) if terms else _no_matches()

    def scores(self, terms: Sequence[str], keys: Sequence[int]) -> dict[int, float]:
        """BM25 scores of given papers, equal to what `search` gives them; 0 for those without any of the terms."""
        if not terms or not keys:
            return {}
        query = Query.boolean_query([(Occur.Must, self._among(keys)), (Occur.Should, self._any_of(terms))])
        found = self._run(query, len(keys))
        return dict(zip(found.keys.tolist(), found.scores.tolist(), strict=True))

    def count(self, filters: Filters) -> int:
        """How many papers satisfy the filters."""
        found: Any = self._searcher.search(self._filter_query(filters), limit=1, count=True)
        return int(found.count)

    def matching(self, filters: Filters, limit: int, among: Sequence[int] | None = None) -> NDArray[np.int64]:
        """Keys of papers that satisfy the filters, in no particular order; `among` asks about given keys only."""
        query = self._filter_query(filters)
        if among is not None:
            query = Query.boolean_query([
                (Occur.Must, _unscored(query)),
                (Occur.Must, self._among(among)),
            ])  # fmt: skip
        return self._run(Query.const_score_query(query, 1.0), limit).keys

    def _run(self, query: Any, limit: int) -> Matches:
        # A fresh reference: a reload in another thread must not change the searcher between the two calls.
        searcher = self._searcher
        hits = searcher.search(query, limit=max(limit, 1), count=False).hits
        keys = searcher.fast_field_values("key", [address for _, address in hits])
        return Matches(np.array(keys, np.int64), np.array([score for score, _ in hits], np.float64))

    def _among(self, keys: Sequence[int]) -> Any:
        """Any of the keys, unscored. A union of terms is twice as fast as tantivy's set of terms."""
        return _unscored(
            Query.boolean_query([(Occur.Should, Query.term_query(self._schema, "key", key)) for key in keys])
        )

    def _any_of(self, terms: Sequence[str]) -> Any:
        return Query.boolean_query([(Occur.Should, self._term("body", term, "freq")) for term in terms])

    def _restricted(self, query: Any, filters: Filters | None) -> Any:
        if filters is None or filters.empty:
            return query
        return Query.boolean_query([(Occur.Must, query), (Occur.Must, _unscored(self._filter_query(filters)))])

    def _filter_query(self, filters: Filters) -> Any:
        parts: list[Any] = []
        if filters.categories:
            parts.append(self._one_of("category", {category_query_term(c) for c in filters.categories}))
        if filters.authors:
            parts.append(self._one_of("author", set().union(*map(author_query_terms, filters.authors))))
        if filters.published_from or filters.published_to:
            first = day_number(filters.published_from or "") or EARLIEST
            last = day_number(filters.published_to or "") or LATEST
            parts.append(Query.range_query(self._schema, "published", tantivy.FieldType.Integer, first, last))
        return Query.boolean_query([(Occur.Must, part) for part in parts]) if parts else Query.all_query()

    def _one_of(self, field: str, terms: set[str]) -> Any:
        return Query.boolean_query([(Occur.Should, self._term(field, term, "basic")) for term in sorted(terms)])

    def _term(self, field: str, term: str, index_option: str) -> Any:
        return Query.term_query(self._schema, field, term, index_option=index_option)


def _schema() -> Any:
    builder = tantivy.SchemaBuilder()
    # Signed, since deleting by an unsigned field silently deletes nothing in tantivy-py 0.27.
    builder.add_integer_field("key", indexed=True, fast=True)
    builder.add_text_field("arxiv_id", tokenizer_name="raw", index_option="basic")
    # Title and abstract in one field rank better than two (docs/search.md).
    builder.add_text_field("body", tokenizer_name="body", index_option="freq")
    builder.add_text_field("category", tokenizer_name="raw", index_option="basic")
    builder.add_text_field("author", tokenizer_name="raw", index_option="basic")
    builder.add_integer_field("published", indexed=True, fast=True)
    return builder.build()


def _analyzer(*, stop_words: bool = False) -> Any:
    builder = (
        tantivy.TextAnalyzerBuilder(Tokenizer.simple())
        .filter(Filter.remove_long(40))
        .filter(Filter.lowercase())
        .filter(Filter.ascii_fold())
    )
    if stop_words:
        builder = builder.filter(Filter.stopword("english"))
    return builder.filter(Filter.stemmer("english")).build()


def _document(key: int, paper: Paper) -> Any:
    document = tantivy.Document()
    document.add_integer("key", key)
    document.add_text("arxiv_id", paper.arxiv_id)
    document.add_text("body", plain_tex(paper.text))
    for term in {term for category in paper.categories for term in category_terms(category)}:
        document.add_text("category", term)
    for term in {term for author in paper.authors for term in author_terms(author)}:
        document.add_text("author", term)
    published = day_number(paper.published)
    if published is not None:
        document.add_integer("published", published)
    return document


def _unscored(query: Any) -> Any:
    return Query.boost_query(Query.const_score_query(query, 1.0), 0.0)


def _no_matches() -> Matches:
    return Matches(np.empty(0, np.int64), np.empty(0, np.float64))


def _read_reached(folder: Path) -> int:
    """The change number that the index reaches; raises for no index, a damaged one or one of another schema."""
    state = json.loads((folder / "reached.json").read_bytes())
    if state["schema"] != SCHEMA_VERSION:
        raise ValueError(f"schema {state['schema']}")
    return int(state["change"])
