"""Full-text search and filters. The only module that imports tantivy.

The index is a cache of papers.db: `reached` says up to which change number it holds the corpus, and following the
changes from there is idempotent (delete, then add).
"""

import json
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import tantivy
from numpy.typing import NDArray
from tantivy import Filter, Occur, Query, Tokenizer

from agent.crash_points import crash_point
from agent.domain import Filters, Paper
from agent.errors import DamagedIndexError
from agent.paths import scratch_folder
from agent.search.native import damage_of
from agent.search.state import read_state, write_state
from agent.search.text import (
    author_query_terms,
    author_terms,
    category_query_term,
    category_terms,
    day_number,
    plain_tex,
)
from agent.store.rows import Change

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 2
WRITER_HEAP_BYTES: Final = 15_000_000
"""tantivy's smallest; its default of 128 MB would not fit a small board."""
MAX_QUERY_TERMS: Final = 256
MEMORABLE_ROWS: Final = 100_000
"""Of a filter that lets at most so many papers through, their keys are remembered."""
MEMORABLE_VALUES: Final = 16
"""A filter with more categories and authors is not remembered: it is long itself."""
REMEMBERED_FILTERS: Final = 64
REMEMBERED_ROWS: Final = 400_000
"""So many keys are remembered for all filters together (3 MB)."""
STATE: Final = "reached.json"
SEGMENT_FILES: Final = frozenset((".fast", ".fieldnorm", ".idx", ".pos", ".store", ".term"))
FOOTER_MAGIC: Final = 1337
EARLIEST, LATEST = 0, 99_999_999


Keys = NDArray[np.int64]


class Matches(NamedTuple):
    """Keys and BM25 scores, best first."""

    keys: Keys
    scores: NDArray[np.float64]


