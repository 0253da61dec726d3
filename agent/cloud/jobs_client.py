"""The SDK's client of AWS IoT Jobs, for one thing. The only module that knows it."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from awsiot import ServiceStreamOptions
from awsiot.iotjobs import (
    DescribeJobExecutionRequest,
    IotJobsClientV2,
    NextJobExecutionChangedSubscriptionRequest,
    StartNextPendingJobExecutionRequest,
    UpdateJobExecutionRequest,
)

from agent.cloud.service_client import ServiceClient, client_options, is_version
from agent.errors import AgentError
from agent.protocol.job_document import Details

SUBSCRIPTIONS: Final = 4
"""start-next, get and update of one job, and one to spare."""

IN_PROGRESS: Final = "IN_PROGRESS"
SUCCEEDED: Final = "SUCCEEDED"
FAILED: Final = "FAILED"
REJECTED: Final = "REJECTED"

VERSION_MISMATCH: Final = "VersionMismatch"
INVALID_REQUEST: Final = "InvalidRequest"
GONE: Final = frozenset({"ResourceNotFound", "TerminalStateReached", "InvalidStateTransition"})
"""Answers of the service that mean: this execution is no longer under way."""


class Execution(NamedTuple):
    """One job on this device, as the service has it; `number` tells it from an earlier one with the same id."""

    id: str
    number: int | None
    version: int
    status: str
    document: Any
    details: Details


class JobRefusedError(AgentError):
    """The service refused with `code`; without one, it could not be asked, or its answer not be read.

    `status` and `version` are the execution's, where the service told them.
    """

    def __init__(self, message: str, code: str | None = None, status: str = "", version: int = 0) -> None:
        super().__init__(message)
        self.code: Final = code
        self.status: Final = status
        self.version: Final = version


class JobsClient(ServiceClient):
    """What a device asks of the service. All methods belong to the event loop and raise JobRefusedError."""

    def __init__(self, thing_name: str, on_next: Callable[[], None]) -> None:
        """`on_next` runs on the loop: another job is next now, or none, or that may have been missed."""
        super().__init__("new jobs", on_next)
        self._thing: Final = thing_name
        self._on_next: Final = on_next

    async def start_next(self, step_timeout_minutes: int) -> Execution | None:
        """Begin the next job, or go on with the one that is in progress; None where there is none."""
        request = StartNextPendingJobExecutionRequest(
            thing_name=self._thing, step_timeout_in_minutes=step_timeout_minutes
        )
        answer = await self._answer(self._service.start_next_pending_job_execution(request))
        return _execution(answer.execution) if answer.execution else None

    async def describe(self, execution: Execution) -> Execution:
        """The same execution as the service has it now."""
        request = DescribeJobExecutionRequest(
            thing_name=self._thing,
            job_id=execution.id,
            execution_number=execution.number,
            include_job_document=False,
        )
        answer = await self._answer(self._service.describe_job_execution(request))
        return _execution(answer.execution)

    async def update(
        self, execution: Execution, status: str, details: Details | None, step_timeout_minutes: int | None
    ) -> int:
        """Set status and details, if the execution still has this version; returns the new version."""
        request = UpdateJobExecutionRequest(
            thing_name=self._thing,
            job_id=execution.id,
            execution_number=execution.number,
            expected_version=execution.version,
            include_job_execution_state=True,
            status=status,
            status_details=details,
            step_timeout_in_minutes=step_timeout_minutes,
        )
        state = (await self._answer(self._service.update_job_execution(request))).execution_state
        if state is None or not is_version(state.version_number):
            raise JobRefusedError("the jobs service answered without a version")
        return int(state.version_number)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _make(self, client: Any) -> Any:
        return IotJobsClientV2(client, client_options(SUBSCRIPTIONS))

    def _open(self, service: Any, options: ServiceStreamOptions) -> Any:
        request = NextJobExecutionChangedSubscriptionRequest(thing_name=self._thing)
        return service.create_next_job_execution_changed_stream(request, options)

    def _heard(self, event: Any) -> None:
        del event  # it says which job is next; `start_next` says that of the moment at which it is asked
        self._on_next()

    def _refusal(self, message: str, modeled: Any) -> AgentError:
        code = modeled.code if modeled and isinstance(modeled.code, str) else None
        state = modeled.execution_state if modeled else None
        version = state.version_number if state and is_version(state.version_number) else 0
        return JobRefusedError(message, code, str(state.status) if state else "", version)


def _execution(data: Any) -> Execution:
    if data is None or not isinstance(data.job_id, str) or not is_version(data.version_number):
        raise JobRefusedError("the jobs service answered without an id or a version")
    details = data.status_details if isinstance(data.status_details, dict) else {}
    number = data.execution_number if is_version(data.execution_number) else None
    return Execution(
        data.job_id,
        number,
        data.version_number,
        str(data.status),
        data.job_document,
        {str(name): str(value) for name, value in details.items()},
    )
