"""Which papers of a corpus a pack holds. Pure: the same rows in the same order make the same choice."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from agent.domain import Paper
from agent.protocol.pack_manifest import Selection
from agent.search.text import category_query_term, category_terms, day_number

UNDATED: Final = 0
"""Counts as older than anything."""


class Chosen:
    """A selection applied to one corpus.

    A category means what it means to a search: `cs.*` and `cs` all below `cs`. `published_from` leaves papers without a
    date out. `limit` takes the newest by `published`, of one day those with the greatest arXiv ids. Papers must come in
    the order of their arXiv ids.
    """

    def __init__(self, selection: Selection, facts: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """`facts` gives categories (a JSON list) and `published` of every paper; asked only where there is a limit."""
        self.selection: Final = selection
        self._wanted: Final = {category_query_term(name) for name in selection.categories}
        self._first: Final = day_number(selection.published_from or "")
        self._last_day, self._passed_over = UNDATED - 1, 0
        if selection.limit is not None:
            self._cut(selection.limit, facts())

    def _cut(self, limit: int, facts: Iterable[tuple[str, str]]) -> None:
        """Find the day down to which all are taken, and how many of that day are not."""
        days: Counter[int] = Counter()
        for categories, published in facts:
            if self._fits(json.loads(categories) if self._wanted else (), published):
                days[day_number(published) or UNDATED] += 1
        for day in sorted(days, reverse=True):
            if days[day] >= limit:
                self._last_day, self._passed_over = day, days[day] - limit
                return
            limit -= days[day]

    def _fits(self, categories: Sequence[str], published: str) -> bool:
        if self._first is not None and (day_number(published) or UNDATED) < self._first:
            return False
        return not self._wanted or any(not self._wanted.isdisjoint(category_terms(name)) for name in categories)

    def of(self, rows: Iterator[tuple[Paper, bytes | None]]) -> Iterator[tuple[Paper, bytes | None]]:
        """Those that are chosen, with their vectors."""
        passed_over = self._passed_over
        for paper, vector in rows:
            if not self._fits(paper.categories, paper.published):
                continue
            day = day_number(paper.published) or UNDATED
            if day < self._last_day:
                continue
            if day == self._last_day and passed_over:
                passed_over -= 1
                continue
            yield paper, vector
