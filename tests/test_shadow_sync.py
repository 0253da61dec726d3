"""The Device Shadow kept in step: a real agent's part of it, over mutual TLS, against the local cloud."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, WAIT_S, wait_until
from jsonschema import Draft202012Validator
from local_cloud import LocalCloud, Shadow

from agent.cloud.shadow import ShadowSync
from agent.config import SearchConfig
from agent.configuring import Configurator
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker, Tls
from agent.protocol.limits import IOT_CORE
from agent.protocol.shadow_document import size
from agent.protocol.targets import Progress, parse_targets, reported_targets
from agent.settings import Settings
from agent.store.accepted import AcceptedSettings
from agent.store.agent_db import AgentDatabase

BASE = Settings(search=SearchConfig(max_results=7))
MODEL = "all-MiniLM-L6-v2"
NO_REPOSITORY = Progress(state="failed", error="corpus.repository: no repository is named")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    running = LocalCloud(tmp_path_factory.mktemp("shadow")).start("--thing", "device")
    yield running
    running.kill()


class Device:
    """A connection, a configurator and a sync, as the service makes them; `restart` makes all of them anew."""

    session_expiry_s = 3600

    def __init__(self, cloud: LocalCloud, thing: str, folder: Path) -> None:
        self.shadow = Shadow(cloud, thing)
        self.folder = folder
        self.in_effect = BASE
        self.configured = 0
        self.facts: Callable[[], dict[str, Any]] = lambda: {"version": "1.0"}
        self.targets: Callable[[Any], dict[str, Any]] = lambda wished: reported_targets(
            parse_targets(wished), NO_REPOSITORY, model=MODEL, corpus_version="local+3"
        )
        self.before_each_decision: Callable[[], None] = lambda: None
        self.decided: list[int] = []
        files = cloud.files(thing)
        tls = Tls(files["ca"], files["cert"], files["key"])
        self.documents_topic = f"$aws/things/{thing}/shadow/name/config/update/documents"
        self._broker = Broker("localhost", cloud.port, thing, tls=tls)

    async def start(self) -> "Device":
        self.in_effect = BASE
        self.connection = Connection(self._broker._replace(session_expiry_s=self.session_expiry_s))
        accepted = AcceptedSettings(AgentDatabase(self.folder / "agent.db"))
        self.configurator = Configurator(BASE, accepted, [self._configure])
        self.configurator.start()
        self.sync = ShadowSync(
            self.connection,
            self.shadow.thing,
            apply=self._apply,
            targets=self._tell_targets,
            facts=self._tell_facts,
        )
        self.connection.start()
        self._task = asyncio.create_task(self.sync.run())
        return self

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.connection.stop()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def reconnect(self) -> None:
        await self.connection.stop()
        self.connection.start()
        await self.connection.wait_connected(WAIT_S)

    def _configure(self, settings: Settings) -> None:
        self.configured += 1
        self.in_effect = settings

    def _apply(self, document: Any, version: int) -> Any:
        self.before_each_decision()
        self.decided.append(version)
        return self.configurator.apply(document, version)

    def _tell_targets(self, wished: Any) -> dict[str, Any]:
        return self.targets(wished)

    def _tell_facts(self) -> dict[str, Any]:
        return self.facts()

    async def until(self, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Wait until what is reported is so, and return it."""

        def found() -> tuple[dict[str, Any]] | None:
            reported = self.shadow.reported
            return (reported,) if condition(reported) else None

        (reported,) = await asyncio.to_thread(wait_until, found)
        return reported

    async def until_decided(self, version: int) -> dict[str, Any]:
        """Until the document of this version, or a later one, was answered."""
        return await self.until(lambda reported: reported.get("config", {}).get("document_version", -1) >= version)

    async def quiet(self) -> int:
        """The version of the shadow once the agent has looked at all there is, and has nothing more to say."""
        while True:
            # A document without a change: when the agent has decided upon it, it has reported all that was before.
            marked = self.shadow.update(desired={})["version"]
            await asyncio.to_thread(wait_until, partial(self._has_decided, marked))
            marked_again = self.shadow.update(desired={})["version"]
            await asyncio.to_thread(wait_until, partial(self._has_decided, marked_again))
            if marked_again == marked + 1:
                return marked_again

    def _has_decided(self, version: int) -> bool:
        return bool(self.decided) and self.decided[-1] >= version


