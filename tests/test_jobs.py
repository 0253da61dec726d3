"""Jobs of AWS IoT as the agent carries them out: its own part of it, over mutual TLS, against the local cloud."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from conftest import WAIT_S
from jobs_device import COUNT, Device
from local_cloud import LocalCloud, until

from agent.cloud.jobs import Job, RestartRequested
from agent.errors import AgentError


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    running = LocalCloud(tmp_path_factory.mktemp("jobs")).start("--thing", "device")
    yield running
    running.kill()


@pytest.fixture
async def device(
    cloud: LocalCloud, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Device]:
    """Started, with the least policy that an agent has."""
    monkeypatch.setattr("agent.cloud.jobs.REPORT_EVERY_S", 0.05)
    started = await Device(cloud, cloud.thing(f"thing-{abs(hash(request.node.nodeid))}", policy=None)).start()
    await started.connection.wait_connected(WAIT_S)
    yield started
    cloud.fault("clear")
    await started.stop()


async def test_a_job_is_carried_out_its_progress_told_and_its_end(device: Device) -> None:
    job = device.desk.create(COUNT, "j")
    await device.until(job, "IN_PROGRESS")
    for number in (1, 2):
        device.count.steps(1)
        await device.until(job, "IN_PROGRESS", step="count", done=str(number), of="3")
    device.count.steps(1)
    ended = await device.until(job, "SUCCEEDED")
    assert ended["statusDetails"] == {"counted": "3"}
    assert device.count.numbers == [0, 1, 2]


async def test_a_job_that_was_there_before_the_agent_is_carried_out_once_it_comes(device: Device) -> None:
    await device.stop()
    job = device.desk.create(COUNT, "j")
    device.count.steps(3)
    await device.start()
    await device.until(job, "SUCCEEDED", counted="3")


# fmt: off
@pytest.mark.parametrize(("document", "field", "reason"), [
    ({}, "operation", "operation: missing"),
    ({"operation": None}, "operation", "operation: missing"),
    ({"operation": 5}, "operation", "operation: must be a text"),
    ({"operation": "disk.format"}, "operation", "operation: 'disk.format' is not known here; one of agent.restart, test.count"),
    ({"operation": "test.count", "to": "x"}, "to", "to: must be a whole number"),
    ({"operation": "x" * 3000}, "operation", f"operation: '{'x' * 1012}"),
    ({"operation": "a\nb\u200b"}, "operation", "operation: 'a\\nb\\u200b' is not known here; one of agent.restart, test.count"),
])
# fmt: on
async def test_a_job_that_makes_no_sense_is_rejected_and_the_field_named(
    device: Device, document: dict[str, Any], field: str, reason: str
) -> None:
    job = device.desk.create(document, "j")
    ended = await device.until(job, "REJECTED")
    assert ended["statusDetails"] == {"reason": reason[:1024], "field": field}


async def test_a_job_that_fails_says_why_and_where_it_stood(device: Device) -> None:
    def fail(job: Job) -> Mapping[str, Any]:
        job.report({"step": "fetch"})
        raise AgentError("no room\x00 left", hint="make room")

    device.operations["test.fail"] = fail
    ended = await device.until(device.desk.create({"operation": "test.fail"}, "j"), "FAILED")
    assert ended["statusDetails"] == {"reason": "no room  left", "hint": "make room", "step": "fetch"}


async def test_an_operation_with_a_mistake_fails_its_job_and_the_next_one_goes_well(device: Device) -> None:
    device.operations["test.broken"] = lambda _: 1 / 0  # type: ignore[assignment,return-value]
    device.operations["test.nothing"] = lambda _: None  # type: ignore[assignment,return-value]
    device.count.steps(3)
    for name in ("broken", "nothing", "count"):
        device.desk.create({"operation": f"test.{name}"}, name)
    assert (await device.until("broken", "FAILED"))["statusDetails"]["reason"].startswith("ZeroDivisionError")
    assert (await device.until("nothing", "FAILED"))["statusDetails"]["reason"].startswith("TypeError")
    await device.until("count", "SUCCEEDED")


async def test_two_jobs_are_done_one_after_the_other_in_their_order(device: Device) -> None:
    device.desk.create(COUNT, "b")
    device.desk.create(COUNT, "a")
    await device.until("b", "IN_PROGRESS")
    device.count.steps(2)
    await device.until("b", "IN_PROGRESS", done="2")
    assert device.desk.get("a")["status"] == "QUEUED"
    device.count.steps(4)
    await device.until("a", "SUCCEEDED")
    assert device.desk.get("b")["status"] == "SUCCEEDED"
    assert device.count.begun == ["b", "a"]


async def test_after_a_restart_a_job_goes_on_from_the_details_that_were_told(device: Device) -> None:
    job = device.desk.create({"operation": "test.count", "to": 5}, "j")
    device.count.steps(2)
    held = await device.until(job, "IN_PROGRESS", done="2")
    await device.restart()
    assert device.count.told_to_end == 1
    again = await device.until(job, "IN_PROGRESS", done="2")
    device.count.steps(3)
    ended = await device.until(job, "SUCCEEDED", counted="5")
    assert device.count.numbers == [0, 1, 2, 3, 4], "nothing twice"
    assert held["executionNumber"] == again["executionNumber"] == ended["executionNumber"]


async def test_the_time_of_a_step_begins_anew_with_each_report_and_when_a_job_goes_on(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def minutes_left(job: str) -> float:
        return round(device.desk.get(job)["approximateSecondsBeforeTimedOut"] / 60)

    monkeypatch.setattr("agent.cloud.jobs.STEP_TIMEOUT_MINUTES", 10)
    job = device.desk.create(COUNT, "j")
    await device.until(job, "IN_PROGRESS")
    assert minutes_left(job) == 10
    monkeypatch.setattr("agent.cloud.jobs.STEP_TIMEOUT_MINUTES", 20)
    device.count.steps(1)
    await device.until(job, "IN_PROGRESS", done="1")
    assert minutes_left(job) == 20
    monkeypatch.setattr("agent.cloud.jobs.STEP_TIMEOUT_MINUTES", 30)
    await device.restart()
    await until(lambda: minutes_left(job) == 30)


async def test_progress_is_told_now_and_then_and_only_when_it_changed(device: Device, monkeypatch) -> None:
    monkeypatch.setattr("agent.cloud.jobs.REPORT_EVERY_S", 60)
    reported, go_on = threading.Event(), threading.Event()

    def work(job: Job) -> Mapping[str, Any]:
        for number in range(1_000):
            job.report({"done": number})
            time.sleep(0.0005)  # so that there is time to tell each of them
        reported.set()
        go_on.wait(WAIT_S)
        return {}

    device.operations["test.work"] = work
    job = device.desk.create({"operation": "test.work"}, "j")
    await asyncio.to_thread(reported.wait, WAIT_S)
    go_on.set()
    ended = await device.until(job, "SUCCEEDED")
    assert ended["versionNumber"] <= 4, "queued, begun, at most one report, ended"


# -- jobs that end otherwise ---------------------------------------------------------------------------------------


async def test_a_job_that_is_cancelled_in_mid_run_is_let_go(device: Device) -> None:
    job = device.desk.create(COUNT, "j")
    device.count.steps(1)
    await device.until(job, "IN_PROGRESS", done="1")
    device.desk.cancel(job, force=True)
    await until(lambda: device.count.told_to_end)
    device.count.steps(3)
    await device.until(device.desk.create(COUNT, "next"), "SUCCEEDED")
    held = device.desk.get(job)
    assert (held["status"], held["statusDetails"]["done"]) == ("CANCELED", "1"), "nothing more was told"


async def test_a_job_that_is_deleted_in_mid_run_is_let_go(device: Device) -> None:
    job = device.desk.create(COUNT, "j")
    device.count.steps(1)
    await device.until(job, "IN_PROGRESS", done="1")
    device.desk.delete(job, force=True)
    await until(lambda: device.count.told_to_end)
    device.count.steps(3)
    again = device.desk.create(COUNT, "j")
    await device.until(again, "SUCCEEDED", counted="3")
    assert device.count.numbers == [0, 0, 1, 2], "the new one of the same name begins anew"


async def test_a_job_that_is_deleted_and_made_again_at_once_is_another_job(device: Device) -> None:
    job = device.desk.create(COUNT, "j")
    device.count.steps(1)
    await device.until(job, "IN_PROGRESS", done="1")
    device.desk.delete(job, force=True)
    device.desk.create(COUNT, "j")
    await until(lambda: device.count.told_to_end)
    device.count.steps(3)
    await device.until(job, "SUCCEEDED", counted="3")
    assert device.count.numbers == [0, 0, 1, 2]


async def test_a_job_that_is_past_its_time_is_let_go(device: Device) -> None:
    job = device.desk.create(COUNT, "j", timeout_minutes=0.01)
    await device.until(job, "TIMED_OUT")
    await until(lambda: device.count.told_to_end)
    device.count.steps(3)
    await device.until(device.desk.create(COUNT, "next"), "SUCCEEDED")
    assert device.desk.get(job)["status"] == "TIMED_OUT"


@pytest.mark.parametrize("what", ["cancel", "delete"])
async def test_what_happened_to_a_job_while_the_link_was_down_is_noticed_at_the_reconnect(
    device: Device, what: str
) -> None:
    job = device.desk.create(COUNT, "j")
    device.count.steps(1)
    await device.until(job, "IN_PROGRESS", done="1")
    await device.connection.stop()
    getattr(device.desk, what)(job, force=True)
    assert device.count.told_to_end == 0
    device.connection.start()
    await until(lambda: device.count.told_to_end)


async def test_a_job_that_ended_on_both_sides_is_left_as_the_service_has_it(device: Device) -> None:
    job = device.desk.create(COUNT, "j")
    await device.has_begun(job)
    await device.connection.stop()
    device.desk.cancel(job, force=True)
    device.count.steps(3)
    await until(lambda: len(device.count.counted) == 3)
    device.connection.start()
    device.count.steps(3)
    await device.until(device.desk.create(COUNT, "next"), "SUCCEEDED")
    assert device.desk.get(job)["status"] == "CANCELED"


async def test_a_job_that_somebody_else_updates_meanwhile_is_still_ours(device: Device, cloud: LocalCloud) -> None:
    job = device.desk.create(COUNT, "j")
    await device.has_begun(job)
    other = cloud.connect(cloud.thing("other"))
    note = {"status": "IN_PROGRESS", "statusDetails": {"note": "looked at"}}
    other.publish(f"$aws/things/{device.thing}/jobs/{job}/update", json.dumps(note).encode())
    other.quiet()
    cloud.close_clients()
    await device.until(job, "IN_PROGRESS", note="looked at")
    device.count.steps(3)
    await device.until(job, "SUCCEEDED", counted="3")
    assert device.count.told_to_end == 0


DEAF = {
    "Effect": "Deny",
    "Action": "iot:Receive",
    "Resource": "arn:aws:iot:us-east-1:123456789012:topic/$aws/things/*/jobs/notify-next",
}


async def test_what_no_notice_told_is_noticed_with_the_next_report(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cloud.jobs.REPORT_EVERY_S", 0.05)
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "iot:*", "Resource": "*"}, DEAF]}
    device = Device(cloud, cloud.thing("no-notices", policy))
    for job in ("first", "second", "third"):
        device.desk.create({"operation": "test.restart"} if job == "second" else COUNT, job)

    def restart(job: Job) -> Mapping[str, Any]:
        device.desk.cancel(job.id, force=True)
        raise RestartRequested({"step": "restarting"})

    device.operations["test.restart"] = restart
    await device.start()
    await device.has_begun("first")
    device.desk.cancel("first", force=True)
    device.count.steps(1)
    await until(lambda: device.count.told_to_end)
    device.count.steps(3)
    await device.until("third", "SUCCEEDED")
    assert [device.desk.get(job)["status"] for job in ("first", "second")] == ["CANCELED", "CANCELED"]
    assert device.restarts == 0
    await device.stop()
