"""The shadow document: wishes taken apart, and reports held against the rules of the service. No network."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.local_cloud import shadow as service
from agent.local_cloud.shadow import Shadow
from agent.protocol import shadow_document
from agent.protocol.limits import IOT_CORE
from agent.protocol.shadow_document import Desired, Report, changes, fitting, settled, size, split
from agent.settings import Outcome, SettingError, Settings

APPLIED = Outcome("applied", 3, Settings())


def rejected(*errors: SettingError, version: int = 3) -> Outcome:
    return Outcome("rejected", version, Settings(), errors)


def report(outcome: Outcome = APPLIED, **rest: Any) -> dict[str, Any]:
    return next(Report(outcome, **{"targets": {}, "agent": {"version": "1"}, **rest}).documents())


# fmt: off
@pytest.mark.parametrize(("desired", "parts"), [
    (None, Desired(None, None, ())),
    ([], Desired(None, None, ())),
    ({}, Desired(None, None, ())),
    ({"settings": {"a": 1}}, Desired({"a": 1}, None, ())),
    ({"settings": 5, "targets": "x"}, Desired(5, "x", ())),
    ({"targets": {"corpus": {}, "model": 1, "firmware": 2}, "colour": "red"}, Desired(None, {"corpus": {}, "model": 1, "firmware": 2}, ("colour", "targets.firmware"))),
])
# fmt: on
def test_wishes_are_settings_and_targets_and_what_is_neither_is_named(desired, parts) -> None:
    assert split(desired) == parts


def test_a_report_says_what_is_in_effect_and_what_became_of_the_document() -> None:
    outcome = Outcome("applied", 3, Settings(), ignored=("settings.x",))
    said = report(outcome, targets={"model": {"name": "m", "state": "current", "error": None}}, ignored=("colour",))
    assert said == {
        "settings": Settings().document(),
        "config": {"document_version": 3, "status": "applied", "ignored": ["colour", "settings.x"]},
        "targets": {"model": {"name": "m", "state": "current"}},
        "agent": {"version": "1"},
    }


def test_a_rejection_names_path_value_and_reason() -> None:
    said = report(rejected(SettingError("settings.search.max_results", 0, "must be more")))["config"]
    assert said["status"] == "rejected"
    assert said["errors"] == [{"path": "settings.search.max_results", "value": 0, "reason": "must be more"}]


# fmt: off
@pytest.mark.parametrize(("value", "shown"), [
    ("x" * 500, "x" * 118 + ".."),
    ({"a": [1, None]}, '{"a": [1, null]}'),
    (None, "null"),
    (True, True),
    (1.5, 1.5),
    (float("nan"), "NaN"),
    (2**60, str(2**60)),
    pytest.param(10**5000, "a value that is too large to show", id="5,000 digits"),
    ("\ud800", "?"),
    ("", ""),
])
# fmt: on
def test_a_bad_value_is_shown_in_short(value, shown) -> None:
    assert report(rejected(SettingError("settings", value, "no")))["config"]["errors"][0]["value"] == shown


def test_many_errors_are_counted_where_they_are_not_listed() -> None:
    outcome = rejected(*(SettingError(f"settings.{n}", n, "no") for n in range(25)))
    said = report(outcome, ignored=tuple(f"x{n}" for n in range(12)))["config"]
    assert [error["path"] for error in said["errors"]] == [*(f"settings.{n}" for n in range(10)), "settings"]
    assert said["errors"][-1]["reason"].startswith("and 15 more")
    assert said["ignored"][-1] == "and 2 more"


ERRORS = [SettingError("settings." + "ü" * 300, "ü" * 300, "must be better") for _ in range(20)]


@pytest.mark.parametrize("room", [8_000, 3_000, 700, 250])
def test_a_report_fits_beside_the_wishes(room: int) -> None:
    desired = {"settings": "x" * (IOT_CORE.shadow_bytes - room)}
    agent, targets = {"version": "1"}, {"model": {"name": "m", "error": "long " * 100}}
    documents = Report(rejected(*ERRORS), targets, agent, ("y" * 300,) * 20).documents()
    document = fitting(documents, desired)
    state = service.update(Shadow(), _request(desired=desired, reported=document), 0).shadow.state
    assert size(**state) <= IOT_CORE.shadow_bytes
    assert state["reported"]["config"]["status"] == "rejected"


def test_where_there_is_no_room_at_all_nothing_is_said() -> None:
    assert fitting(Report(APPLIED, {}, {}).documents(), {"settings": "x" * 8_150}) is None


def test_the_version_of_a_rejected_document_is_not_said_anew() -> None:
    """The agent has started again, and found the same wishes in a document that only its own report made newer."""
    bad = SettingError("settings.search", 5, "no")
    held = report(rejected(bad))
    assert changes(held, settled(report(rejected(bad, version=4)), held)) == {}
    other = SettingError("settings.search", 6, "no")
    assert changes(held, settled(report(rejected(other, version=4)), held))["config"]["document_version"] == 4
    assert settled(report(rejected(bad, version=2)), held)["config"]["document_version"] == 2
    assert settled(report(), {"config": 5}) == settled(report(), None) == report()


json_values = st.recursive(
    st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["", "x", "ü"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
held_documents = st.dictionaries(st.sampled_from(["settings", "config", "targets", "agent", "mine"]), json_values)
errors = st.lists(st.builds(SettingError, st.text(), json_values | st.none() | st.floats(), st.text(min_size=1)), max_size=12)


def _request(**state: Any) -> bytes:
    return json.dumps({"state": state}).encode()


def _shadow(reported: Any) -> Shadow:
    return service.update(Shadow(), _request(desired={"a": 1}, reported=reported), 0).shadow


@given(held_documents, errors, held_documents, st.lists(st.text(), max_size=3))
def test_sending_what_differs_makes_the_service_hold_exactly_the_report(held, found, targets, ignored) -> None:
    shadow = _shadow(held)
    for document in Report(rejected(*found), targets, {"version": "1"}, tuple(ignored)).documents():
        sent = changes(shadow.state.get("reported"), document)
        if sent:
            shadow = service.update(shadow, _request(reported=sent), 0).shadow
        assert service.difference(document, shadow.state["reported"]) == {}
        assert service.difference(shadow.state["reported"], document) == {}
        assert changes(shadow.state["reported"], document) == {}
        assert shadow.delta == {"a": 1}


@given(json_values | st.none(), json_values)
def test_no_document_that_a_service_may_hold_is_an_exception(desired: Any, held: Any) -> None:
    parts = split(desired)
    merged = Settings().merged(parts.settings)
    outcome = Outcome("rejected" if merged.errors else "applied", 1, merged.settings, merged.errors, merged.ignored)
    document = settled(report(outcome, ignored=parts.ignored), held)
    assert changes(held, document) == {} or json.dumps(changes(held, document))


def test_the_levels_of_a_report_are_within_the_services_limit() -> None:
    outcome = rejected(SettingError("settings", {"a": {"b": {"c": {"d": {"e": 1}}}}}, "no"))
    service.update(Shadow(), _request(reported=report(outcome, targets={"corpus": {"state": "failed"}})), 0)


def test_only_what_differs_is_sent() -> None:
    held = report()
    assert changes(held, report(Outcome("applied", 4, Settings()))) == {"config": {"document_version": 4}}
    assert changes(held | {"mine": 1, "agent": {"version": "0", "old": 1}}, held) == {
        "mine": None,
        "agent": {"version": "1", "old": None},
    }
    assert shadow_document.same(1, 1.0)
    assert not shadow_document.same([True], [1])
