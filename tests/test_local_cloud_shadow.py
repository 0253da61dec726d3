"""Device Shadow documents: AWS's documented rules, a case a line. No network."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.local_cloud import shadow as rules
from agent.local_cloud.shadow import Shadow, ShadowError
from agent.local_cloud.shadow_service import Address, parse_topic
from agent.protocol.limits import IOT_CORE

NOW = 1_700_000_000


def desired(**fields: Any) -> dict[str, Any]:
    return {"state": {"desired": fields}}


def reported(**fields: Any) -> dict[str, Any]:
    return {"state": {"reported": fields}}


def after(*requests: dict[str, Any]) -> Shadow:
    """A shadow after these updates, each a second later than the one before."""
    shadow = Shadow()
    for number, request in enumerate(requests):
        shadow = rules.update(shadow, json.dumps(request).encode(), NOW + number).shadow
    return shadow


def told(shadow: Shadow, request: dict[str, Any]) -> dict[str, Any]:
    return rules.update(shadow, json.dumps(request).encode(), NOW).messages


# fmt: off
UPDATES = [
    pytest.param([desired(a=1)], {"desired": {"a": 1}}, id="a first update makes the shadow"),
    pytest.param([desired(a=1), desired(b=2)], {"desired": {"a": 1, "b": 2}}, id="fields that are not named stay"),
    pytest.param([desired(a=1), desired(a=2)], {"desired": {"a": 2}}, id="a value replaces a value"),
    pytest.param([desired(a=1), reported(a=1)], {"desired": {"a": 1}, "reported": {"a": 1}}, id="sections do not touch each other"),
    pytest.param([{"state": {"desired": {"a": 1}, "reported": {"b": 2}}}], {"desired": {"a": 1}, "reported": {"b": 2}}, id="both sections in one request"),
    pytest.param([desired(a={"x": 1}), desired(a={"y": 2})], {"desired": {"a": {"x": 1, "y": 2}}}, id="objects are merged"),
    pytest.param([desired(a={"x": {"p": 1}}), desired(a={"x": {"q": 2}})], {"desired": {"a": {"x": {"p": 1, "q": 2}}}}, id="objects are merged all the way down"),
    pytest.param([desired(a={"x": 1}), desired(a=3)], {"desired": {"a": 3}}, id="a value replaces an object"),
    pytest.param([desired(a=3), desired(a={"x": 1})], {"desired": {"a": {"x": 1}}}, id="an object replaces a value"),
    pytest.param([desired(a=[1, 2, 3]), desired(a=[4])], {"desired": {"a": [4]}}, id="an array is replaced as a whole"),
    pytest.param([desired(a=[{"x": 1}]), desired(a=[{"y": 2}])], {"desired": {"a": [{"y": 2}]}}, id="objects in an array are not merged"),
    pytest.param([desired(a=1, b=2), desired(a=None)], {"desired": {"b": 2}}, id="null removes a field"),
    pytest.param([desired(a={"x": 1, "y": 2}), desired(a={"x": None})], {"desired": {"a": {"y": 2}}}, id="null removes a nested field"),
    pytest.param([desired(a={"x": 1}), desired(a=None)], {}, id="null removes an object, and a section that is empty goes"),
    pytest.param([desired(a=None)], {}, id="null for what is not there is nothing"),
    pytest.param([desired(a={"x": None, "y": 1})], {"desired": {"a": {"y": 1}}}, id="null in a new object is not stored"),
    pytest.param([desired(a=1), reported(b=2), {"state": {"desired": None}}], {"reported": {"b": 2}}, id="null removes a section"),
    pytest.param([desired(a=1), {"state": {"desired": None, "reported": {"c": 3}}}], {"reported": {"c": 3}}, id="one section removed and another updated"),
    pytest.param([desired(a=1), reported(b=2), {"state": None}], {}, id="null for the whole state empties the shadow"),
    pytest.param([desired(a=1), {"state": {}}], {"desired": {"a": 1}}, id="an empty state changes nothing"),
    pytest.param([desired(a=True, b="ü", c=1.5, d=[])], {"desired": {"a": True, "b": "ü", "c": 1.5, "d": []}}, id="every kind of JSON value"),
    pytest.param([desired(a={"b": {"c": {"d": {"e": 1}}}})], {"desired": {"a": {"b": {"c": {"d": {"e": 1}}}}}}, id="five levels of fields"),
]
# fmt: on


@pytest.mark.parametrize(("updates", "state"), UPDATES)
def test_an_update_is_merged_into_the_state(updates, state) -> None:
    shadow = after(*updates)
    assert (shadow.state, shadow.version) == (state, len(updates))


# fmt: off
DELTAS = [
    pytest.param([desired(a=1)], {"a": 1}, id="a field missing in reported"),
    pytest.param([desired(a=1), reported(a=1)], None, id="nothing when both are equal"),
    pytest.param([desired(a=1), reported(a=2)], {"a": 1}, id="the desired value of what differs"),
    pytest.param([reported(a=1)], None, id="fields only in reported never appear"),
    pytest.param([desired(a=1, b=2), reported(b=2, c=3)], {"a": 1}, id="only what differs"),
    pytest.param([desired(a={"x": 1, "y": 2}), reported(a={"x": 1, "y": 3})], {"a": {"y": 2}}, id="the path to a nested difference is kept"),
    pytest.param([desired(a={"x": 1}), reported(a=5)], {"a": {"x": 1}}, id="an object against a value"),
    pytest.param([desired(a=5), reported(a={"x": 1})], {"a": 5}, id="a value against an object"),
    pytest.param([desired(a=[1, 2]), reported(a=[1, 3])], {"a": [1, 2]}, id="an array as a whole"),
    pytest.param([desired(a=[1, 2]), reported(a=[2, 1])], {"a": [1, 2]}, id="order counts in an array"),
    pytest.param([desired(a=[{"x": 1}]), reported(a=[{"x": 1}])], None, id="equal arrays of objects"),
    pytest.param([desired(a=True), reported(a=1)], {"a": True}, id="true is not 1"),
    pytest.param([desired(a=1), reported(a=1.0)], None, id="1 is 1.0"),
    pytest.param([desired(a="1"), reported(a=1)], {"a": "1"}, id="a text is no number"),
    pytest.param([desired(a=1), desired(a=None)], None, id="a removed field sends no delta"),
    pytest.param([desired(a=1, b=2), reported(b=1)], {"a": 1, "b": 2}, id="a report that leaves a difference is answered by it"),
]
# fmt: on


@pytest.mark.parametrize(("updates", "delta"), DELTAS)
def test_the_delta_holds_what_is_desired_and_not_reported_so(updates, delta) -> None:
    messages = told(after(*updates[:-1]), updates[-1])
    assert messages.get("delta", {}).get("state") == delta
    state = rules.get(after(*updates), b"", "t", NOW).messages["accepted"]["state"]
    assert state.get("delta") == delta


# fmt: off
REFUSALS = [
    pytest.param(b"", 400, "Invalid JSON", id="nothing"),
    pytest.param(b"{", 400, "Invalid JSON", id="half an object"),
    pytest.param(b"[]", 400, "Invalid JSON", id="no object"),
    pytest.param(b'{"state": {"desired": {"a": NaN}}}', 400, "Invalid JSON", id="NaN is no JSON"),
    pytest.param(b"[" * 100_000, 400, "Invalid JSON", id="deeper than a parser goes"),
    pytest.param(b"{}", 400, "Missing required node: state", id="no state"),
    pytest.param(b'{"state": 1}', 400, "State node must be an object", id="state a number"),
    pytest.param(b'{"state": []}', 400, "State node must be an object", id="state an array"),
    pytest.param(b'{"state": {"desired": 1}}', 400, "Desired node must be an object", id="desired a number"),
    pytest.param(b'{"state": {"reported": []}}', 400, "Reported node must be an object", id="reported an array"),
    pytest.param(b'{"state": {"delta": {}}}', 400, "State contains an invalid node", id="another section"),
    pytest.param(b'{"state": {"desired": {"a": [1, null]}}}', 400, "State contains an invalid node", id="null in an array"),
    pytest.param(b'{"state": {"desired": {"a": [{"b": null}]}}}', 400, "State contains an invalid node", id="null in an object in an array"),
    pytest.param(b'{"state": {"desired": {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}}}', 400, "JSON contains too many levels of nesting; maximum is 6", id="too deep"),
    pytest.param(b'{"state": {"desired": {"a": [[[[[1]]]]]}}}', 400, "JSON contains too many levels of nesting; maximum is 6", id="too deep by arrays"),
    pytest.param(b'{"state": {"desired": {}}, "version": "1"}', 400, "Invalid version", id="version a text"),
    pytest.param(b'{"state": {"desired": {}}, "version": true}', 400, "Invalid version", id="version true"),
    pytest.param(b'{"state": {"desired": {}}, "version": -1}', 400, "Invalid version", id="version negative"),
    pytest.param(b'{"state": {"desired": {}}, "version": 2}', 409, "Version conflict", id="a stale version"),
    pytest.param(b'{"state": {"desired": {}}, "version": 4}', 409, "Version conflict", id="a version to come"),
    pytest.param(b'{"state": {"desired": {}}, "clientToken": 7}', 400, "Invalid clientToken", id="client token a number"),
    pytest.param(json.dumps({"state": {}, "clientToken": "x" * 65}).encode(), 400, "Invalid clientToken", id="client token too long"),
    pytest.param(json.dumps(desired(a="x" * 8192)).encode(), 413, "The payload exceeds the maximum size allowed", id="too large"),
    pytest.param(b'{"state": {"desired": {"a": "\xff"}}}', 415, "Unsupported documented encoding; supported encoding is UTF-8", id="no UTF-8"),
]
# fmt: on


@pytest.mark.parametrize(("payload", "code", "message"), REFUSALS)
def test_a_bad_update_is_refused_with_the_services_own_words(payload: bytes, code: int, message: str) -> None:
    shadow = after(desired(a=1), reported(a=1), desired(b=2))
    with pytest.raises(ShadowError) as refused:
        rules.update(shadow, payload, NOW)
    assert (refused.value.code, refused.value.message) == (code, message)


def test_the_size_limit_is_of_the_whole_state_without_metadata() -> None:
    room = IOT_CORE.shadow_bytes - len(b'{"desired":{"a":""}}')
    shadow = after(desired(a="x" * room))
    assert shadow.version == 1
    with pytest.raises(ShadowError, match="maximum size"):
        told(shadow, reported(b=1))
    assert told(shadow, desired(a="short"))["accepted"]["version"] == 2


def test_versions_rise_by_one_with_updates_and_deletes_and_are_not_reset() -> None:
    shadow = after(desired(a=1), desired(a=1))
    assert shadow.version == 2
    assert told(shadow, {**desired(a=2), "version": 2})["accepted"]["version"] == 3
    deleted = rules.delete(shadow, b'{"clientToken": "bye"}', "t", NOW)
    assert deleted.messages == {"accepted": {"version": 2, "timestamp": NOW, "clientToken": "bye"}}
    for gone in (rules.get, rules.delete):
        with pytest.raises(ShadowError) as refused:
            gone(deleted.shadow, b"", "config", NOW)
        assert (refused.value.code, refused.value.message) == (404, "No shadow exists with name: 'config'")
    again = rules.update(deleted.shadow, json.dumps(desired(b=1)).encode(), NOW).shadow
    assert (again.version, again.state) == (4, {"desired": {"b": 1}})


def test_every_answer_echoes_the_client_token_and_a_rejection_too() -> None:
    shadow = after(desired(a=1))
    messages = told(shadow, {**desired(b=1), "clientToken": "mine"})
    assert {name: message["clientToken"] for name, message in messages.items()} == dict.fromkeys(messages, "mine")
    assert rules.get(shadow, b'{"clientToken": "mine"}', "t", NOW).messages["accepted"]["clientToken"] == "mine"
    with pytest.raises(ShadowError) as refused:
        told(shadow, {"clientToken": "mine", "state": 1})
    assert refused.value.document(NOW) == {
        "code": 400, "message": "State node must be an object", "timestamp": NOW, "clientToken": "mine"
    }  # fmt: skip
    assert "clientToken" not in told(shadow, desired(b=1))["accepted"]


def test_accepted_says_only_what_was_asked_for_and_documents_say_all() -> None:
    messages = told(after(desired(a=1, b=1)), {"state": {"desired": {"a": None, "c": [1, 2]}}})
    assert list(messages) == ["accepted", "delta", "documents"]
    assert messages["accepted"] == {
        "state": {"desired": {"a": None, "c": [1, 2]}},
        "metadata": {"desired": {"c": [{"timestamp": NOW}, {"timestamp": NOW}]}},
        "version": 2,
        "timestamp": NOW,
    }
    assert messages["documents"]["previous"]["state"] == {"desired": {"a": 1, "b": 1}}
    assert messages["documents"]["current"]["state"] == {"desired": {"b": 1, "c": [1, 2]}}
    assert [messages["documents"][name]["version"] for name in ("previous", "current")] == [1, 2]


def test_a_shadow_that_was_emptied_is_still_there() -> None:
    messages = told(after(desired(a=1)), {"state": None})
    assert list(messages) == ["accepted", "documents"]
    # As seen at the service: https://github.com/getmoto/moto/issues/9237
    assert messages["accepted"] == {"state": None, "metadata": {"timestamp": NOW}, "version": 2, "timestamp": NOW}
    assert rules.get(after(desired(a=1), {"state": None}), b"", "t", NOW).messages["accepted"]["state"] == {}


def test_metadata_has_the_time_of_each_values_last_update() -> None:
    shadow = after(desired(a={"x": 1, "y": 1}, b=1), desired(a={"x": 2}), reported(a={"x": 2}))
    first, second, third = ({"timestamp": NOW + later} for later in range(3))
    assert shadow.metadata == {"desired": {"a": {"x": second, "y": first}, "b": first}, "reported": {"a": {"x": third}}}
    delta = rules.update(shadow, json.dumps(reported(b=2)).encode(), NOW + 9).messages["delta"]
    assert (delta["state"], delta["metadata"]) == ({"a": {"y": 1}, "b": 1}, {"a": {"y": first}, "b": first})


json_values = st.recursive(
    st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "x"]) | st.none(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
sections = st.dictionaries(st.sampled_from("abc"), json_values, max_size=3)


@given(st.lists(st.tuples(st.sampled_from(["desired", "reported"]), sections), min_size=1, max_size=8))
def test_reporting_the_delta_always_leaves_none(requests) -> None:
    shadow = Shadow()
    for section, fields in requests:
        payload = json.dumps({"state": {section: fields}}).encode()
        try:
            shadow = rules.update(shadow, payload, NOW).shadow
        except ShadowError:
            continue
    assert json.dumps(shadow.state).count("null") == 0
    if shadow.delta:
        shadow = after(*[{"state": {name: held}} for name, held in shadow.state.items()], reported(**shadow.delta))
    assert shadow.delta == {}


@pytest.mark.parametrize(
    ("topic", "parsed"),
    [
        ("$aws/things/t/shadow/get", (Address("t"), "get")),
        ("$aws/things/t/shadow/name/config/update", (Address("t", "config"), "update")),
        ("$aws/things/t/shadow/name/config/delete", (Address("t", "config"), "delete")),
        ("$aws/things/t/shadow/update/accepted", None),
        ("$aws/things/t/shadow/name/config/nonsense", None),
        ("$aws/things/t/shadow/name//get", None),
        ("aws/things/t/shadow/get", None),
    ],
)
def test_a_topic_names_the_shadow_and_what_is_asked_of_it(topic: str, parsed) -> None:
    assert parse_topic(topic) == parsed