@pytest.fixture
async def device(cloud: LocalCloud, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Device]:
    """Started, with the least policy that an agent has."""
    thing = cloud.thing(f"thing-{abs(hash(request.node.nodeid))}", policy=None)
    started = await Device(cloud, thing, tmp_path).start()
    await started.until_decided(0)
    yield started
    cloud.fault("clear")
    await started.stop()


async def test_an_agent_without_a_shadow_makes_one_and_says_what_is_in_effect(device: Device) -> None:
    held = device.shadow.get()
    assert (held["version"], "desired" in held["state"]) == (1, False)
    assert device.shadow.reported == {
        "settings": BASE.document(),
        "config": {"document_version": 0, "status": "applied"},
        "agent": {"version": "1.0"},
    }
    assert device.configured == 0


async def test_a_wish_comes_into_effect_and_is_reported(device: Device) -> None:
    version = device.shadow.wish(settings={"search": {"max_results": 5}, "logging": {"level": "debug"}})
    reported = await device.until_decided(version)
    assert reported["config"] == {"document_version": version, "status": "applied"}
    assert reported["settings"] == device.in_effect.document()
    assert (device.in_effect.search.max_results, device.in_effect.logging.level) == (5, "debug")
    assert "delta" not in device.shadow.get()["state"]
    assert device.shadow.get()["version"] == version + 1, "one report"


async def test_a_key_that_is_removed_returns_to_the_configuration(device: Device) -> None:
    device.shadow.wish(settings={"search": {"max_results": 5, "default_mode": "keyword"}})
    version = device.shadow.wish(settings={"search": {"max_results": None}})
    await device.until_decided(version)
    assert (device.in_effect.search.max_results, device.in_effect.search.default_mode) == (7, "keyword")
    await device.until_decided(device.shadow.update(desired=None)["version"])
    assert device.in_effect == BASE


async def test_a_bad_document_is_rejected_once_and_changes_nothing(device: Device) -> None:
    await device.until_decided(device.shadow.wish(settings={"search": {"max_results": 5}}))
    version = device.shadow.wish(settings={"search": {"max_results": 0, "candidates": 200}})
    reported = await device.until_decided(version)
    assert reported["config"] == {
        "document_version": version,
        "status": "rejected",
        "errors": [
            {"path": "settings.search.max_results", "value": 0, "reason": "must be a whole number from 1 to 100"}
        ],
    }
    assert reported["settings"]["search"] == {**BASE.document()["search"], "max_results": 5}
    assert (device.in_effect.search.max_results, device.in_effect.search.candidates) == (5, 100)
    assert await device.quiet() == version + 3, "the report, and two marks that look for more of them"
    for again in (device.restart, device.reconnect):
        before = device.shadow.get()["version"]
        await again()
        assert await device.quiet() == before + 2, "and not again after a restart or a reconnect"
    assert device.shadow.reported["config"] == reported["config"]


async def test_what_this_version_does_not_know_is_ignored_and_reported(device: Device) -> None:
    wishes = {"settings": {"search": {"max_results": 5}, "later": {"max_bytes": 1}}, "colour": "red"}
    reported = await device.until_decided(device.shadow.wish(**wishes))
    assert reported["config"]["ignored"] == ["colour", "settings.later"]
    assert device.in_effect.search.max_results == 5


async def test_targets_have_their_own_state_and_hold_up_no_setting(device: Device) -> None:
    targets = {"corpus": {"version": "2024-10"}, "model": {"name": "other"}, "firmware": 2}
    version = device.shadow.wish(targets=targets, settings={"search": {"max_results": 5}})
    reported = await device.until_decided(version)
    assert reported["targets"] == {
        "corpus": {"version": "local+3", "state": "failed", "error": NO_REPOSITORY.error},
        "model": {"name": MODEL, "state": "failed", "error": NO_REPOSITORY.error},
    }
    assert reported["config"]["ignored"] == ["targets.firmware"]
    assert device.in_effect.search.max_results == 5
    device.shadow.wish(targets={"corpus": None, "model": {"name": MODEL}})
    await device.until(lambda reported: reported["targets"] == {"model": {"name": MODEL, "state": "current"}})
    device.shadow.wish(targets=None)
    await device.until(lambda reported: "targets" not in reported)


