"""The local cloud's shadows beside moto's, which others have compared with AWS: the same cases, and where they differ.

Where moto is known to be wrong it says so below, with the reason. A case that is missing there, or that moto does right
by now, fails the test: one of the two lists is then to be mended.
"""

import json
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from test_local_cloud_shadow import DELTAS, NOW, REFUSALS, UPDATES, after, desired, reported

from agent.local_cloud import shadow as rules
from agent.local_cloud.shadow import Shadow, ShadowError

SECTION_NULL = "moto merges a section that is null as if it were not named; AWS: null removes it"
LENIENT = "moto does not look inside the sections; AWS's error is documented"
NO_LIMITS = "moto has no limits"
NO_TOKENS = "moto ignores client tokens"
COMPARED = "moto compares a version before it looks at what it is; AWS: 400 Invalid version"

MOTO_IS_WRONG = {
    "null removes a section": SECTION_NULL,
    "one section removed and another updated": SECTION_NULL,
    "true is not 1": "moto compares as Python does; JSON's true is no number",
    "NaN is no JSON": "moto reads with Python's json, which takes NaN",
    "deeper than a parser goes": "moto reads with Python's json, which gives up with a RecursionError",
    "no UTF-8": "moto takes it for bad JSON (400); AWS documents 415",
    "desired a number": "moto fails over it (TypeError)",
    "reported an array": LENIENT,
    "null in an array": LENIENT,
    "null in an object in an array": LENIENT,
    "too deep": NO_LIMITS,
    "too deep by arrays": NO_LIMITS,
    "too large": NO_LIMITS,
    "version a text": COMPARED,
    "version true": COMPARED,
    "version negative": COMPARED,
    "client token a number": NO_TOKENS,
    "client token too long": NO_TOKENS,
    "a deleted shadow cannot be deleted": "moto deletes it again; AWS: 404",
    "a delete names the version that it deleted": "moto names the next one; AWS documents no more than `version`",
}


class Outcome(NamedTuple):
    """What is to be compared of a shadow: metadata is not, since moto stamps every field anew with each update."""

    state: dict[str, Any]
    delta: dict[str, Any] | None
    version: int


class Moto:
    """Shadows of moto, each of a thing of its own."""

    def __init__(self) -> None:
        self._iot = boto3.client("iot", region_name="us-east-1")
        self._data = boto3.client("iot-data", region_name="us-east-1")
        self._numbers = count()

    def thing(self, *updates: dict[str, Any]) -> str:
        name = f"thing-{next(self._numbers)}"
        self._iot.create_thing(thingName=name)
        for update in updates:
            self.update(name, json.dumps(update).encode())
        return name

    def update(self, thing: str, payload: bytes) -> dict[str, Any]:
        return self._document(self._data.update_thing_shadow(thingName=thing, payload=payload))

    def get(self, thing: str) -> dict[str, Any]:
        return self._document(self._data.get_thing_shadow(thingName=thing))

    def delete(self, thing: str) -> dict[str, Any]:
        return self._document(self._data.delete_thing_shadow(thingName=thing))

    @staticmethod
    def _document(answer: dict[str, Any]) -> dict[str, Any]:
        return json.loads(answer["payload"].read())


@pytest.fixture
def moto() -> Iterator[Moto]:
    with mock_aws():
        yield Moto()


def code_of(action: Callable[[], Any]) -> int | str:
    """How a request went: 200, the service's code, or what moto fell over."""
    try:
        action()
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]
    except ShadowError as error:
        return error.code
    except Exception as error:  # noqa: BLE001  a mistake of moto's is an outcome too
        return type(error).__name__
    return 200


def ours(updates: list[dict[str, Any]]) -> Outcome:
    shadow = after(*updates)
    return Outcome(shadow.state, shadow.delta or None, shadow.version)


def motos(moto: Moto, updates: list[dict[str, Any]]) -> Outcome:
    held = moto.get(moto.thing(*updates))
    delta = held["state"].pop("delta", None)
    return Outcome(held["state"], delta, held["version"])


def wrong(cases: set[str]) -> set[str]:
    """Of these cases, those that moto is known to do wrong."""
    return MOTO_IS_WRONG.keys() & cases


@pytest.mark.parametrize("table", [UPDATES, DELTAS], ids=["updates", "deltas"])
def test_moto_has_the_same_state_delta_and_version(moto: Moto, table: list[Any]) -> None:
    differing = {case.id for case in table if motos(moto, case.values[0]) != ours(case.values[0])}
    assert differing == wrong({case.id for case in table})


def test_moto_refuses_the_same_updates_with_the_same_code(moto: Moto) -> None:
    before = [desired(a=1), reported(a=1), desired(b=2)]
    differing = set()
    for case in REFUSALS:
        payload, thing = case.values[0], moto.thing(*before)
        theirs = code_of(lambda thing=thing, payload=payload: moto.update(thing, payload))
        if theirs != code_of(lambda payload=payload: rules.update(after(*before), payload, NOW)):
            differing.add(case.id)
    assert differing == wrong({case.id for case in REFUSALS})


def test_moto_counts_a_delete_as_a_version_too(moto: Moto) -> None:
    wish, again = desired(a=1), json.dumps(desired(b=1)).encode()
    thing, deletion = moto.thing(wish), rules.delete(after(wish), b"", "t", NOW)
    named = {"moto": moto.delete(thing)["version"], "ours": deletion.messages["accepted"]["version"]}
    gone: Shadow = deletion.shadow
    checks = {
        "a delete names the version that it deleted": named["moto"] == named["ours"],
        "a deleted shadow cannot be read": code_of(lambda: moto.get(thing))
        == code_of(lambda: rules.get(gone, b"", "t", NOW)),
        "the next update counts on": moto.update(thing, again)["version"]
        == rules.update(gone, again, NOW).shadow.version,
    }
    moto.delete(thing)
    checks["a deleted shadow cannot be deleted"] = code_of(lambda: moto.delete(thing)) == code_of(
        lambda: rules.delete(gone, b"", "t", NOW)
    )
    assert {name for name, agrees in checks.items() if not agrees} == wrong(set(checks))


def test_every_exclusion_is_of_a_case_that_exists() -> None:
    cases = {case.id for table in (UPDATES, DELTAS, REFUSALS) for case in table}
    assert {name for name in MOTO_IS_WRONG if " delete" not in name} <= cases
