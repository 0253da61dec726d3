"""Set a device up at AWS IoT Core: thing, policy, key and certificate, root CA, config.yaml.

Each step looks first and does only what is missing, so that a second run repairs and duplicates nothing. What is made
in the account is used, or written down here, at once: broken off anywhere, the next run goes on from there.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from agent.cloud.policy import THING_VARIABLE, agent_policy, policy_text
from agent.cloud.setup.calls import Calls
from agent.cloud.setup.device_files import DeviceFiles, Disk
from agent.cloud.setup.keys import DeviceCertificate, PrivateKey, fingerprints, signing_request
from agent.config import AwsIot
from agent.errors import AgentError
from agent.protocol.topics import AgentTopics

MAX_POLICY_VERSIONS: Final = 5
MAX_POLICY_NAME: Final = 128
AMAZON_ROOT_CA: Final = Path(__file__).with_name("amazon-root-ca-1.pem")
"""Amazon Root CA 1, as https://www.amazontrust.com/repository/ has it; it comes with the agent, not by a download."""


class Outcome(NamedTuple):
    """What stands after a set-up; `changes` is what this run made or mended, empty if all was there."""

    thing_name: str
    region: str
    endpoint: str
    policy: str
    certificate_id: str
    changes: tuple[str, ...]
    others: tuple[str, ...]
    """Ids of further certificates that are attached to the thing."""


class Issued(NamedTuple):
    """A certificate as the account knows it."""

    arn: str
    id: str
    pem: str


