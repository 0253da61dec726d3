"""What the Device Shadow may set: a document becomes settings, all of it or nothing."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.config import Config, HealthConfig, LimitsConfig, SearchConfig, load_config
from agent.settings import Settings, _expected, _kinds

BASE = Settings(search=SearchConfig(max_results=7), health=HealthConfig(heartbeat_s=30))
BOTH = {"search": {"max_results": 5, "default_mode": "keyword"}, "logging": {"level": "debug"}}


def test_settings_are_those_of_the_configuration() -> None:
    config = Config(search=SearchConfig(candidates=200), limits=LimitsConfig(max_pending=9, requests_per_minute=60))
    settings = Settings.of(config)
    assert (settings.search, settings.health, settings.logging) == (config.search, config.health, config.logging)
    assert settings.document()["limits"] == {"max_pending": 9, "requests_per_minute": 60}


def test_no_limit_on_requests_is_the_default(tmp_path) -> None:
    assert load_config(environment={}).limits.requests_per_minute == 0


# fmt: off
@pytest.mark.parametrize(("document", "changed"), [
    pytest.param(None, {}, id="no wishes"),
    pytest.param({}, {}, id="an empty document"),
    pytest.param({"search": {}}, {}, id="an empty section"),
    pytest.param({"search": None, "limits": {"max_pending": None}}, {}, id="null is as if it were not there"),
    pytest.param({"search": {"max_results": 5}}, {"search": {"max_results": 5}}, id="one key"),
    pytest.param({"search": {"semantic_weight": 1}}, {"search": {"semantic_weight": 1.0}}, id="a whole number where a number is due"),
    pytest.param(BOTH, BOTH, id="several sections"),
    pytest.param({"health": {"heartbeat_s": 0x10}, "limits": {"requests_per_minute": 100_000}}, {"health": {"heartbeat_s": 16.0}, "limits": {"requests_per_minute": 100_000}}, id="the end of a range"),
])
# fmt: on
def test_wishes_stand_on_top_of_the_configuration(document, changed) -> None:
    merged = BASE.merged(document)
    assert (merged.errors, merged.ignored) == ((), ())
    expected = {name: values | changed.get(name, {}) for name, values in BASE.document().items()}
    assert merged.settings.document() == expected


# fmt: off
@pytest.mark.parametrize(("document", "errors"), [
    pytest.param({"search": {"max_results": 0}}, {"settings.search.max_results": "must be a whole number from 1 to 100"}, id="below the range"),
    pytest.param({"search": {"max_results": "5"}}, {"settings.search.max_results": "must be a whole number from 1 to 100"}, id="a text"),
    pytest.param({"search": {"max_results": True}}, {"settings.search.max_results": "must be a whole number from 1 to 100"}, id="true is no number"),
    pytest.param({"search": {"max_results": 5.5}}, {"settings.search.max_results": "must be a whole number from 1 to 100"}, id="no whole number"),
    pytest.param({"search": {"semantic_weight": 1.01}}, {"settings.search.semantic_weight": "must be a number from 0 to 1"}, id="above the range"),
    pytest.param({"search": {"semantic_weight": float("nan")}}, {"settings.search.semantic_weight": "must be a number from 0 to 1"}, id="not a number"),
    pytest.param({"health": {"heartbeat_s": 10**400}}, {"settings.health.heartbeat_s": "must be a number from 1 to 3600"}, id="a number beyond all measure"),
    pytest.param({"search": {"default_mode": "psychic"}}, {"settings.search.default_mode": "must be one of hybrid, semantic, keyword"}, id="none of the choices"),
    pytest.param({"logging": {"level": ["debug"]}}, {"settings.logging.level": "must be one of debug, info, warning, error"}, id="an array"),
    pytest.param({"search": 5, "limits": []}, dict.fromkeys(["settings.search", "settings.limits"], "must be an object with keys below it"), id="sections that are no objects"),
    pytest.param("fast, please", {"settings": "must be an object with keys below it"}, id="no object at all"),
    pytest.param({"search": {"candidates": 99, "max_results": 5}, "limits": {"max_pending": 257}}, {"settings.search.candidates": "must be a whole number from 100 to 1000", "settings.limits.max_pending": "must be a whole number from 1 to 256"}, id="every bad key is named, and the good one changes nothing"),
])
# fmt: on
def test_one_bad_value_and_nothing_changes(document, errors) -> None:
    merged = BASE.merged(document)
    assert merged.settings == BASE
    assert {error.path: error.reason for error in merged.errors} == errors


def test_an_error_says_what_was_wanted() -> None:
    assert [error.value for error in BASE.merged({"search": {"max_results": {"a": 1}}}).errors] == [{"a": 1}]


def test_what_this_version_does_not_know_is_ignored_by_name_and_stops_nothing() -> None:
    merged = BASE.merged({"search": {"max_results": 5, "depth": 3}, "later": {"max_bytes": 1}, "limits": {"workers": 2}})
    assert merged.settings.search.max_results == 5
    assert set(merged.ignored) == {"settings.search.depth", "settings.later", "settings.limits.workers"}


def test_a_key_that_is_removed_returns_to_the_configuration() -> None:
    assert BASE.merged(BOTH).settings.search.max_results == 5
    assert BASE.merged({"logging": BOTH["logging"]}).settings.search == BASE.search


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["debug", "keyword"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
sections = st.dictionaries(
    st.sampled_from(["search", "limits", "health", "logging", "x"]),
    st.dictionaries(st.sampled_from([key for keys in _kinds().values() for key in keys] + ["x"]), json_values) | json_values,
)


@given(sections | json_values)
@example({"search": {"max_results": 10**5000}})
def test_any_json_value_gives_valid_settings_or_errors_and_never_an_exception(document: Any) -> None:
    merged = BASE.merged(document)
    assert merged.settings.merged(merged.settings.document()).errors == ()
    if merged.errors:
        assert merged.settings == BASE
        assert all(error.path.startswith("settings") and error.reason for error in merged.errors)


def test_every_key_has_words_for_what_it_may_hold() -> None:
    assert all(_expected(kind) for keys in _kinds().values() for kind in keys.values())
