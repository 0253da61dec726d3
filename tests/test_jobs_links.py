"""Jobs of AWS IoT where links are lost, the agent is restarted, or something is not allowed."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from conftest import WAIT_S
from jobs_device import COUNT, Device
from local_cloud import LocalCloud, until

from agent.cloud.jobs import Job, RestartRequested
from agent.cloud.restarting import RUN


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
async def test_garbage_on_the_topic_of_new_jobs_does_no_harm(device: Device, cloud: LocalCloud, payload: bytes) -> None:
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