class SetUp:
    """One device's set-up in one account."""

    def __init__(
        self, account: Calls, disk: Disk, thing_name: str, link: AwsIot, note: Callable[[str], None] = lambda _: None
    ) -> None:
        """Take the topics and the share group of `link`; each change is told to `note`."""
        self._account: Final = account
        self._disk: Final = disk
        self._thing: Final = thing_name
        self._link: Final = link
        self._note: Final = note
        self._changes: Final[list[str]] = []
        self._retired: Final[set[str]] = set()

    def run(self, files: DeviceFiles, write_config: Callable[[str], bool]) -> Outcome:
        """Bring everything into place; `write_config` takes the endpoint and tells whether it changed the file.

        Raises AgentError that names the call or the file that failed.
        """
        endpoint, key, policy = self._prepared(files)
        certificate = self._certificate(files, key)
        self._attach(policy, certificate.arn)
        self._root_ca(files)
        if write_config(endpoint):
            self._changed("config.yaml written")
        return self._outcome(endpoint, policy, certificate.id)

    def renew(
        self, files: DeviceFiles, write_config: Callable[[str], bool], test: Callable[[DeviceFiles], None]
    ) -> Outcome:
        """Replace key and certificate. The old ones serve until `test` has connected with the new ones.

        `test` gets the new files, and raises when the connection does not come up: then the new certificate is
        withdrawn, and the old one goes on to serve.
        """
        new = files.beside(".new")
        self._disk.remove(new.private_key, new.cert_file)  # of a renewal that was broken off
        endpoint, key, policy = self._prepared(new)
        self._root_ca(files)
        if write_config(endpoint):
            self._changed("config.yaml written")
        certificate = self._issue(new, key)
        try:
            self._attach(policy, certificate.arn)
            test(new)
        except BaseException:
            with suppress(AgentError):  # what went wrong first is what is worth telling
                self._retire(certificate.arn, policy)
                self._account.call("iot.delete_certificate", certificateId=certificate.id)
            self._disk.remove(new.private_key, new.cert_file)
            self._note("the new certificate is withdrawn, the old one stays")
            raise
        # The key first: with it, and without its certificate, the next run finds the certificate in the account.
        self._disk.move(new.private_key, files.private_key)
        self._disk.move(new.cert_file, files.cert_file)
        for arn in self._attached_certificates():
            if arn != certificate.arn:
                self._retire(arn, policy)
                self._retired.add(arn)  # the account may name it as attached for some seconds more
                self._changed(f"certificate {_id_of(arn)} deactivated and detached")
        return self._outcome(endpoint, policy, certificate.id)

    # -- steps ------------------------------------------------------------------------------------------------

    def _prepared(self, files: DeviceFiles) -> tuple[str, PrivateKey | None, str]:
        """See to all that a certificate needs: endpoint, key, policy name. First what may fail and changes nothing."""
        caller = self._account.call("sts.get_caller_identity")
        endpoint = self._account.call("iot.describe_endpoint", endpointType="iot:Data-ATS")["endpointAddress"]
        topics = AgentTopics.of(self._link.topics, THING_VARIABLE)
        where = {"region": self._account.region, "account": caller["Account"], "partition": self._account.partition}
        document = policy_text(agent_policy(topics, self._link.share_group, **where))
        done, key = self._disk.private_key(files.private_key)
        if done:
            self._changed(done)
        if self._account.find("iot.describe_thing", thingName=self._thing) is None:
            self._account.call("iot.create_thing", thingName=self._thing)
            self._changed(f"thing {self._thing} made")
        return endpoint, key, self._policy(document)

    def _policy(self, document: str) -> str:
        name = policy_name(self._thing)
        found = self._account.find("iot.get_policy", policyName=name)
        if found is None:
            self._account.call("iot.create_policy", policyName=name, policyDocument=document)
            self._changed(f"policy {name} made")
        elif json.loads(found["policyDocument"]) != json.loads(document):
            versions = self._account.call("iot.list_policy_versions", policyName=name)["policyVersions"]
            if len(versions) >= MAX_POLICY_VERSIONS:
                oldest = min(
                    (one for one in versions if not one["isDefaultVersion"]), key=lambda v: int(v["versionId"])
                )
                self._account.call("iot.delete_policy_version", policyName=name, policyVersionId=oldest["versionId"])
            self._account.call("iot.create_policy_version", policyName=name, policyDocument=document, setAsDefault=True)
            self._changed(f"policy {name} brought up to date")
        return name

    def _certificate(self, files: DeviceFiles, key: PrivateKey | None) -> Issued:
        """The certificate of the file, or one of the thing that fits the key; else a new one."""
        held = DeviceCertificate.read(self._disk.text(files.cert_file))
        ids = [held.id] if held else []
        ids += [name for arn in self._attached_certificates() if (name := _id_of(arn)) not in ids]
        for status in ("ACTIVE", "INACTIVE"):
            for one in ids:
                found = self._usable(one, key, status)
                if found is None:
                    continue
                if status == "INACTIVE":
                    self._account.call("iot.update_certificate", certificateId=one, newStatus="ACTIVE")
                    self._changed(f"certificate {one} activated")
                if held is None or held.id != one:
                    self._disk.write(files.cert_file, found.pem.encode())
                    self._changed(f"{files.cert_file} written: certificate {one} of the account")
                return found
        return self._issue(files, key)

    def _usable(self, certificate_id: str, key: PrivateKey | None, status: str) -> Issued | None:
        found = self._account.find("iot.describe_certificate", certificateId=certificate_id)
        if found is None or key is None:
            return None
        told = found["certificateDescription"]
        certificate = DeviceCertificate.read(told["certificatePem"])
        if told["status"] != status or certificate is None or not certificate.fits(key):
            return None
        return Issued(told["certificateArn"], told["certificateId"], told["certificatePem"])

    def _issue(self, files: DeviceFiles, key: PrivateKey | None) -> Issued:
        request = signing_request(key, self._thing) if key else "CSR OF THE PRIVATE KEY"
        answer = self._account.call(
            "iot.create_certificate_from_csr", certificateSigningRequest=request, setAsActive=True
        )
        issued = Issued(answer["certificateArn"], answer["certificateId"], answer.get("certificatePem", ""))
        try:
            self._disk.write(files.cert_file, issued.pem.encode())
        except AgentError:
            with suppress(AgentError):  # nobody has it: it would only lie about in the account
                self._account.call("iot.update_certificate", certificateId=issued.id, newStatus="INACTIVE")
                self._account.call("iot.delete_certificate", certificateId=issued.id)
            raise
        self._changed(f"certificate {issued.id} made: {files.cert_file}")
        return issued

    def _attach(self, policy: str, arn: str) -> None:
        attached = self._account.list("iot.list_attached_policies", "policies", target=arn)
        if policy not in [one["policyName"] for one in attached]:
            self._account.call("iot.attach_policy", policyName=policy, target=arn)
            self._changed(f"policy {policy} attached to the certificate")
        if arn not in self._attached_certificates():
            self._account.call("iot.attach_thing_principal", thingName=self._thing, principal=arn)
            self._changed(f"certificate attached to the thing {self._thing}")

    def _attached_certificates(self) -> list[str]:
        principals = self._account.list("iot.list_thing_principals", "principals", thingName=self._thing)
        return [arn for arn in principals if ":cert/" in arn]

    def _retire(self, arn: str, policy: str) -> None:
        self._account.call("iot.update_certificate", certificateId=_id_of(arn), newStatus="INACTIVE")
        attached = self._account.list("iot.list_attached_policies", "policies", target=arn)
        if policy in [one["policyName"] for one in attached]:
            self._account.call("iot.detach_policy", policyName=policy, target=arn)
        if arn in self._attached_certificates():
            self._account.call("iot.detach_thing_principal", thingName=self._thing, principal=arn)

    def _root_ca(self, files: DeviceFiles) -> None:
        """Write Amazon's root, unless the file holds it already, alone or among others."""
        root = AMAZON_ROOT_CA.read_bytes()
        if not fingerprints(root.decode()) <= fingerprints(self._disk.text(files.ca_cert)):
            self._disk.write(files.ca_cert, root)
            self._changed(f"{files.ca_cert} written")

    def _changed(self, what: str) -> None:
        self._changes.append(what)
        self._note(what)

    def _outcome(self, endpoint: str, policy: str, certificate_id: str) -> Outcome:
        attached = [arn for arn in self._attached_certificates() if arn not in self._retired]
        others = tuple(name for arn in attached if (name := _id_of(arn)) != certificate_id)
        return Outcome(
            self._thing, self._account.region, endpoint, policy, certificate_id, tuple(self._changes), others
        )


def policy_name(thing_name: str) -> str:
    """A policy of each thing's own, so that no device changes what another may do.

    A policy's name has no colon, which a thing's may have, and a thing's name has no point.
    """
    name = f"arxplorer-agent-{thing_name.replace(':', '.')}"
    if len(name) <= MAX_POLICY_NAME:
        return name
    digest = hashlib.sha256(thing_name.encode()).hexdigest()[:16]
    return f"{name[: MAX_POLICY_NAME - 17]}.{digest}"


def _id_of(arn: str) -> str:
    return arn.rpartition("/")[2]
