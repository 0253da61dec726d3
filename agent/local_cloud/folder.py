"""The folder of one local cloud: its CA, the things with their certificates, and the policies, all made on first use.

DIR
  ca.pem, ca.key, server.pem, server.key
  things/NAME/      certificate.pem, private.key (mode 600), config.yaml
  policies/         NAME.json: the policy of thing NAME, to edit as you like
  shadows/          NAME.json: its shadows
  jobs/             NAME.json: its jobs
  broker/           mosquitto's files
  control.sock, local-cloud.log
"""

import json
import re
import ssl
from pathlib import Path
from typing import Any, Final

import yaml

from agent.cloud.policy import THING_VARIABLE, agent_policy, client_policy
from agent.config import AwsIot
from agent.errors import AgentError
from agent.local_cloud.certificates import Authority
from agent.local_cloud.policy import Policy, PolicyError, parse_policy
from agent.protocol.topics import AgentTopics

THING_NAME: Final = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
HOST: Final = "localhost"


class CloudFolder:
    def __init__(self, folder: Path) -> None:
        self.path: Final = folder.absolute()
        self.path.mkdir(parents=True, exist_ok=True)
        self.authority: Final = Authority(self.path)
        self.shadows: Final = self.path / "shadows"
        self.jobs: Final = self.path / "jobs"
        self.broker: Final = self.path / "broker"

    def add_thing(self, name: str, port: int, *, client: bool = False) -> None:
        """Make what a thing lacks: certificate and key, policy, config.yaml. What is there stays.

        A `client` is an application that asks; its policy lets it do that, and no more.
        """
        if not THING_NAME.fullmatch(name):
            raise AgentError(f"{name!r} is no thing name", hint="letters, digits, ':', '_' and '-', at most 128")
        thing = self.path / "things" / name
        thing.mkdir(parents=True, exist_ok=True)
        certificate, key = thing / "certificate.pem", thing / "private.key"
        if not certificate.is_file() or not key.is_file():
            self.authority.issue(name, certificate, key)
        policy = self._policy_file(name)
        if not policy.is_file():
            policy.parent.mkdir(exist_ok=True)
            aws_iot = AwsIot()
            topics = AgentTopics.of(aws_iot.topics, THING_VARIABLE)
            document = client_policy(topics) if client else agent_policy(topics, aws_iot.share_group)
            policy.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
        self._write_config(thing / "config.yaml", name, port, client=client)

    def things(self) -> list[str]:
        return sorted(file.parent.name for file in self.path.glob("things/*/certificate.pem"))

    def thing_of(self, certificate: bytes) -> str | None:
        """The thing that a certificate (DER) is attached to; None if it is not registered here, or no longer."""
        for file in self.path.glob("things/*/certificate.pem"):
            if ssl.PEM_cert_to_DER_cert(file.read_text("ascii")) == certificate:
                return file.parent.name
        return None

    def policy_of(self, thing: str) -> Policy:
        """The thing's policy as its file is now; without a file, nothing is allowed. Raises PolicyError."""
        file = self._policy_file(thing)
        if not file.is_file():
            return Policy([])
        try:
            return parse_policy(file.read_text("utf-8"))
        except (PolicyError, UnicodeDecodeError) as error:
            raise PolicyError(f"{file}: {error}") from error

    def _policy_file(self, thing: str) -> Path:
        return self.path / "policies" / f"{thing}.json"

    def _write_config(self, file: Path, thing: str, port: int, *, client: bool) -> None:
        """A ready configuration. One that is there keeps what was added to it; only the link is set right.

        An application's has no local broker, so that it asks over the cloud.
        """
        document: Any = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else None
        document = document if isinstance(document, dict) else {}
        link = {
            "enabled": True,
            "endpoint": HOST,
            "port": port,
            "thing_name": thing,
            "certificates": {
                "ca_cert": str(self.authority.ca_file),
                "cert_file": str(file.parent / "certificate.pem"),
                "private_key": str(file.parent / "private.key"),
            },
        }
        wanted = document | {"aws_iot": (document.get("aws_iot") or {}) | link}
        if client:
            wanted.setdefault("local_broker", {"enabled": False})
        if wanted != document:
            head = f"# The configuration of {thing}, with the local cloud as its AWS IoT Core.\n"
            file.write_text(head + yaml.safe_dump(wanted, sort_keys=False), "utf-8")
