"""Calls to an AWS account, through boto3; each failure names the call and says what to do about it."""

import os
from collections.abc import Callable
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    UnknownRegionError,
)
from botocore.exceptions import (
    ConnectionError as UnreachableError,
)

from agent.errors import AgentError

PAGE: Final = "docs/aws.md"
_SETTINGS: Final = Config(connect_timeout=10, read_timeout=30, retries={"mode": "standard", "max_attempts": 5})
_ABSENT: Final = "ResourceNotFoundException"
_CREDENTIALS_HINT: Final = (
    "give AWS credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or `aws configure`"
)
# What becomes of a refused call, by the error code that the service gives.
_DENIED: Final = (
    "AccessDenied",
    "UnauthorizedException",
    "UnauthorizedOperation",
    "NotAuthorized",
    "ForbiddenException",
)
_INVALID: Final = ("UnrecognizedClient", "InvalidClientTokenId", "ExpiredToken", "InvalidAccessKeyId", "AuthFailure")
_SIGNATURE: Final = ("SignatureDoesNotMatch", "InvalidSignature", "RequestExpired", "RequestTimeTooSkewed")
_THROTTLED: Final = ("Throttling", "TooManyRequests", "RequestLimitExceeded", "ServiceUnavailable", "InternalFailure")
_CREDENTIAL_ERRORS: Final = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    ProfileNotFound,
    SSOError,
)


class Account:
    """The account of the credentials that boto3 finds."""

    def __init__(self, region: str | None) -> None:
        """Without a region, the one of the AWS settings. Raises AgentError without either."""
        region = region or os.environ.get("AWS_REGION")  # which the AWS command line reads and boto3 does not
        try:
            self._session: Final = boto3.session.Session(region_name=region)
            if not self._session.region_name:
                raise AgentError("no AWS region", hint="give --region, or set AWS_REGION")
            self.region: str = self._session.region_name
            self.partition: str = self._session.get_partition_for_region(self.region)
        except UnknownRegionError as error:
            raise AgentError(f"{region or self._session.region_name} is no AWS region") from error
        except BotoCoreError as error:
            raise _explained("AWS settings", error) from error
        self._clients: Final[dict[str, Any]] = {}

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        return dict(self._made(operation, lambda client, name: getattr(client, name)(**parameters)))

    def find(self, operation: str, **parameters: Any) -> dict[str, Any] | None:
        try:
            return self.call(operation, **parameters)
        except AgentError as error:
            if isinstance(error.__cause__, ClientError) and _code(error.__cause__) == _ABSENT:
                return None
            raise

    def list(self, operation: str, key: str, **parameters: Any) -> list[Any]:
        def pages(client: Any, name: str) -> list[Any]:
            found = client.get_paginator(name).paginate(**parameters)
            return [one for page in found for one in page.get(key, [])]

        return list(self._made(operation, pages))

    def _made(self, operation: str, make: Callable[[Any, str], Any]) -> Any:
        service, name = operation.split(".")
        try:
            if service not in self._clients:
                self._clients[service] = self._session.client(service, config=_SETTINGS)
            return make(self._clients[service], name)
        except (BotoCoreError, ClientError) as error:
            raise _explained(operation, error) from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _explained(operation: str, error: Exception) -> AgentError:
    """Say which call failed, why, and what to do."""
    if isinstance(error, ClientError):
        code = _code(error)
        reason = error.response.get("Error", {}).get("Message") or "no reason given"
        return AgentError(f"{operation} failed: {code}: {reason}", hint=_hint(operation, code))
    hint = None
    if isinstance(error, _CREDENTIAL_ERRORS):
        hint = _CREDENTIALS_HINT
    elif isinstance(error, NoRegionError):
        hint = "give --region, or set AWS_REGION"
    elif isinstance(error, HTTPClientError | UnreachableError):
        hint = "is there a network, and does the region exist? Run it again: it goes on from what is there"
    return AgentError(f"{operation} failed: {error}", hint=hint)


def _hint(operation: str, code: str) -> str | None:
    if code.startswith(_DENIED):
        service, name = operation.split(".")
        permission = "".join(map(str.capitalize, name.split("_")))
        return f"these credentials need the permission {service}:{permission}; {PAGE} lists all that are needed"
    if code.startswith(_INVALID):
        return f"AWS does not take these credentials; {_CREDENTIALS_HINT}"
    if code.startswith(_SIGNATURE):
        return "is the secret key right, and the clock of this device?"
    if code.startswith(_THROTTLED):
        return "AWS is busy; wait a minute and run it again: it goes on from what is there"
    return None
