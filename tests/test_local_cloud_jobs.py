"""AWS IoT Jobs as the service keeps them: its documented rules, a case a line. No network."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.local_cloud import jobs as rules
from agent.local_cloud.jobs import PENDING, SET_BY_DEVICES, JobsError, Ledger
from agent.local_cloud.jobs_service import Asked, JobsService, JobsStore, parse_topic
from agent.protocol.job_document import fitting
from agent.protocol.limits import IOT_CORE

NOW = 1_700_000_000
DOCUMENT = {"operation": "corpus.update"}
TERMINAL = ("SUCCEEDED", "FAILED", "REJECTED", "TIMED_OUT", "CANCELED")


def created(*ids: str, timeout_minutes: float | None = None) -> Ledger:
    ledger = Ledger()
    for number, job_id in enumerate(ids):
        ledger = rules.create(ledger, job_id, DOCUMENT, timeout_minutes, NOW + number).ledger
    return ledger


def updated(ledger: Ledger, job_id: str, status: str, now: float = NOW, **request: Any) -> Ledger:
    return rules.update(ledger, job_id, {"status": status, **request}, "t", now).ledger


def in_state(status: str) -> Ledger:
    """One job `j` that has come to this status in the way that it can."""
    ledger = created("j", timeout_minutes=1)
    if status in SET_BY_DEVICES:
        return updated(ledger, "j", status)
    if status == "TIMED_OUT":
        return rules.timed_out(updated(ledger, "j", "IN_PROGRESS"), NOW + 60)
    return rules.cancel(ledger, "j", NOW, force=False).ledger if status == "CANCELED" else ledger


def code_of(action: Callable[[], Any]) -> str:
    try:
        action()
    except JobsError as error:
        return error.code
    return "accepted"


@pytest.mark.parametrize("to", SET_BY_DEVICES)
@pytest.mark.parametrize("status", [*PENDING, *TERMINAL])
def test_a_device_may_change_what_is_pending_and_nothing_that_has_ended(status: str, to: str) -> None:
    ledger = in_state(status)
    assert ledger.find("j").status == status
    version = ledger.find("j").version
    if status in PENDING:
        after = updated(ledger, "j", to).find("j")
        assert (after.status, after.version) == (to, version + 1)
        return
    with pytest.raises(JobsError) as refused:
        updated(ledger, "j", to)
    told = refused.value.document(NOW)
    assert (told["code"], told["executionState"]["status"]) == ("InvalidStateTransition", status)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("status", [*PENDING, *TERMINAL])
def test_an_operator_cancels_what_is_pending_and_by_force_what_is_in_progress(status: str, force: bool) -> None:
    allowed = status == "QUEUED" or (status == "IN_PROGRESS" and force)
    code = code_of(lambda: rules.cancel(in_state(status), "j", NOW, force=force))
    assert code == ("accepted" if allowed else "InvalidStateTransition")
    code = code_of(lambda: rules.delete(in_state(status), "j", force=force))
    assert code == ("accepted" if status in TERMINAL or force else "InvalidStateTransition")


# fmt: off
REFUSALS = [
    pytest.param({}, "InvalidRequest", id="no status"),
    pytest.param({"status": "QUEUED"}, "InvalidRequest", id="a status that no device sets"),
    pytest.param({"status": "CANCELED"}, "InvalidRequest", id="a status that operators set"),
    pytest.param({"status": "FAILED", "expectedVersion": 1}, "VersionMismatch", id="a stale version"),
    pytest.param({"status": "FAILED", "expectedVersion": 3}, "VersionMismatch", id="a version to come"),
    pytest.param({"status": "FAILED", "expectedVersion": "2"}, "InvalidRequest", id="version a text"),
    pytest.param({"status": "FAILED", "expectedVersion": True}, "InvalidRequest", id="version true"),
    pytest.param({"status": "FAILED", "executionNumber": 2}, "ResourceNotFound", id="another execution"),
    pytest.param({"status": "FAILED", "includeJobExecutionState": 1}, "InvalidRequest", id="a flag that is a number"),
    pytest.param({"status": "FAILED", "statusDetails": []}, "InvalidRequest", id="details a list"),
    pytest.param({"status": "FAILED", "statusDetails": {"a": 1}}, "InvalidRequest", id="a detail that is a number"),
    pytest.param({"status": "FAILED", "statusDetails": {"a": ""}}, "InvalidRequest", id="a detail that is empty"),
    pytest.param({"status": "FAILED", "statusDetails": {"a": "x" * 1025}}, "InvalidRequest", id="a detail too long"),
    pytest.param({"status": "FAILED", "statusDetails": {"a": "x\n"}}, "InvalidRequest", id="a control character"),
    pytest.param({"status": "FAILED", "statusDetails": {"a.b": "x"}}, "InvalidRequest", id="a name with a point"),
    pytest.param({"status": "FAILED", "statusDetails": {"a" * 129: "x"}}, "InvalidRequest", id="a name too long"),
    pytest.param({"status": "FAILED", "statusDetails": {f"a{n}": "x" for n in range(11)}}, "InvalidRequest", id="eleven details"),
    pytest.param({"status": "IN_PROGRESS", "stepTimeoutInMinutes": 0}, "InvalidRequest", id="a step of no time"),
    pytest.param({"status": "IN_PROGRESS", "stepTimeoutInMinutes": 10_081}, "InvalidRequest", id="a step of more than a week"),
    pytest.param({"status": "IN_PROGRESS", "stepTimeoutInMinutes": 1.5}, "InvalidRequest", id="a step of one and a half"),
    pytest.param({"status": "FAILED", "expectedVersion": 2, "executionNumber": 1, "stepTimeoutInMinutes": 1,
                  "statusDetails": {"a:b_c-D": "ü" * 1024}}, "accepted", id="all that may be there"),
    pytest.param({"status": "IN_PROGRESS", "stepTimeoutInMinutes": -1}, "accepted", id="a step without end"),
]
# fmt: on


@pytest.mark.parametrize(("request_", "code"), REFUSALS)
def test_a_bad_update_is_refused_with_the_services_code(request_: dict[str, Any], code: str) -> None:
    ledger = in_state("IN_PROGRESS")
    assert code_of(lambda: rules.update(ledger, "j", request_, "t", NOW)) == code
    if code == "VersionMismatch":
        with pytest.raises(JobsError) as refused:
            rules.update(ledger, "j", request_, "t", NOW)
        assert refused.value.document(NOW)["executionState"] == {"status": "IN_PROGRESS", "versionNumber": 2}


def test_what_is_not_there_or_has_ended_is_not_described() -> None:
    assert code_of(lambda: rules.describe(Ledger(), "j", {}, "t", NOW)) == "ResourceNotFound"
    assert code_of(lambda: rules.describe(in_state("FAILED"), "j", {}, "t", NOW)) == "TerminalStateReached"
    assert rules.describe(Ledger(), "$next", {}, "t", NOW).answer == {}
    found = rules.describe(in_state("IN_PROGRESS"), "$next", {"includeJobDocument": False}, "t", NOW).answer
    assert found["execution"] == {
        "jobId": "j", "thingName": "t", "status": "IN_PROGRESS", "queuedAt": NOW, "startedAt": NOW,
        "lastUpdatedAt": NOW, "versionNumber": 2, "executionNumber": 1,
    }  # fmt: skip


# fmt: off
@pytest.mark.parametrize(("job_id", "document", "code"), [
    ("a-B_9", DOCUMENT, "accepted"),
    ("x" * 64, {"pad": "x" * (32 * 1024 - 10)}, "accepted"),
    ("x" * 65, DOCUMENT, "InvalidRequest"),
    ("", DOCUMENT, "InvalidRequest"),
    ("$next", DOCUMENT, "InvalidRequest"),
    ("a/b", DOCUMENT, "InvalidRequest"),
    ("new", [1], "InvalidRequest"),
    ("new", {"pad": "x" * (32 * 1024 - 9)}, "InvalidRequest"),
    ("j", DOCUMENT, "ResourceAlreadyExists"),
])
# fmt: on
def test_a_job_is_created_only_as_the_service_would(job_id: str, document: Any, code: str) -> None:
    assert code_of(lambda: rules.create(created("j"), job_id, document, None, NOW)) == code


def test_details_are_kept_where_an_update_has_none_and_replaced_where_it_has() -> None:
    ledger = updated(created("j"), "j", "IN_PROGRESS", statusDetails={"a": "1", "b": "2"})
    assert updated(ledger, "j", "IN_PROGRESS").find("j").details == {"a": "1", "b": "2"}
    assert updated(ledger, "j", "IN_PROGRESS", statusDetails={"a": "3"}).find("j").details == {"a": "3"}


def test_start_next_begins_what_is_queued_and_gives_back_what_is_in_progress_as_it_is() -> None:
    ledger = created("a", "b")
    began = rules.start_next(ledger, {"statusDetails": {"by": "me"}}, "t", NOW)
    told = began.answer["execution"]
    assert (told["jobId"], told["status"], told["versionNumber"]) == ("a", "IN_PROGRESS", 2)
    assert (told["jobDocument"], told["statusDetails"]) == (DOCUMENT, {"by": "me"})
    again = rules.start_next(began.ledger, {"statusDetails": {"by": "another"}}, "t", NOW + 1)
    assert (again.answer, again.ledger) == (began.answer, began.ledger)
    assert rules.start_next(Ledger(), {}, "t", NOW).answer == {}


# -- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout_minutes", "step_minutes", "after_s", "status"),
    [
        (None, None, 1e9, "IN_PROGRESS"),
        (10, None, 599, "IN_PROGRESS"),
        (10, None, 600, "TIMED_OUT"),
        (None, 2, 119, "IN_PROGRESS"),
        (None, 2, 120, "TIMED_OUT"),
        (10, 2, 120, "TIMED_OUT"),
        (1, 2, 60, "TIMED_OUT"),
    ],
)
def test_a_job_in_progress_ends_when_its_time_or_that_of_its_step_is_over(
    timeout_minutes: float | None, step_minutes: int | None, after_s: float, status: str
) -> None:
    ledger = created("j", timeout_minutes=timeout_minutes)
    assert rules.timed_out(ledger, NOW + 1e9) is ledger, "it is not in progress yet"
    ledger = rules.start_next(ledger, {"stepTimeoutInMinutes": step_minutes}, "t", NOW).ledger
    assert rules.timed_out(ledger, NOW + after_s).find("j").status == status


def test_an_update_renews_the_time_of_a_step_and_not_that_of_the_job() -> None:
    ledger = rules.start_next(created("j", timeout_minutes=10), {"stepTimeoutInMinutes": 2}, "t", NOW).ledger
    for second in range(60, 600, 60):
        ledger = updated(ledger, "j", "IN_PROGRESS", NOW + second, stepTimeoutInMinutes=2)
        assert rules.timed_out(ledger, NOW + second + 59) is ledger
    assert rules.timed_out(ledger, NOW + 600).find("j").status == "TIMED_OUT"
    unlimited = updated(ledger, "j", "IN_PROGRESS", NOW + 541, stepTimeoutInMinutes=-1)
    assert unlimited.find("j").step_deadline is None
    kept = updated(ledger, "j", "IN_PROGRESS", NOW + 541)
    assert kept.find("j").step_deadline == ledger.find("j").step_deadline


# -- what is told ---------------------------------------------------------------------------------------------------


def test_notices_tell_of_what_is_pending_and_of_what_is_next() -> None:
    nothing, one, two = Ledger(), created("a"), created("a", "b")
    told = rules.notices(nothing, one, "t", NOW)
    assert [one["jobId"] for one in told["notify"]["jobs"]["QUEUED"]] == ["a"]
    assert told["notify-next"]["execution"]["jobDocument"] == DOCUMENT
    assert list(rules.notices(one, two, "t", NOW)) == ["notify"], "the next one is the same"
    began = updated(two, "b", "IN_PROGRESS")
    assert rules.notices(two, began, "t", NOW)["notify-next"]["execution"]["jobId"] == "b"
    assert rules.notices(began, updated(began, "b", "IN_PROGRESS", statusDetails={"a": "1"}), "t", NOW) == {}
    first = updated(one, "a", "IN_PROGRESS")
    assert list(rules.notices(one, first, "t", NOW)) == ["notify"]
    ended = rules.notices(first, updated(first, "a", "FAILED"), "t", NOW)
    assert ended == {"notify": {"timestamp": NOW, "jobs": {}}, "notify-next": {"timestamp": NOW}}
    again = rules.create(rules.delete(one, "a", force=True).ledger, "a", DOCUMENT, None, NOW).ledger
    assert rules.notices(one, again, "t", NOW)["notify-next"]["execution"]["executionNumber"] == 2


def test_no_more_than_fifteen_are_listed() -> None:
    many = created(*(f"j{number}" for number in range(20)))
    assert len(rules.pending(many, {}, "t", NOW).answer["queuedJobs"]) == 15
    assert len(rules.notices(Ledger(), many, "t", NOW)["notify"]["jobs"]["QUEUED"]) == 15


steps = st.tuples(
    st.sampled_from(["create", "start", "update", "cancel", "delete", "time"]),
    st.sampled_from("abc"),
    st.sampled_from(SET_BY_DEVICES),
    st.booleans(),
)


def after(ledger: Ledger, step: tuple[str, str, str, bool], now: float) -> Ledger:
    what, job_id, status, force = step
    match what:
        case "create":
            return rules.create(ledger, job_id, DOCUMENT, 2, now).ledger
        case "start":
            return rules.start_next(ledger, {"stepTimeoutInMinutes": 1}, "t", now).ledger
        case "update":
            return updated(ledger, job_id, status, now)
        case "cancel":
            return rules.cancel(ledger, job_id, now, force=force).ledger
        case "delete":
            return rules.delete(ledger, job_id, force=force).ledger
    return rules.timed_out(ledger, now)


@given(st.lists(steps, max_size=25))
def test_whatever_happens_what_has_ended_stays_so_versions_rise_and_the_next_job_is_the_right_one(history) -> None:
    ledger, now = Ledger(), float(NOW)
    for step in history:
        before, now = ledger, now + 30
        with suppress(JobsError):
            ledger = after(ledger, step, now)
        was = {one.number: one for one in before.executions}
        for one in ledger.executions:
            old = was.get(one.number)
            assert old is None or old == one or (old.pending and old.version <= one.version)
        pending = sorted((PENDING.index(one.status), one.number) for one in ledger.executions if one.pending)
        following, had = (kept.next and kept.next.number for kept in (ledger, before))
        assert following == (pending[0][1] if pending else None)
        told = rules.notices(before, ledger, "t", now)
        assert ("notify-next" in told) is (following != had)
        assert "notify-next" not in told or "notify" in told


# -- the service -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "asked"),
    [
        ("$aws/things/t/jobs/get", Asked("t", "get")),
        ("$aws/things/t/jobs/start-next", Asked("t", "start-next")),
        ("$aws/things/t/jobs/j/get", Asked("t", "get", "j")),
        ("$aws/things/t/jobs/$next/get", Asked("t", "get", "$next")),
        ("$aws/things/t/jobs/j/update", Asked("t", "update", "j")),
        ("$aws/things/t/jobs/nonsense", Asked("t", "nonsense")),
        ("$aws/things/t/jobs/notify", None),
        ("$aws/things/t/jobs/notify-next", None),
        ("$aws/things/t/jobs/get/accepted", None),
        ("$aws/things/t/jobs/start-next/rejected", None),
        ("$aws/things/t/shadow/get", None),
        ("$aws/things/t/jobs/j/update/accepted", None),
    ],
)
def test_a_topic_says_what_is_asked_and_of_which_job(topic: str, asked: Asked | None) -> None:
    assert parse_topic(topic) == asked
    assert asked is None or asked.topic == topic


def ask(service: JobsService, topic: str, payload: bytes) -> dict[str, Any]:
    asked = parse_topic(topic)
    assert asked
    return {one.topic: json.loads(one.payload) for one in service.answer(asked, payload)}


# fmt: off
@pytest.mark.parametrize(("topic", "payload", "code"), [
    ("get", b"", None),
    ("get", b"{", "InvalidJson"),
    ("get", b"[]", "InvalidJson"),
    ("get", b"\xff", "InvalidJson"),
    ("get", b"[" * 100_000, "InvalidJson"),
    ("get", b'{"clientToken": 7}', "InvalidRequest"),
    ("get", json.dumps({"clientToken": "x" * 65}).encode(), "InvalidRequest"),
    ("j/get", b"{}", "ResourceNotFound"),
    ("j/update", b'{"status": "FAILED"}', "ResourceNotFound"),
    ("nonsense", b"{}", "InvalidTopic"),
    ("j/nonsense", b"{}", "InvalidTopic"),
    ("j/start-next", b"{}", "InvalidTopic"),
    ("update", b"{}", "InvalidTopic"),
])
# fmt: on
def test_every_request_is_answered(tmp_path: Path, topic: str, payload: bytes, code: str | None) -> None:
    told = ask(JobsService(JobsStore(tmp_path)), f"$aws/things/t/jobs/{topic}", payload)
    assert list(told) == [f"$aws/things/t/jobs/{topic}/{'rejected' if code else 'accepted'}"]
    (answer,) = told.values()
    assert answer.get("code") == code
    assert answer["timestamp"] > NOW


def test_jobs_are_kept_over_a_restart_and_end_in_time_all_the_same(tmp_path: Path) -> None:
    clock = [float(NOW)]
    service = JobsService(JobsStore(tmp_path), lambda: clock[0])
    service.operate("create", "t", {"id": "j", "document": DOCUMENT, "timeout_minutes": 1})
    token = {"clientToken": "mine"}
    told = ask(service, "$aws/things/t/jobs/start-next", json.dumps(token).encode())
    assert list(told) == ["$aws/things/t/jobs/start-next/accepted", "$aws/things/t/jobs/notify"]
    assert told["$aws/things/t/jobs/start-next/accepted"]["clientToken"] == "mine"
    again = JobsService(JobsStore(tmp_path), lambda: clock[0])
    assert again.operate("get", "t", {"id": "j"})[0]["status"] == "IN_PROGRESS"
    clock[0] += 60
    answer, outgoing = again.operate("get", "t", {"id": "j"})
    assert answer["status"] == "TIMED_OUT"
    assert [one.topic.rpartition("/")[2] for one in outgoing] == ["notify", "notify-next"]


# -- AWS's own description of the service -------------------------------------------------------------------------


def test_fields_and_limits_are_those_of_awss_own_model_of_the_service() -> None:
    session = botocore.session.get_session()
    data, control = (session.get_service_model(name) for name in ("iot-jobs-data", "iot"))

    def fields(shape: str) -> set[str]:
        return set(data.shape_for(shape).members)

    began = rules.start_next(created("j", timeout_minutes=1), {"statusDetails": {"a": "1"}}, "t", NOW)
    (execution,) = began.ledger.executions
    assert set(execution.shown("t", NOW)) == fields("JobExecution")
    assert set(execution.state) == fields("JobExecutionState")
    assert set(execution.summary) == fields("JobExecutionSummary")
    assert set(rules.pending(began.ledger, {}, "t", NOW).answer) == fields("GetPendingJobExecutionsResponse")
    assert {*PENDING, *TERMINAL, "REMOVED"} == set(data.shape_for("JobExecutionStatus").enum)
    for model in (data, control):
        job_id, name = model.shape_for("JobId").metadata, model.shape_for("DetailsKey").metadata
        assert (IOT_CORE.job_id_characters, rules.JOB_ID.pattern) == (job_id["max"], job_id["pattern"])
        assert IOT_CORE.status_detail_name_characters == name["max"]
        assert rules.DETAIL_NAME.pattern == name["pattern"]
        assert model.shape_for("DetailsValue").metadata == {"min": 1, "pattern": r"[^\p{C}]+"}
        assert IOT_CORE.job_document_bytes == model.shape_for("JobDocument").metadata["max"]
    stepped = data.operation_model("UpdateJobExecution").input_shape.members["stepTimeoutInMinutes"].documentation
    assert f"1 to {IOT_CORE.job_timeout_minutes}" in stepped
    assert f"1 to {IOT_CORE.job_timeout_minutes}" in control.shape_for("TimeoutConfig").members[
        "inProgressTimeoutInMinutes"
    ].documentation


# -- what the agent tells --------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=140), st.text(max_size=1100) | st.integers() | st.none(), max_size=14))
def test_details_that_the_agent_tells_are_such_as_the_service_takes(details: dict[str, Any]) -> None:
    fit = fitting(details)
    assert code_of(lambda: updated(in_state("IN_PROGRESS"), "j", "IN_PROGRESS", statusDetails=fit)) == "accepted"
    assert fitting(fit) == fit
