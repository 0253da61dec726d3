"""AWS IoT Jobs of one thing, as the service keeps them: what a request makes of them, and what is said of it. Pure.

What devices ask (`pending`, `start_next`, `describe`, `update`) and what operators do (`create`, `cancel`, `delete`)
take a `Ledger` and give it back as it is then, with the answer. A request that is refused raises JobsError, whose code
is the service's own. `notices` are what is told after a change.
"""

import re
import unicodedata
from typing import Any, Final, NamedTuple

import msgspec

from agent.protocol.limits import IOT_CORE, Limits

Document = dict[str, Any]

QUEUED: Final = "QUEUED"
IN_PROGRESS: Final = "IN_PROGRESS"
TIMED_OUT: Final = "TIMED_OUT"
CANCELED: Final = "CANCELED"
SET_BY_DEVICES: Final = (IN_PROGRESS, "SUCCEEDED", "FAILED", "REJECTED")
PENDING: Final = (IN_PROGRESS, QUEUED)

NEXT: Final = "$next"
JOB_ID: Final = re.compile(r"[a-zA-Z0-9_-]+")
NO_TIMER: Final = -1
DETAIL_NAME: Final = re.compile(r"[a-zA-Z0-9:_-]+")


class JobsError(Exception):
    """A request is refused: what goes out on `/rejected`."""

    def __init__(self, code: str, message: str, execution: "Execution | None" = None) -> None:
        super().__init__(message)
        self.code: Final = code
        self.message: Final = message
        self.execution: Final = execution

    def document(self, now: float) -> Document:
        answer = {"code": self.code, "message": self.message, "timestamp": int(now)}
        return answer | ({"executionState": self.execution.state} if self.execution else {})