class KeywordIndex:
    """A folder with a tantivy index. One process writes; searches may run in any thread."""

    def __init__(
        self, folder: Path, corpus: str, last_change: Callable[[], int], *, writable: bool, check: bool
    ) -> None:
        """Open the index of this `corpus`; start anew where there is none or it is damaged.

        (On disk if `writable`, else empty in memory.) One that reaches beyond `last_change` is of another state of
        the corpus. With `check` every byte is read first, as after a crash.
        """
        self.folder: Final = folder
        self.writable: Final = writable
        self._corpus: Final = corpus
        self._last_change = last_change
        self._analyzer: Final = _analyzer()
        self._query_analyzer: Final = _analyzer(stop_words=True)
        self._schema: Final = _schema()
        self._allowed: dict[Filters, tuple[Any, Keys]] = {}
        self._open(check=check)

    def _open(self, *, check: bool = False) -> None:
        try:
            with damage_of("keywords"):
                self._use(self._existing(check=check), read_state(self.folder / STATE)["change"])
        except DamagedIndexError as error:
            if (self.folder / STATE).exists():
                log.warning("%s; it is made anew", error.message)
            self._start_anew()

    def _existing(self, *, check: bool) -> Any:
        state = read_state(self.folder / STATE)
        known = (state["schema"], state["corpus"]) == (SCHEMA_VERSION, self._corpus)
        if not known or state["change"] > self._last_change():
            raise ValueError("an index of another schema or corpus")
        if not tantivy.Index.exists(str(self.folder)):
            raise ValueError("no index")  # opening would quietly make an empty one
        if self.writable:
            _sweep(self.folder)
        if check and (problem := next(self.problems(), None)):
            raise ValueError(problem)
        return self._index_in(self.folder)

    def _index_in(self, folder: Path) -> Any:
        if os.access(folder, os.W_OK):
            return tantivy.Index(self._schema, path=str(folder))
        with scratch_folder() as scratch:  # tantivy locks a folder to open what is in it, also to read
            for path in folder.iterdir():
                if path.suffix != ".lock":
                    (Path(scratch) / path.name).symlink_to(path.absolute())
            return tantivy.Index(self._schema, path=scratch)

    def problems(self) -> Iterator[str]:
        """What is wrong with the files, in words. Reads all of them."""
        # Between a commit and its state file the index holds more than it says: how many documents is not asked.
        return problems_of(self.folder, self._corpus, self._last_change(), papers=-1)

    def _start_anew(self) -> None:
        if self.writable:
            # Moved away first: a thread of the index that is given up may still be making files in its folder.
            aside = self.folder.with_name(f".{self.folder.name}.dropped")
            shutil.rmtree(aside, ignore_errors=True)
            if self.folder.exists():
                self.folder.rename(aside)
                crash_point("keywords.start_anew:moved-away")
            self.folder.mkdir(parents=True, exist_ok=True)
            crash_point("keywords.start_anew:empty-folder")
            shutil.rmtree(aside, ignore_errors=True)
        self._use(tantivy.Index(self._schema, path=str(self.folder) if self.writable else None), 0)

    def _use(self, index: Any, reached: int) -> None:
        index.register_tokenizer("body", _analyzer())
        self._allowed.clear()  # it would keep the files of the former index mapped
        self._searcher = index.searcher()
        self._index, self.reached = index, reached
        self._share()

    def _share(self) -> None:
        """Give what tantivy keeps for its owner alone the rights that its folder has."""
        if self.writable:
            for name in ("meta.json", ".managed.json"):
                with suppress(OSError):
                    (self.folder / name).chmod(self.folder.stat().st_mode & 0o666)

    def drop(self) -> None:
        """Forget everything, to be filled anew."""
        self._start_anew()

    # -- writing ----------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change], reached: int, *, heap_bytes: int = WRITER_HEAP_BYTES) -> None:
        """Follow changes of the corpus and make them searchable. `reached` is remembered after the commit."""
        with damage_of("keywords"):
            writer = self._index.writer(heap_size=heap_bytes, num_threads=1)
            try:
                for change in changes:
                    writer.delete_documents_by_term("arxiv_id", change.arxiv_id)
                    if change.paper:
                        writer.add_document(_document(change.number, change.paper))
                crash_point("keywords.apply:before-commit")
                writer.commit()
                crash_point("keywords.apply:before-merge")
            finally:
                writer.wait_merging_threads()  # releases the writer's lock as well
                self._share()
        state = {"schema": SCHEMA_VERSION, "corpus": self._corpus, "change": reached}
        crash_point("keywords.apply:before-state")
        write_state(self.folder / STATE, state)
        with damage_of("keywords"):
            self._index.reload()
            self._allowed.clear()
            self._searcher = self._index.searcher()
        self.reached = reached

    def reload(self) -> None:
        """See what another process has committed since."""
        with suppress(ValueError, OSError, KeyError, TypeError):
            if read_state(self.folder / STATE)["change"] != self.reached:
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
        known = self._known(filters)
        if known is not None:
            return len(known)
        with damage_of("keywords"):
            found: Any = self._searcher.search(self._filter_query(filters), limit=1, count=True)
            return int(found.count)

    def allowed(self, filters: Filters, count: int) -> Keys:
        """Keys of all the `count` papers that satisfy the filters, rising; the last such sets are remembered."""
        known = self._known(filters)
        if known is None:
            state = self._searcher
            with damage_of("keywords"):
                query = Query.const_score_query(self._filter_query(filters), 1.0)
                hits = state.search(query, limit=max(count, 1), count=False, order_by_field="key").hits
            known = np.sort(np.fromiter((key for key, _ in hits), np.int64, len(hits)))
            if len(known) <= MEMORABLE_ROWS and len(filters.categories) + len(filters.authors) <= MEMORABLE_VALUES:
                self._allowed[filters] = (state, known)
                while (
                    len(self._allowed) > REMEMBERED_FILTERS
                    or sum(len(keys) for _, keys in list(self._allowed.values())) > REMEMBERED_ROWS
                ):
                    # A list, since another thread may be adding to the dictionary.
                    self._allowed.pop(list(self._allowed)[0], None)  # noqa: RUF015
        return known

    def _remembered_rows(self) -> int:
        return sum(len(keys) for _, keys in list(self._allowed.values()))

    def passing(self, filters: Filters, keys: Keys) -> Keys:
        """Those of `keys` that satisfy the filters, in no particular order; quick where `allowed` is remembered."""
        allowed = self._known(filters)
        if allowed is not None:
            at = np.minimum(np.searchsorted(allowed, keys), max(len(allowed) - 1, 0))
            return keys[allowed[at] == keys] if len(allowed) else keys[:0]
        query = [(Occur.Must, _unscored(self._filter_query(filters))), (Occur.Must, self._among(keys.tolist()))]
        return self._run(Query.const_score_query(Query.boolean_query(query), 1.0), len(keys)).keys

    def _known(self, filters: Filters) -> Keys | None:
        remembered = self._allowed.get(filters)
        return remembered[1] if remembered and remembered[0] is self._searcher else None

    def _run(self, query: Any, limit: int) -> Matches:
        # A fresh reference: a reload in another thread must not change the searcher between the two calls.
        searcher = self._searcher
        with damage_of("keywords"):
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