async def test_what_was_wished_while_the_agent_was_away_is_seen_when_it_is_back(device: Device) -> None:
    await device.connection.stop()
    version = device.shadow.wish(settings={"search": {"max_results": 5}})
    device.connection.start()
    await device.until_decided(version)
    await device.stop()
    version = device.shadow.wish(settings={"search": {"max_results": 6}})
    await device.start()
    assert device.configurator.settings.search.max_results == 5, "with no network yet"
    await device.until_decided(version)
    assert device.in_effect.search.max_results == 6


@pytest.mark.parametrize("session_expiry_s", [3600, 0])
async def test_a_cut_in_any_moment_loses_no_wish(device: Device, cloud: LocalCloud, session_expiry_s: int) -> None:
    """Without a session the subscriptions are gone as well."""
    device.session_expiry_s = session_expiry_s
    await device.restart()
    for number in range(1, 6):
        cloud.fault("cut")
        version = device.shadow.wish(settings={"search": {"max_results": number}})
        await device.until_decided(version)
        assert device.in_effect.search.max_results == number


async def test_a_report_that_was_overtaken_is_made_for_the_newer_document(device: Device, cloud: LocalCloud) -> None:
    """Another writer changes the document between the decision and the report."""
    overtaken: list[int] = []
    listener = cloud.connect(cloud.thing("listener"))
    assert listener.subscribe(device.documents_topic) == [1]

    def facts() -> dict[str, Any]:
        if len(overtaken) < 3:
            overtaken.append(device.shadow.wish(settings={"search": {"max_results": 20 + len(overtaken)}}))
        return {"version": "1.0"}

    device.facts = facts
    device.shadow.wish(settings={"search": {"max_results": 5}})
    await asyncio.to_thread(wait_until, lambda: len(overtaken) == 3)
    reported = await device.until_decided(overtaken[-1])
    assert reported["config"] == {"document_version": overtaken[-1], "status": "applied"}
    assert reported["settings"]["search"]["max_results"] == device.in_effect.search.max_results == 22
    heard = [json.loads(packet.payload) for packet in listener.quiet()]
    cloud.close_clients()
    reports = [both["current"]["state"] for both in heard if _reported(both["current"]) != _reported(both["previous"])]
    assert reports
    for state in reports:  # none stands beside wishes that it was not made for
        assert (
            state["reported"]["settings"]["search"]["max_results"]
            == state["desired"]["settings"]["search"]["max_results"]
        )


def _reported(document: dict[str, Any]) -> Any:
    return document["state"].get("reported")


async def test_without_the_right_to_hear_changes_they_are_read_at_each_connect(
    cloud: LocalCloud, tmp_path: Path, caplog
) -> None:
    everything_but = [
        {"Effect": "Allow", "Action": "iot:*", "Resource": "*"},
        {
            "Effect": "Deny",
            "Action": "iot:Subscribe",
            "Resource": "arn:aws:iot:us-east-1:123456789012:topicfilter/*/update/documents",
        },
    ]
    deaf = cloud.thing("deaf", {"Version": "2012-10-17", "Statement": everything_but})
    device = await Device(cloud, deaf, tmp_path).start()
    await device.until_decided(0)
    assert "not heard until the next connect" in caplog.text
    version = device.shadow.wish(settings={"search": {"max_results": 5}})
    await device.reconnect()
    await device.until_decided(version)
    version = device.shadow.wish(settings={"search": {"max_results": 6}})
    cloud.fault("cut")
    await device.until_decided(version)
    assert device.in_effect.search.max_results == 6
    await device.stop()


async def test_documents_that_are_not_newer_are_dropped(device: Device, cloud: LocalCloud) -> None:
    version = device.shadow.wish(settings={"search": {"max_results": 5}})
    await device.until_decided(version)
    seen = await device.quiet()
    wishes = {"desired": {"settings": {"search": {"max_results": 50}}}, "reported": {}}
    other = cloud.connect(cloud.thing("other"))
    for stale in (version - 1, version, seen):
        document = {"current": {"version": stale, "state": wishes, "metadata": {}}, "timestamp": 1}
        other.publish(device.documents_topic, json.dumps(document).encode())
    other.quiet()
    cloud.close_clients()
    assert await device.quiet() == seen + 2
    assert device.in_effect.search.max_results == 5


async def test_only_the_newest_of_many_documents_matters(device: Device) -> None:
    for number in range(1, 40):
        version = device.shadow.wish(settings={"search": {"max_results": number}})
    await device.until_decided(version)
    assert device.in_effect.search.max_results == 39


