"""An AWS account to set devices up in: moto's, or with ARXPLORER_TEST_AWS=1 that of the environment's credentials.

The same tests run on both; what is made in a real account is named `arxplorer-test-..` and removed.
"""

import json
import os
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import trustme
from botocore.exceptions import ClientError
from click.testing import CliRunner
from conftest import wait_until
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from moto.core.botocore_stubber import BotocoreStubber
from moto.iot.models import FakeEndpoint, IoTBackend

from agent.cli import cli
from agent.errors import AgentError

REAL = os.environ.get("ARXPLORER_TEST_AWS") == "1"
REGION = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


class Authority:
    """Signs as AWS IoT does: the key that the request names. moto would put another key into the certificate."""

    def __init__(self) -> None:
        self.days = 365
        self.issued: Callable[[str], None] = lambda _: None
        ca = trustme.CA()
        self.use(ca.cert_pem.bytes(), ca.private_key_pem.bytes())

    def use(self, certificate: bytes, key: bytes) -> None:
        self.certificate = x509.load_pem_x509_certificate(certificate)
        self.key = serialization.load_pem_private_key(key, None)

    def sign(self, request: str) -> str:
        csr = x509.load_pem_x509_csr(request.encode())
        assert csr.is_signature_valid
        start = datetime.now(UTC) - timedelta(days=30)
        builder = x509.CertificateBuilder().subject_name(csr.subject).issuer_name(self.certificate.subject)
        builder = builder.public_key(csr.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(start).not_valid_after(datetime.now(UTC) + timedelta(days=self.days))
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
        )
        signed = builder.sign(self.key, hashes.SHA256())
        pem = signed.public_bytes(serialization.Encoding.PEM).decode()
        self.issued(pem)
        return pem


class Moto:
    """moto, which answers as AWS would; it keeps what it was sent, and may be told to refuse."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes]] = []
        self.refused: dict[str, str] = {}  # error codes by parts of the path
        self.authority = Authority()

    def answer(self, request: Any, ask: Callable[[], Any]) -> Any:
        path, body = request.url.split(".com", 1)[-1], request.body or b""
        self.requests.append((request.method, path, body.encode() if isinstance(body, str) else body))
        for part, code in self.refused.items():
            if part in path:
                return 400, {"x-amzn-ErrorType": code}, json.dumps({"message": "because"}).encode()
        return ask()

    def changing(self) -> list[str]:
        """Requests that change something; two that only ask are POSTs."""
        asking = re.compile(r"/|/attached-policies/.*")
        sent = [(method, path) for method, path, _ in self.requests if not asking.fullmatch(path)]
        return [f"{method} {path}" for method, path in sent if method != "GET"]


class Aws:
    """An account, a device with a folder of its own, and the command that sets it up."""

    def __init__(self, folder: Path, moto: Moto | None) -> None:
        self.folder = folder
        self.moto = moto
        self.iot = boto3.client("iot", region_name=REGION)
        self.thing = f"arxplorer-test-{uuid.uuid4().hex[:12]}"
        self.policy = f"arxplorer-agent-{self.thing}"
        self.config = folder / "config.yaml"
        self.certs = folder / "certs"
        self.ca = self.certs / "AmazonRootCA1.pem"
        self.certificate = self.certs / "device-certificate.pem.crt"
        self.key = self.certs / "device-private.pem.key"
        self._made: set[str] = set()

    def run(self, *options: str, test: bool = REAL, exit_code: int = 0) -> Any:
        """`cloud setup`, in this process; what it prints as JSON, or its error."""
        arguments = ["--config", str(self.config), "cloud", "setup", "--thing-name", self.thing, "--region", REGION]
        arguments += ["--json", *options, *(() if test else ["--no-test"])]
        done = CliRunner().invoke(cli, arguments)
        if exit_code and isinstance(done.exception, SystemExit if exit_code > 1 else AgentError):
            return done.exception
        if done.exception:
            raise done.exception
        assert exit_code == 0, done.output
        document = json.loads(done.stdout)
        self._made.add(document.get("certificate_id", ""))
        return document

    def attached(self) -> list[str]:
        return list(self.iot.list_thing_principals(thingName=self.thing)["principals"])

    def arn(self) -> str:
        (arn,) = self.attached()
        return arn

    def describe(self, certificate_id: str) -> dict[str, Any]:
        return dict(self.iot.describe_certificate(certificateId=certificate_id)["certificateDescription"])

    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.iot.get_policy(policyName=self.policy)["policyDocument"]))

    def detach(self) -> str:
        """Take the certificate off thing and policy."""
        arn = self.arn()
        self.detach_thing(arn)
        self.iot.detach_policy(policyName=self.policy, target=arn)
        return arn

    def detach_thing(self, arn: str) -> None:
        """A real account takes some seconds for that."""
        self.iot.detach_thing_principal(thingName=self.thing, principal=arn)
        wait_until(lambda: arn not in self.attached(), timeout_s=60)

    def delete_certificate(self, certificate_id: str) -> None:
        if self.describe(certificate_id)["status"] == "ACTIVE":
            self.iot.update_certificate(certificateId=certificate_id, newStatus="INACTIVE")
        self.iot.delete_certificate(certificateId=certificate_id, forceDelete=True)

    def clean_up(self) -> None:
        """Remove all that the test has made, whatever state it left it in."""
        for arn in _or_none(self.attached) or []:
            self._made.add(arn.rpartition("/")[2])
            self.detach_thing(arn)
        for one in self._made - {""}:
            if found := _or_none(lambda one=one: self.describe(one)):
                for policy in self.iot.list_attached_policies(target=found["certificateArn"])["policies"]:
                    self.iot.detach_policy(policyName=policy["policyName"], target=found["certificateArn"])
                self.delete_certificate(one)
        if versions := _or_none(lambda: self.iot.list_policy_versions(policyName=self.policy)["policyVersions"]):
            for version in versions:
                if not version["isDefaultVersion"]:
                    self.iot.delete_policy_version(policyName=self.policy, policyVersionId=version["versionId"])
            self.iot.delete_policy(policyName=self.policy)
        _or_none(lambda: self.iot.delete_thing(thingName=self.thing))


def _or_none(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceNotFoundException":
            raise
        return None


def prepared(monkeypatch: pytest.MonkeyPatch) -> Moto:
    """Let moto do what AWS does where it does otherwise, and go through our hands."""
    moto, process = Moto(), BotocoreStubber.process_request

    def create_certificate_from_csr(backend: IoTBackend, csr: str, set_as_active: bool) -> Any:
        pem = moto.authority.sign(csr)
        return backend.register_certificate(pem, None, set_as_active=set_as_active, status="INACTIVE")

    monkeypatch.setattr(
        BotocoreStubber, "process_request", lambda self, request: moto.answer(request, lambda: process(self, request))
    )
    endpoint = FakeEndpoint("iot:Data-ATS", REGION)  # moto invents one for each call, an account has one

    def describe_endpoint(_: IoTBackend, endpoint_type: str) -> FakeEndpoint:
        assert endpoint_type == "iot:Data-ATS"
        return endpoint

    monkeypatch.setattr(IoTBackend, "create_certificate_from_csr", create_certificate_from_csr)
    monkeypatch.setattr(IoTBackend, "describe_endpoint", describe_endpoint)
    return moto
