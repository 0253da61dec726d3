"""What a set-up asks of an AWS account, and the account that only shows it.

A call is named as boto3 names it, service and operation: `iot.create_thing`.
"""

import json
import os
import shlex
from collections.abc import Callable
from typing import Any, Final, Protocol

from agent.cloud.policy import partition_of


class Calls(Protocol):
    """What the set-up asks of an account. Each method raises AgentError that names the call."""

    region: str
    partition: str

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Make the call; its answer."""

    def find(self, operation: str, **parameters: Any) -> dict[str, Any] | None:
        """Make the call; None if what it asks for does not exist."""

    def list(self, operation: str, key: str, **parameters: Any) -> list[Any]:
        """Make the call for every page; what stands under `key` in the answers."""


class Plan:
    """Shows each call and makes none: the account is taken to hold nothing yet."""

    ANSWERS: Final[dict[str, dict[str, Any]]] = {
        "sts.get_caller_identity": {"Account": "ACCOUNT"},
        "iot.describe_endpoint": {"endpointAddress": "ENDPOINT"},
        "iot.create_certificate_from_csr": {"certificateArn": "CERTIFICATE_ARN", "certificateId": "CERTIFICATE_ID"},
    }

    def __init__(self, region: str | None, say: Callable[[str], None]) -> None:
        self.region: str = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "REGION"
        self.partition: str = partition_of(self.region)
        self._say: Final = say

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        shown = [f"{name}={_shown(value)}" for name, value in parameters.items()]
        self._say(" ".join([operation, *shown]))
        return self.ANSWERS.get(operation, {})

    def find(self, operation: str, **parameters: Any) -> None:
        self.call(operation, **parameters)

    def list(self, operation: str, key: str, **parameters: Any) -> list[Any]:  # noqa: ARG002  as the protocol has it
        self.call(operation, **parameters)
        return []


def _shown(value: Any) -> str:
    return shlex.quote(value) if isinstance(value, str) else json.dumps(value)