async def test_a_shadow_that_was_deleted_is_made_again_without_its_wishes(device: Device) -> None:
    await device.until_decided(device.shadow.wish(settings={"search": {"max_results": 5}}))
    device.shadow.delete()
    await device.connection.stop()
    device.connection.start()
    reported = await device.until(lambda reported: "config" in reported)
    assert (reported["settings"], reported["config"]["status"]) == (BASE.document(), "applied")
    assert device.in_effect == BASE
    version = device.shadow.wish(settings={"search": {"max_results": 4}})
    await device.until_decided(version)
    device.shadow.delete()
    version = device.shadow.wish(settings={"search": {"max_results": 3}})
    assert (await device.until_decided(version))["settings"]["search"]["max_results"] == 3


async def test_what_others_wrote_as_reported_is_put_right(device: Device) -> None:
    device.shadow.update(reported={"mine": 1, "config": 5, "settings": {"search": {"max_results": 99, "x": {"y": 1}}}})
    await device.until(lambda reported: "mine" not in reported and reported["config"] != 5)
    assert device.shadow.reported["settings"] == BASE.document()


async def test_a_document_full_of_errors_is_answered_within_what_a_shadow_holds(device: Device) -> None:
    keys = {f"{number:03}": "ü" * 30 for number in range(25)}
    wishes = {"search": {"default_mode": "x" * 1_500} | keys, "limits": "y" * 500, "health": 1, **keys}
    version = device.shadow.wish(settings=wishes)
    reported = await device.until_decided(version)
    assert reported["config"]["status"] == "rejected"
    assert len(reported["config"]["errors"]) > 2
    room = IOT_CORE.shadow_bytes - size(wishes, reported)
    tight = device.shadow.wish(settings={"pad": "z" * (room - 200)}) if room > 300 else version
    assert (await device.until_decided(tight))["config"]["status"] == "rejected"


async def test_wishes_that_leave_hardly_any_room_get_the_least_report(device: Device) -> None:
    device.shadow.update(reported=None, desired={"settings": {"logging": "x" * 7_950}})
    reported = await device.until(lambda reported: reported.get("config", {}).get("status") == "rejected")
    assert set(reported) == {"config"}
    version = device.shadow.wish(settings=None)
    assert (await device.until_decided(version))["settings"] == BASE.document()


async def test_wishes_that_leave_no_room_at_all_are_complained_of_once(device: Device, caplog) -> None:
    device.shadow.update(reported=None, desired={"settings": {"logging": {"level": "debug"}, "x": "x" * 8_090}})
    await device.quiet()
    assert device.in_effect.logging.level == "debug", "it is done, if not said"
    assert len([record for record in caplog.records if "no room for a report" in record.message]) == 1
    version = device.shadow.wish(settings={"x": None})
    assert (await device.until_decided(version))["settings"]["logging"] == {"level": "debug"}


async def test_a_service_that_has_less_room_than_it_says_gets_a_shorter_report(device: Device, monkeypatch) -> None:
    monkeypatch.setattr("agent.cloud.shadow.IOT_CORE", IOT_CORE._replace(shadow_bytes=100_000))
    await device.reconnect()
    facts = {"version": "1.0", **{f"fact-{number}": "x" * 120 for number in range(200)}}
    device.facts = lambda: facts
    version = device.shadow.wish(settings={"search": {"max_results": 5}})
    reported = await device.until_decided(version)
    assert reported == {"config": {"document_version": version, "status": "applied"}}


async def test_facts_are_told_with_something_else_and_by_themselves_when_it_is_time(
    device: Device, monkeypatch
) -> None:
    device.facts = lambda: {"version": "1.1"}
    device.sync.changed()
    await device.quiet()
    assert device.shadow.reported["agent"] == {"version": "1.0"}
    monkeypatch.setattr("agent.cloud.shadow.LOOK_AGAIN_S", 0.05)
    await device.until_decided(device.shadow.wish(settings={"search": {"max_results": 5}}))
    assert device.shadow.reported["agent"] == {"version": "1.1"}
    device.facts = lambda: {"version": "1.2"}
    await device.until(lambda reported: reported["agent"] == {"version": "1.2"})


