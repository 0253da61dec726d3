"""Jobs of AWS IoT as the agent carries them out: its own part of it, over mutual TLS, against the local cloud."""

import asyncio
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import WAIT_S
from local_cloud import Desk, LocalCloud, until

from agent.cloud.jobs import Job, Jobs, RestartRequested
from agent.cloud.restarting import RUN, restart_agent
from agent.errors import AgentError, JobDocumentError
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker, Tls


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    running = LocalCloud(tmp_path_factory.mktemp("jobs")).start("--thing", "device")
    yield running
    running.kill()


class Counting:
    """An operation that counts, a step each time it may, from where it stood; it ends soon when it is told to."""

    def __init__(self) -> None:
        self.may = threading.Semaphore(0)
        self.begun: list[str] = []
        self.counted: list[tuple[str, int]] = []
        self.told_to_end = 0

    @property
    def numbers(self) -> list[int]:
        return [number for _, number in self.counted]

    def steps(self, number: int) -> None:
        self.may.release(number)

    def __call__(self, job: Job) -> Mapping[str, Any]:
        last = job.document.get("to", 3)
        if not isinstance(last, int):
            raise JobDocumentError("must be a whole number", field="to")
        self.begun.append(job.id)
        for number in range(int(job.details.get("done", 0)), last):
            while not self.may.acquire(timeout=0.01):
                if job.cancelled():
                    self.told_to_end += 1
                    raise AgentError("told to end")
            self.counted.append((job.id, number))
            job.report({"step": "count", "done": number + 1, "of": last})
        return {"counted": last}


class Device:
    """A connection and its jobs, as the service makes them; `restart` makes all of them anew."""

    def __init__(self, cloud: LocalCloud, thing: str) -> None:
        self.cloud, self.thing = cloud, thing
        self.desk = Desk(cloud, thing)
        self.count = Counting()
        self.operations: dict[str, Callable[[Job], Mapping[str, Any]]] = {
            "test.count": self._count,
            "agent.restart": restart_agent,
        }
        self.restarts = 0
        files = cloud.files(thing)
        tls = Tls(files["ca"], files["cert"], files["key"])
        self._broker = Broker("localhost", cloud.port, thing, tls=tls, reconnect_ms=(100, 1_000))

    def _count(self, job: Job) -> Mapping[str, Any]:
        return self.count(job)

    def _restart(self) -> None:
        self.restarts += 1

    async def start(self) -> "Device":
        self.connection = Connection(self._broker)
        self.pool = ThreadPoolExecutor(1)
        self.jobs = Jobs(self.connection, self.thing, self.operations, self.pool, restart=self._restart)
        self.connection.start()
        self._task = asyncio.create_task(self.jobs.run())
        return self

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.connection.stop()
        await asyncio.to_thread(self.pool.shutdown)  # an operation that does not end would be seen here

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def has_begun(self, job_id: str) -> None:
        """Here, too, and not only as the service has it."""
        await until(lambda: job_id in self.count.begun)

    async def until(self, job_id: str, status: str, **details: str) -> dict[str, Any]:
        return await asyncio.to_thread(self.desk.until, job_id, status, **details)


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


COUNT = {"operation": "test.count", "to": 3}


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


# -- links ---------------------------------------------------------------------------------------------------------


async def test_while_the_link_is_down_the_work_goes_on_and_its_end_is_told_afterwards(
    device: Device, cloud: LocalCloud
) -> None:
    job = device.desk.create(COUNT, "j")
    await device.has_begun(job)
    cloud.fault("refuse")
    await until(lambda: not device.connection.connected.is_set())
    device.count.steps(3)
    await until(lambda: len(device.count.counted) == 3)
    assert device.desk.get(job)["status"] == "IN_PROGRESS"
    cloud.fault("clear")
    await device.until(job, "SUCCEEDED", counted="3")
    assert device.count.begun == ["j"]