def problems_of(folder: Path, corpus: str, last_change: int, papers: int) -> Iterator[str]:
    """What is wrong with the files of an index of this corpus, in words. Reads all of them.

    tantivy ends each file with a footer (a JSON object, its length, a magic number) that holds the CRC-32 of what
    comes before (directory/footer.rs of tantivy 0.27), but does not look at it when it opens an index.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (last_change or (folder / STATE).exists()):
        return  # of a corpus that never held a paper nothing was ever committed
    try:
        state = read_state(folder / STATE)
        segments = json.loads((folder / "meta.json").read_bytes())["segments"]
        wanted = {segment["segment_id"].replace("-", "") for segment in segments}
        deleted = [segment["deletes"]["num_deleted_docs"] if segment["deletes"] else 0 for segment in segments]
        documents = sum(segment["max_doc"] for segment in segments) - sum(deleted)
        foreign = state["corpus"] != corpus or state["change"] > last_change
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{folder.name}: {STATE} or meta.json is not readable: {error!r}"
        return
    if foreign:
        yield f"{folder.name}/{STATE}: of another corpus, or of another state of this one"
    elif papers >= 0 and state["change"] == last_change and documents != papers:
        yield f"{folder.name}/meta.json: {documents} documents, expected {papers}"
    found = {path for path in folder.iterdir() if path.name.split(".")[0] in wanted}
    for segment in sorted(wanted):
        missing = SEGMENT_FILES - {path.suffix for path in found if path.stem == segment}
        if missing:
            yield f"{folder.name}: segment {segment} lacks its files {', '.join(sorted(missing))}"
    for path in sorted(found):
        if not _matches_footer(path.read_bytes()):
            yield f"{folder.name}/{path.name}: damaged: its checksum does not match"


def _sweep(folder: Path) -> None:
    """Delete what a process that was killed while it committed has left, and tantivy itself does not know.

    Files under a passing name; lists of deleted documents that no commit names, beside which tantivy then fails to
    write the next of the same name.
    """
    segments = json.loads((folder / "meta.json").read_bytes())["segments"]
    named = {f"{s['segment_id'].replace('-', '')}.{s['deletes']['opstamp']}.del" for s in segments if s["deletes"]}
    for path in (*folder.glob("*.del"), *folder.glob(".tmp*")):
        if path.name not in named:
            path.unlink(missing_ok=True)


def _matches_footer(content: bytes) -> bool:
    try:
        length, magic = struct.unpack("<II", content[-8:])
        crc = json.loads(content[-8 - length : -8])["crc"]
    except (struct.error, ValueError, KeyError, TypeError):
        return False
    return bool(magic == FOOTER_MAGIC and zlib.crc32(memoryview(content)[: -8 - length]) == crc)