class Execution(msgspec.Struct, frozen=True):
    """One job on one thing. Times are seconds since 1970."""

    id: str
    number: int
    document: Document
    queued_at: int
    updated_at: int
    started_at: int | None = None
    status: str = QUEUED
    details: dict[str, str] = {}
    version: int = 1
    timeout_minutes: float | None = None
    deadline: float | None = None
    """Of the whole job, once it is in progress."""
    step_deadline: float | None = None

    @property
    def pending(self) -> bool:
        return self.status in PENDING

    @property
    def state(self) -> Document:
        found = {"status": self.status, "versionNumber": self.version}
        return found | ({"statusDetails": self.details} if self.details else {})

    @property
    def summary(self) -> Document:
        found = {
            "jobId": self.id,
            "queuedAt": self.queued_at,
            "startedAt": self.started_at,
            "lastUpdatedAt": self.updated_at,
            "versionNumber": self.version,
            "executionNumber": self.number,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def ends_at(self) -> float | None:
        """When it times out, as it stands now."""
        deadlines = [at for at in (self.deadline, self.step_deadline) if at is not None]
        return min(deadlines) if self.status == IN_PROGRESS and deadlines else None

    def data(self, thing: str, *, document: bool = True) -> Document:
        found = self.summary | self.state | {"thingName": thing}
        return found | ({"jobDocument": self.document} if document else {})

    def shown(self, thing: str, now: float) -> Document:
        """The same for an operator, who also sees how much time it has."""
        left = {} if self.ends_at is None else {"approximateSecondsBeforeTimedOut": int(self.ends_at - now)}
        return self.data(thing) | left


class Ledger(msgspec.Struct, frozen=True):
    """All jobs of a thing that were not deleted, in the order in which they were created."""

    executions: tuple[Execution, ...] = ()
    created: int = 0

    @property
    def next(self) -> Execution | None:
        """What is in progress comes before what is queued."""
        return next((one for status in PENDING for one in self.executions if one.status == status), None)

    def find(self, job_id: str) -> Execution:
        for one in self.executions:
            if one.id == job_id:
                return one
        raise JobsError("ResourceNotFound", f"no execution of job {job_id}")

    def replaced(self, new: Execution) -> "Ledger":
        kept = tuple(new if one.id == new.id else one for one in self.executions)
        return msgspec.structs.replace(self, executions=kept)


class Change(NamedTuple):
    """What a request made: the jobs as they are now, and the answer."""

    ledger: Ledger
    answer: Document


# -- what devices ask ---------------------------------------------------------------------------------------------


def pending(ledger: Ledger, request: Document, thing: str, now: float, limits: Limits = IOT_CORE) -> Change:
    del request, thing, now
    return Change(ledger, {name: _listed(ledger, status, limits) for name, status in _LISTS.items()})


def start_next(ledger: Ledger, request: Document, thing: str, now: float, limits: Limits = IOT_CORE) -> Change:
    """Begin the next one; what is in progress already stays as it is, its time for a step too."""
    details, minutes = _details(request, limits), _step_timeout(request, limits)
    found = ledger.next
    if found is None:
        return Change(ledger, {})
    if found.status == QUEUED:
        found = _updated(found, IN_PROGRESS, details or {}, minutes, now)
        ledger = ledger.replaced(found)
    return Change(ledger, {"execution": found.data(thing)})


def describe(
    ledger: Ledger, job_id: str, request: Document, thing: str, now: float, limits: Limits = IOT_CORE
) -> Change:
    del now, limits
    document = _flag(request, "includeJobDocument", default=True)
    if job_id == NEXT:
        following = ledger.next
        return Change(ledger, {"execution": following.data(thing, document=document)} if following else {})
    found = _numbered(ledger, job_id, request)
    if not found.pending:
        raise JobsError("TerminalStateReached", f"job {job_id} is {found.status}")
    return Change(ledger, {"execution": found.data(thing, document=document)})


def update(ledger: Ledger, job_id: str, request: Document, thing: str, now: float, limits: Limits = IOT_CORE) -> Change:
    del thing
    status, details, minutes = request.get("status"), _details(request, limits), _step_timeout(request, limits)
    if status not in SET_BY_DEVICES:
        raise JobsError("InvalidRequest", f"status: {status!r}; expected one of {', '.join(SET_BY_DEVICES)}")
    expected = _whole(request, "expectedVersion")
    with_state = _flag(request, "includeJobExecutionState", default=False)
    with_document = _flag(request, "includeJobDocument", default=False)
    found = _numbered(ledger, job_id, request)
    if not found.pending:
        raise JobsError("InvalidStateTransition", f"from {found.status} to {status}", found)
    if expected is not None and expected != found.version:
        raise JobsError("VersionMismatch", f"expected version {expected}, it is {found.version}", found)
    new = _updated(found, status, found.details if details is None else details, minutes, now)
    answer: Document = {"executionState": new.state} if with_state else {}
    return Change(ledger.replaced(new), answer | ({"jobDocument": new.document} if with_document else {}))


def _updated(found: Execution, status: str, details: dict[str, str], step_minutes: int | None, now: float) -> Execution:
    started = found.started_at is not None
    limit_s = found.timeout_minutes * 60 if found.timeout_minutes is not None else None
    step = found.step_deadline
    if step_minutes is not None:
        step = None if step_minutes == NO_TIMER else now + step_minutes * 60
    return msgspec.structs.replace(
        found,
        status=status,
        details=details,
        version=found.version + 1,
        started_at=found.started_at if started else int(now),
        updated_at=int(now),
        deadline=found.deadline if started or limit_s is None else now + limit_s,
        step_deadline=step,
    )


# -- what operators do, and time ----------------------------------------------------------------------------------


def create(
    ledger: Ledger,
    job_id: str,
    document: Any,
    timeout_minutes: float | None,
    now: float,
    limits: Limits = IOT_CORE,
) -> Change:
    if not JOB_ID.fullmatch(job_id) or len(job_id) > limits.job_id_characters:
        raise JobsError(
            "InvalidRequest", f"{job_id!r} is no job id: letters, digits, '_', '-', at most {limits.job_id_characters}"
        )
    if not isinstance(document, dict):
        raise JobsError("InvalidRequest", "a job document is a JSON object")
    if len(msgspec.json.encode(document)) > limits.job_document_bytes:
        raise JobsError("InvalidRequest", f"a job document has {limits.job_document_bytes} bytes at most")
    if any(one.id == job_id for one in ledger.executions):
        raise JobsError("ResourceAlreadyExists", f"there is a job {job_id}")
    new = Execution(job_id, ledger.created + 1, document, int(now), int(now), timeout_minutes=timeout_minutes)
    return Change(Ledger((*ledger.executions, new), ledger.created + 1), {"jobId": job_id})


def cancel(ledger: Ledger, job_id: str, now: float, *, force: bool) -> Change:
    """What is in progress is canceled only by force."""
    found = ledger.find(job_id)
    _refuse_unless(found, "cancel", allowed=found.status == QUEUED or (found.status == IN_PROGRESS and force))
    new = msgspec.structs.replace(found, status=CANCELED, updated_at=int(now))
    return Change(ledger.replaced(new), {"jobId": job_id, "status": CANCELED})


def delete(ledger: Ledger, job_id: str, *, force: bool) -> Change:
    """What has not ended is deleted only by force."""
    found = ledger.find(job_id)
    _refuse_unless(found, "delete", allowed=not found.pending or force)
    kept = tuple(one for one in ledger.executions if one is not found)
    return Change(msgspec.structs.replace(ledger, executions=kept), {"jobId": job_id})


def _refuse_unless(found: Execution, action: str, *, allowed: bool) -> None:
    if not allowed:
        hint = "; --force does it" if found.pending else ""
        raise JobsError("InvalidStateTransition", f"cannot {action} job {found.id}: it is {found.status}{hint}", found)


def timed_out(ledger: Ledger, now: float) -> Ledger:
    """End what is past its time; the same ledger where nothing is."""
    for one in ledger.executions:
        if one.ends_at is not None and one.ends_at <= now:
            ledger = ledger.replaced(msgspec.structs.replace(one, status=TIMED_OUT, updated_at=int(now)))
    return ledger


def notices(before: Ledger, after: Ledger, thing: str, now: float, limits: Limits = IOT_CORE) -> dict[str, Document]:
    """What is told of a change, by the last part of the topic."""

    def of(ledger: Ledger) -> list[tuple[int, str]]:
        return [(one.number, one.status) for one in ledger.executions if one.pending]

    messages: dict[str, Document] = {}
    if of(before) != of(after):
        listed = {status: _listed(after, status, limits) for status in PENDING}
        messages["notify"] = {"timestamp": int(now), "jobs": {name: jobs for name, jobs in listed.items() if jobs}}
    first, was = after.next, before.next
    if (first and first.number) != (was and was.number):
        messages["notify-next"] = {"timestamp": int(now)} | ({"execution": first.data(thing)} if first else {})
    return messages


# -- reading a request --------------------------------------------------------------------------------------------

_LISTS: Final = {"inProgressJobs": IN_PROGRESS, "queuedJobs": QUEUED}


def _listed(ledger: Ledger, status: str, limits: Limits) -> list[Document]:
    return [one.summary for one in ledger.executions if one.status == status][: limits.jobs_listed]


def parse_request(payload: bytes, limits: Limits = IOT_CORE) -> Document:
    """The payload as an object with a client token that fits; an empty one is one without fields."""
    try:
        request = msgspec.json.decode(payload or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JobsError("InvalidJson", "the payload is not valid JSON") from error
    if not isinstance(request, dict):
        raise JobsError("InvalidJson", "the payload is no JSON object")
    token = request.get("clientToken")
    if token is not None and (not isinstance(token, str) or len(token.encode()) > limits.client_token_bytes):
        raise JobsError("InvalidRequest", f"clientToken: expected a text of at most {limits.client_token_bytes} bytes")
    return request


def _numbered(ledger: Ledger, job_id: str, request: Document) -> Execution:
    found, number = ledger.find(job_id), _whole(request, "executionNumber")
    if number is not None and number != found.number:
        raise JobsError("ResourceNotFound", f"no execution {number} of job {job_id}")
    return found


def _whole(request: Document, name: str) -> int | None:
    value = request.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise JobsError("InvalidRequest", f"{name}: expected a whole number")
    return value


def _flag(request: Document, name: str, *, default: bool) -> bool:
    value = request.get(name, default)
    if not isinstance(value, bool):
        raise JobsError("InvalidRequest", f"{name}: expected true or false")
    return value


def _step_timeout(request: Document, limits: Limits) -> int | None:
    minutes = _whole(request, "stepTimeoutInMinutes")
    if minutes is not None and minutes != NO_TIMER and not 1 <= minutes <= limits.job_timeout_minutes:
        raise JobsError("InvalidRequest", f"stepTimeoutInMinutes: expected 1 to {limits.job_timeout_minutes}, or -1")
    return minutes


def _details(request: Document, limits: Limits) -> dict[str, str] | None:
    details = request.get("statusDetails")
    if details is None:
        return None
    if not isinstance(details, dict) or len(details) > limits.status_details:
        raise JobsError("InvalidRequest", f"statusDetails: expected an object of at most {limits.status_details} pairs")
    for name, value in details.items():
        if not DETAIL_NAME.fullmatch(name) or len(name) > limits.status_detail_name_characters:
            raise JobsError("InvalidRequest", f"statusDetails: {name!r} is no name")
        if not isinstance(value, str) or not 1 <= len(value) <= limits.status_detail_characters:
            most = limits.status_detail_characters
            raise JobsError("InvalidRequest", f"statusDetails.{name}: expected a text of 1 to {most} characters")
        if any(unicodedata.category(one).startswith("C") for one in value):
            raise JobsError("InvalidRequest", f"statusDetails.{name}: control characters")
    return details