@pytest.mark.parametrize("fault", ["cut", "deaf", "drop-puback", "duplicate", "reorder"])
async def test_a_fault_in_mid_run_neither_loses_nor_repeats_a_job(
    device: Device, cloud: LocalCloud, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cloud.service_client.OPERATION_TIMEOUT_S", 1)
    await device.restart()
    job = device.desk.create({"operation": "test.count", "to": 4}, "j")
    await device.has_begun(job)
    cloud.fault(fault)
    device.count.steps(2)
    await until(lambda: len(device.count.counted) == 2)
    cloud.fault("cut")
    device.count.steps(2)
    cloud.fault("clear")
    await device.until(job, "SUCCEEDED", counted="4")
    assert (device.count.begun, device.count.numbers) == (["j"], [0, 1, 2, 3])


@pytest.mark.parametrize("seed", range(4))
async def test_after_any_cuts_restarts_and_faults_each_job_has_ended_once_in_order_with_all_its_work(
    device: Device, cloud: LocalCloud, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cloud.service_client.OPERATION_TIMEOUT_S", 2)
    choose, jobs = random.Random(seed), []
    for _ in range(20):
        match choose.choice(["job", "work", "work", "cut", "restart", "freeze", "throttle", "drop-puback"]):
            case "job":
                jobs.append(device.desk.create(COUNT, f"job-{len(jobs)}"))
            case "work":
                device.count.steps(choose.randint(1, 3))
            case "cut":
                cloud.fault("cut")
            case "restart":
                await device.restart()
            case fault:
                cloud.fault(fault)
                device.count.steps(1)
                await asyncio.sleep(choose.choice([0, 0.1, 0.3]))
                cloud.fault("clear")
                cloud.fault("cut")
        await asyncio.sleep(choose.choice([0, 0.05, 0.2]))
    jobs.append(device.desk.create(COUNT, "last"))
    device.count.steps(3 * 20 * len(jobs))
    await device.until("last", "SUCCEEDED", counted="3")
    assert [device.desk.get(job)["status"] for job in jobs] == ["SUCCEEDED"] * len(jobs)
    assert list(dict.fromkeys(device.count.begun)) == jobs, "in their order"
    for job in jobs:  # what was done and not told before a restart is done again, and nothing is left out
        done = [number for one, number in device.count.counted if one == job]
        assert sorted(set(done)) == [0, 1, 2]
        assert done[-1] == 2


# -- restarts ------------------------------------------------------------------------------------------------------


async def test_a_restart_is_told_before_it_is_done_and_succeeds_in_another_run(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = device.desk.create({"operation": "agent.restart"}, "j")
    await until(lambda: device.restarts == 1)
    assert device.desk.get(job)["statusDetails"] == {"step": "restarting", "run": RUN}
    await device.restart()
    await until(lambda: device.restarts == 2)  # it is still the same process
    monkeypatch.setattr("agent.cloud.restarting.RUN", "another")
    await device.restart()
    await device.until(job, "SUCCEEDED", step="restarted", run="another")
    assert device.restarts == 2


async def test_a_restart_that_was_cancelled_before_it_could_be_told_is_not_done(device: Device) -> None:
    begun, go = threading.Event(), threading.Event()

    def restart(_: Job) -> Mapping[str, Any]:
        begun.set()
        go.wait(WAIT_S)
        raise RestartRequested({"step": "restarting"})

    device.operations["test.restart"] = restart
    job = device.desk.create({"operation": "test.restart"}, "j")
    await asyncio.to_thread(begun.wait, WAIT_S)
    await device.connection.stop()
    device.desk.cancel(job, force=True)
    go.set()
    device.connection.start()
    device.count.steps(3)
    await device.until(device.desk.create(COUNT, "next"), "SUCCEEDED")
    assert device.restarts == 0


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"execution": 5}', b'{"execution": {"jobId": 7}}', b"\xff"])
async def test_garbage_on_the_topic_of_new_jobs_does_no_harm(
    device: Device, cloud: LocalCloud, payload: bytes
) -> None:
    other = cloud.connect(cloud.thing("other"))
    for _ in range(3):
        other.publish(f"$aws/things/{device.thing}/jobs/notify-next", payload)
    other.quiet()
    cloud.close_clients()
    device.count.steps(3)
    await device.until(device.desk.create(COUNT, "j"), "SUCCEEDED")


# -- what is not allowed ------------------------------------------------------------------------------------------


async def test_an_agent_whose_policy_knows_no_jobs_keeps_its_link_and_asks_for_none(cloud: LocalCloud, caplog) -> None:
    """As one has that was set up before there were jobs: to ask would end the link, again and again."""
    arn = "arn:aws:iot:us-east-1:123456789012:"
    older = [
        {"Effect": "Allow", "Action": "iot:Connect", "Resource": f"{arn}client/*"},
        {"Effect": "Allow", "Action": "iot:*", "Resource": [f"{arn}topic*/$aws/things/older/shadow/*"]},
    ]
    device = await Device(cloud, cloud.thing("older", {"Version": "2012-10-17", "Statement": older})).start()
    job = device.desk.create(COUNT, "j")
    await until(lambda: "no jobs are taken" in caplog.text)
    assert device.connection.connected.is_set()
    assert "lost" not in caplog.text, "the link"
    cloud.fault("cut")
    await until(lambda: caplog.text.count("no jobs are taken") == 2)
    assert device.desk.get(job)["status"] == "QUEUED"
    assert "cannot be attended to" not in caplog.text, "it did not even ask"
    await device.stop()
