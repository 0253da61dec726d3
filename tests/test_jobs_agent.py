"""Jobs of AWS IoT as a whole agent carries them out: killed, restarted, cut off, and answering all the while."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import AgentProcess, Client, wait_until
from jobs_agent import WORK
from local_cloud import ANSWER, CLOUD_ONLY, QUESTION, QUICK, Desk, LocalCloud, first

from agent.local_cloud.mosquitto import free_port

COUNT = {"operation": "test.count", "to": 4}


class Device(AgentProcess):
    program = (sys.executable, str(Path(__file__).with_name("jobs_agent.py")))

    def may_count_to(self, last: int) -> None:
        for number in range(last):
            (self.data_dir / f"go-{number}").touch()

    @property
    def work(self) -> list[str]:
        file = self.data_dir / WORK
        return file.read_text().splitlines() if file.exists() else []

    def until_work(self, last: str) -> None:
        wait_until(lambda: self.work[-1:] == [last])

    def ended_with(self, timeout_s: float = 20.0) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)


@pytest.fixture
def device(cloud: LocalCloud, sample_data_dir: Path) -> Iterator[Device]:
    agent = Device(sample_data_dir, free_port(), config=cloud.config("device"), **CLOUD_ONLY, **QUICK)
    yield agent.start()
    if agent.process and agent.process.poll() is None:
        agent.stop(signal.SIGKILL)


@pytest.fixture
def desk(cloud: LocalCloud) -> Desk:
    return Desk(cloud, "device")


def test_a_job_runs_to_its_end_and_questions_are_answered_meanwhile(device: Device, desk: Desk, app: Client) -> None:
    """The case of job completion of AWS's Device Advisor, and more."""
    desk.create(COUNT, "job")
    desk.until("job", "IN_PROGRESS")
    assert first(app.ask(QUESTION)) == ANSWER
    device.may_count_to(4)
    desk.until("job", "SUCCEEDED", counted="4")


def test_a_job_goes_on_after_kill_9_from_where_it_was_told_to_stand(device: Device, desk: Desk) -> None:
    job = desk.create(COUNT, "job")
    device.may_count_to(2)
    held = desk.until(job, "IN_PROGRESS", done="2")
    device.stop(signal.SIGKILL)
    device.may_count_to(4)
    assert desk.get(job)["statusDetails"] == held["statusDetails"]
    device.start()
    desk.until(job, "SUCCEEDED", counted="4")
    assert device.work == ["job 0", "job 1", "job 2", "job 3"]


def test_an_agent_that_is_stopped_in_mid_run_ends_in_time_and_goes_on_when_it_is_back(
    device: Device, desk: Desk
) -> None:
    job = desk.create(COUNT, "job")
    device.may_count_to(1)
    desk.until(job, "IN_PROGRESS", done="1")
    assert device.stop() == 0
    assert desk.get(job)["status"] == "IN_PROGRESS"
    device.may_count_to(4)
    device.start()
    desk.until(job, "SUCCEEDED", counted="4")


def test_a_job_to_restart_ends_the_agent_in_order_and_succeeds_in_the_next_run(device: Device, desk: Desk) -> None:
    job = desk.create({"operation": "agent.restart"}, "job")
    assert device.ended_with() == 0
    told = desk.get(job)
    assert (told["status"], told["statusDetails"]["step"]) == ("IN_PROGRESS", "restarting")
    device.start()
    ended = desk.until(job, "SUCCEEDED", step="restarted")
    assert ended["statusDetails"]["run"] != told["statusDetails"]["run"]
    desk.until(desk.create({"operation": "test.count", "to": 0}, "next"), "SUCCEEDED")
    assert device.process is not None
    assert device.process.poll() is None, "once is enough"


def test_a_whole_agent_lets_go_of_jobs_that_are_no_longer_its_own(device: Device, desk: Desk) -> None:
    device.may_count_to(1)
    for what in ("cancelled", "deleted", "late"):
        desk.create(COUNT, what, timeout_minutes=0.02 if what == "late" else None)
        device.until_work(f"{what} 0")
        if what != "late":
            (desk.cancel if what == "cancelled" else desk.delete)(what, force=True)
        device.until_work(f"{what} told to end")
    device.may_count_to(4)
    desk.until(desk.create(COUNT, "next"), "SUCCEEDED")
    assert [desk.get(job)["status"] for job in ("cancelled", "late")] == ["CANCELED", "TIMED_OUT"]


def test_the_end_of_a_job_is_told_once_a_frozen_link_is_replaced(device: Device, desk: Desk, cloud: LocalCloud) -> None:
    job = desk.create(COUNT, "job")
    device.may_count_to(1)
    device.until_work("job 0")
    cloud.fault("freeze")
    device.may_count_to(4)
    wait_until(lambda: len(device.work) == 4)
    assert desk.get(job)["status"] == "IN_PROGRESS"
    cloud.fault("clear")
    cloud.fault("cut")
    desk.until(job, "SUCCEEDED", counted="4")