async def test_facts_and_targets_that_fail_keep_no_setting_from_being_reported(device: Device, caplog) -> None:
    def fail(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    device.facts = device.targets = fail
    version = device.shadow.wish(settings={"search": {"max_results": 5}})
    assert (await device.until_decided(version))["settings"]["search"]["max_results"] == 5
    assert "cannot be told" in caplog.text


async def test_an_error_nobody_thought_of_is_logged_and_passes(device: Device, caplog) -> None:
    def fail_once() -> None:
        device.before_each_decision = lambda: None
        raise ZeroDivisionError

    device.before_each_decision = fail_once
    version = device.shadow.wish(settings={"search": {"max_results": 5}})
    assert (await device.until_decided(version))["settings"]["search"]["max_results"] == 5
    assert "following the shadow failed" in caplog.text


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b'{"current": 5}', b'{"current": {"state": {}, "version": "1"}}', b"\xff"]
)
async def test_garbage_on_the_topic_of_documents_does_no_harm(
    device: Device, cloud: LocalCloud, payload: bytes
) -> None:
    other = cloud.connect(cloud.thing("other"))
    for _ in range(3):
        other.publish(device.documents_topic, payload)
    other.quiet()
    version = device.shadow.wish(settings={"search": {"max_results": 5}})
    await device.until_decided(version)
    assert device.in_effect.search.max_results == 5
    cloud.close_clients()


async def test_every_report_is_as_its_schema_says(device: Device) -> None:
    schema = json.loads((ROOT / "docs" / "schemas" / "shadow.json").read_text("utf-8"))
    good = {"settings": {"search": {"max_results": 5}}, "targets": {"corpus": {"channel": "x"}, "model": {"name": "y"}}}
    for wishes in (good, {"settings": {"search": {"max_results": 0}}}, {"settings": 5, "colour": [1]}):
        await device.until_decided(device.shadow.wish(**wishes))
        state = device.shadow.get()["state"]
        if wishes is not good:
            del state["desired"]
        state.pop("delta", None)
        Draft202012Validator(schema).validate({"state": state})


WISHES: list[dict[str, Any]] = [
    {"settings": {"search": {"max_results": 5}}},
    {"settings": {"search": {"max_results": 0}}},
    {"settings": {"search": {"max_results": 50, "semantic_weight": 0.25}, "logging": {"level": "error"}}},
    {"settings": {"search": None}},
    {"settings": None},
    {"settings": 5},
    {"settings": {"search": {"semantic_weight": 2}}},
    {"settings": {"limits": {"requests_per_minute": 60}, "later": {"x": 1}}},
    {"targets": {"model": {"name": "other"}}, "colour": [1, 2]},
    {"targets": None, "colour": None},
]


@pytest.mark.parametrize("seed", range(8))
async def test_after_any_updates_cuts_and_restarts_the_last_valid_wishes_are_in_effect_and_reported(
    device: Device, cloud: LocalCloud, seed: int
) -> None:
    choose = random.Random(seed)
    for _ in range(25):
        match choose.choice(["wish", "wish", "wish", "cut", "restart", "freeze", "throttle", "drop-puback", "settle"]):
            case "wish":
                device.shadow.wish(**choose.choice(WISHES))
            case "cut":
                cloud.fault("cut")
            case "freeze" | "throttle" | "drop-puback" as fault:
                cloud.fault(fault)
                device.shadow.wish(**choose.choice(WISHES))
                await asyncio.sleep(choose.choice([0, 0.02]))
                cloud.fault("clear")
            case "restart":
                await device.restart()
            case "settle":
                await device.connection.wait_connected(WAIT_S)
        await asyncio.sleep(choose.choice([0, 0, 0.01, 0.05]))
    # The last valid document, and in half of the runs a bad one after it, which changes nothing.
    wishes = {"search": {"max_results": choose.randint(51, 99), "semantic_weight": None}}
    version = device.shadow.wish(settings=wishes)
    expected = BASE.merged(device.shadow.get()["state"]["desired"]["settings"]).settings
    reported = await device.until_decided(version)
    assert reported["config"]["status"] == "applied"
    if seed % 2:
        version = device.shadow.wish(settings={"search": {"max_results": -1}})
        assert (await device.until_decided(version))["config"]["status"] == "rejected"
    await device.quiet()
    assert device.shadow.reported["settings"] == expected.document()
    assert device.in_effect == device.configurator.settings == expected
    await device.restart()
    assert device.in_effect == expected, "with no network yet"
    await device.quiet()
    assert device.shadow.reported["settings"] == device.in_effect.document() == expected.document()
