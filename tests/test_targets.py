"""Targets of the shadow: what is wished for of corpus and model, and what is reported of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.targets import NAME_EXPECTED, Progress, Wish, parse_targets, reported_targets

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


# fmt: off
@pytest.mark.parametrize(("document", "wish", "errors"), [
    (None, Wish(), {}),
    ({"corpus": None, "model": None}, Wish(), {}),
    ({"corpus": {}}, Wish(), {}),
    ({"corpus": {"channel": "beta", "version": "2026.11-1", "categories": ["cs.*", "math"]}}, Wish(channel="beta", version="2026.11-1", categories=("cs.*", "math")), {}),
    ({"corpus": {"version": None, "colour": 1}, "model": {"name": "m"}, "firmware": 2}, Wish(model="m"), {}),
    ({"corpus": 5}, Wish(), {"corpus": "targets.corpus: must be an object with channel or version or categories"}),
    ({"corpus": {"version": 7}, "model": {"name": "m"}}, Wish(model="m"), {"corpus": f"targets.corpus.version: {NAME_EXPECTED}"}),
    ({"corpus": {"channel": "../x"}}, Wish(), {"corpus": f"targets.corpus.channel: {NAME_EXPECTED}"}),
    ({"corpus": {"categories": "cs"}}, Wish(), {"corpus": "targets.corpus.categories: must be a list of category names"}),
    ({"corpus": {"categories": [1]}}, Wish(), {"corpus": "targets.corpus.categories: must be a list of category names"}),
    ({"model": {}}, Wish(), {"model": "targets.model.name: is missing"}),
    ({"model": {"name": ["m"]}}, Wish(), {"model": f"targets.model.name: {NAME_EXPECTED}"}),
])
# fmt: on
def test_a_target_is_taken_as_a_whole_or_refused_with_what_would_be_right(document, wish, errors) -> None:
    targets = parse_targets(document)
    assert (targets.wish, targets.errors) == (wish, errors)


@given(JSON)
def test_no_document_stops_the_agent_and_each_target_that_is_spoken_of_is_reported(document) -> None:
    targets = parse_targets(document)
    reported = reported_targets(targets, Progress(), model=None, corpus_version="local+0")
    spoken_of = document if isinstance(document, dict) else {}
    assert set(reported) == {target for target in ("corpus", "model") if spoken_of.get(target) is not None}
    assert all(told["state"] in {"current", "failed"} for told in reported.values())


def test_a_model_in_use_is_current_whatever_becomes_of_the_corpus() -> None:
    targets = parse_targets({"corpus": {"version": "2"}, "model": {"name": "m"}})
    progress = Progress(state="downloading", part=0.25)
    told = reported_targets(targets, progress, model="m", corpus_version="1+5")
    assert told["corpus"] == {"version": "1+5", "state": "downloading", "progress": 0.25, "error": None}
    assert told["model"] == {"name": "m", "state": "current", "progress": None, "error": None}
    assert reported_targets(targets, progress, model="n", corpus_version="1+5")["model"]["state"] == "downloading"
