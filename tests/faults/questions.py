"""What is asked, and what the answer has to say: computed beforehand, straight from the corpus and without MQTT."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from agent.corpus.sample import SAMPLE_PAPERS
from agent.search import SearchAPI

TITLES: Final = 24
"""Titles of the sample papers that are asked for, beside the questions below."""
MODES: Final = ("hybrid", "semantic", "keyword")
MAX_RESULTS: Final = (1, 3, 5, 10)

FREE: Final = (
    {"query": "how tightly can equal spheres be packed"},
    {"query": "why do cars bunch up on a motorway", "filters": {"category": "nlin.*"}},
    {"query": "training deep networks", "filters": {"category": "cs.*", "published_from": "2015-01-01"}},
    {"query": "dark matter", "filters": {"mode": "keyword", "max_results": 20}, "fields": ["arxiv_id", "score"]},
    {"query": "1603.04246"},
    {"query": "quantum computers", "offset": 5, "filters": {"max_results": 5}},
    {"query": "nobody has ever written about this", "filters": {"author": "Nobody Atall"}},
)


class Question(NamedTuple):
    """A request without its id, and the results that belong to it."""

    request: Mapping[str, Any]
    expected: Sequence[Mapping[str, Any]]

    def payload(self, request_id: str) -> bytes:
        return json.dumps({**self.request, "request_id": request_id}).encode()


def questions(api: SearchAPI) -> list[Question]:
    """Of all modes, with and without filters, each with what `api` finds."""
    titles = [json.loads(line)["title"] for line in SAMPLE_PAPERS.read_text("utf-8").splitlines()[:TITLES]]
    by_title = [
        {"query": title, "filters": {"mode": MODES[n % len(MODES)], "max_results": MAX_RESULTS[n % len(MAX_RESULTS)]}}
        for n, title in enumerate(titles)
    ]
    return [Question(request, _found(api, request)) for request in (*FREE, *by_title)]


def _found(api: SearchAPI, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    # By way of JSON, as an answer comes.
    found: list[dict[str, Any]] = json.loads(json.dumps(api.search_sync(**request)["results"]))
    return found
