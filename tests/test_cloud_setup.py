"""`cloud setup` and `cloud policy`, against moto or (scripts/test-aws) a real account; connections to the local cloud."""

import base64
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import certifi
import pytest
from aws import REAL, REGION, Aws, Moto, prepared
from botocore.config import Config as BotoConfig
from conftest import COMMAND, ROOT
from local_cloud import LocalCloud
from moto import mock_aws

from agent.cloud.policy import THING_VARIABLE, agent_policy
from agent.cloud.setup import account as account_module
from agent.cloud.setup.keys import DeviceCertificate, fingerprints, key_to_pem, new_key, read_key
from agent.cloud.setup.provisioning import AMAZON_ROOT_CA, policy_name
from agent.config import load_config
from agent.errors import AgentError
from agent.protocol.topics import AgentTopics

PUBLISHED_FINGERPRINT = (  # at https://www.amazontrust.com/repository/
    "8E:CD:E6:88:4F:3D:87:B1:12:5B:A3:1A:C3:FC:B1:3D:70:16:DE:7F:57:CC:90:4F:E1:CB:97:C6:AE:98:19:6E"
)


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    monkeypatch.chdir(tmp_path)
    if not REAL:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        # Certificate ids by the DER form, as in AWS; moto's default is for certificates that are none.
        with mock_aws(config={"iot": {"use_valid_cert": True}}):
            yield Aws(tmp_path, prepared(monkeypatch))
        return
    account = Aws(tmp_path, None)
    try:
        yield account
    finally:
        account.clean_up()


@pytest.fixture
def moto(aws: Aws) -> Moto:
    """For what only a stand-in can be made to do."""
    if aws.moto is None:
        pytest.skip("a real account cannot be made to do that")
    return aws.moto


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def assert_whole(aws: Aws) -> str:
    """Everything is there once, and fits together; the certificate's id."""
    arn = aws.arn()
    certificate = DeviceCertificate.read(aws.certificate.read_text())
    assert certificate is not None
    told = aws.describe(arn.rpartition("/")[2])
    assert (told["certificateId"], told["status"], told["certificateArn"]) == (certificate.id, "ACTIVE", arn)
    assert certificate.fits(read_key(aws.key.read_bytes(), "key"))
    assert [one["policyName"] for one in aws.iot.list_attached_policies(target=arn)["policies"]] == [aws.policy]
    account = arn.split(":")[4]
    topics = AgentTopics.of(load_config(environment={}).aws_iot.topics, THING_VARIABLE)
    assert aws.document() == agent_policy(topics, "arxplorer", region=REGION, account=account)
    assert (mode(aws.key), mode(aws.certs)) == (0o600, 0o700)
    assert fingerprints(AMAZON_ROOT_CA.read_text()) <= fingerprints(aws.ca.read_text())
    link = load_config(aws.config, environment={}).aws_iot
    assert (link.enabled, link.region, link.thing_name) == (True, REGION, aws.thing)
    assert link.endpoint == aws.iot.describe_endpoint(endpointType="iot:Data-ATS")["endpointAddress"]
    files = link.certificates
    assert (files.ca_cert, files.cert_file, files.private_key) == (str(aws.ca), str(aws.certificate), str(aws.key))
    assert not [path for path in aws.certs.iterdir() if path.name.startswith(".")]
    return certificate.id


# -- the first run, and the second ---------------------------------------------------------------------------------


def test_a_device_is_set_up_in_one_run(aws: Aws) -> None:
    outcome = aws.run()
    assert outcome["certificate_id"] == assert_whole(aws)
    assert (outcome["thing_name"], outcome["policy"], outcome["others"]) == (aws.thing, aws.policy, [])
    assert outcome["tested"] is REAL
    assert len(outcome["changes"]) == 8


def test_a_second_run_changes_nothing(aws: Aws) -> None:
    first = aws.run()
    before = contents(aws.folder)
    if aws.moto:
        aws.moto.requests.clear()
    second = aws.run()
    assert (second["changes"], second["certificate_id"]) == ([], first["certificate_id"])
    assert contents(aws.folder) == before
    assert_whole(aws)
    if aws.moto:
        assert aws.moto.changing() == []


def test_one_of_each_is_made(aws: Aws, moto: Moto) -> None:
    aws.run()
    aws.run()
    counts = [len(aws.iot.list_things()["things"]), len(aws.iot.list_certificates()["certificates"])]
    assert [*counts, len(aws.iot.list_policies()["policies"])] == [1, 1, 1]


def test_the_private_key_is_in_no_request(aws: Aws, moto: Moto) -> None:
    aws.run()
    lines = [line for line in aws.key.read_text().splitlines() if not line.startswith("-")]
    der = base64.b64decode("".join(lines))
    scalar = read_key(aws.key.read_bytes(), "key").private_numbers().private_value
    forms = [line.encode() for line in lines if len(line) > 16] + [der, scalar.to_bytes(32, "big")]
    assert len(moto.requests) > 10
    for _, path, body in moto.requests:
        assert not [form for form in forms if form in body or form in path.encode()]
        assert b"PRIVATE" not in body


def test_the_key_is_closed_to_others_whatever_the_umask(aws: Aws, moto: Moto) -> None:
    old = os.umask(0)
    try:
        aws.run()
    finally:
        os.umask(old)
    assert (mode(aws.key), mode(aws.certs), mode(aws.certificate)) == (0o600, 0o700, 0o644)


# -- repair --------------------------------------------------------------------------------------------------------


def delete_thing(aws: Aws) -> None:
    aws.detach_thing(aws.arn())
    aws.iot.delete_thing(thingName=aws.thing)


def detach_policy(aws: Aws) -> None:
    aws.iot.detach_policy(policyName=aws.policy, target=aws.arn())


def delete_policy(aws: Aws) -> None:
    detach_policy(aws)
    aws.iot.delete_policy(policyName=aws.policy)


def change_policy(aws: Aws, times: int = 1) -> None:
    for number in range(times):
        document = aws.document() | {"Statement": aws.document()["Statement"][:1]}
        document["Statement"][0]["Sid"] = f"Change{number}"
        aws.iot.create_policy_version(policyName=aws.policy, policyDocument=json.dumps(document), setAsDefault=True)


def deactivate(aws: Aws) -> None:
    aws.iot.update_certificate(certificateId=aws.arn().rpartition("/")[2], newStatus="INACTIVE")


def delete_in_the_account(aws: Aws) -> None:
    aws.delete_certificate(aws.detach().rpartition("/")[2])


def change_config(aws: Aws) -> None:
    aws.config.write_text(aws.config.read_text().replace("enabled: true", "enabled: false"))


# fmt: off
@pytest.mark.parametrize(("damage", "mended"), [
    pytest.param(delete_thing, ["thing .* made", "certificate attached to the thing"], id="the thing is gone"),
    pytest.param(lambda aws: aws.detach_thing(aws.arn()), ["certificate attached to the thing"], id="the certificate is off the thing"),
    pytest.param(detach_policy, ["policy .* attached"], id="the policy is off the certificate"),
    pytest.param(delete_policy, ["policy .* made", "policy .* attached"], id="the policy is gone"),
    pytest.param(change_policy, ["policy .* brought up to date"], id="the policy says something else"),
    pytest.param(lambda aws: change_policy(aws, 4), ["policy .* brought up to date"], id="and has five versions"),
    pytest.param(lambda aws: aws.certificate.unlink(), ["crt written: certificate .* of the account"], id="the certificate's file is gone"),
    pytest.param(lambda aws: aws.certificate.write_text("x"), ["crt written: certificate .* of the account"], id="the certificate's file is damaged"),
    pytest.param(lambda aws: shutil.copy(AMAZON_ROOT_CA, aws.certificate), ["crt written: certificate .* of the account"], id="the file holds another certificate"),
    pytest.param(deactivate, ["certificate .* activated"], id="the certificate is not active"),
    pytest.param(lambda aws: aws.key.chmod(0o644), ["private key .* closed to others"], id="the key is open to others"),
    pytest.param(lambda aws: aws.ca.unlink(), ["AmazonRootCA1.pem written"], id="the root CA is gone"),
    pytest.param(lambda aws: aws.ca.write_text("x"), ["AmazonRootCA1.pem written"], id="the root CA is damaged"),
    pytest.param(change_config, ["config.yaml written"], id="the link is off"),
    pytest.param(lambda aws: aws.config.unlink(), ["config.yaml written"], id="config.yaml is gone"),
])
# fmt: on
def test_what_is_missing_is_repaired_and_no_more(aws: Aws, damage: Callable[[Aws], None], mended: list[str]) -> None:
    first = aws.run()
    damage(aws)
    second = aws.run()
    assert len(second["changes"]) == len(mended), second["changes"]
    assert all(re.search(wanted, change) for wanted, change in zip(mended, second["changes"], strict=True))
    assert assert_whole(aws) == first["certificate_id"]
    assert aws.run()["changes"] == []


def test_a_certificate_that_the_account_does_not_know_is_replaced(aws: Aws) -> None:
    first = aws.run()
    old = aws.certificate.read_bytes()
    delete_in_the_account(aws)
    assert aws.run()["certificate_id"] == assert_whole(aws) != first["certificate_id"]
    assert aws.certificate.with_name(f"{aws.certificate.name}.old").read_bytes() == old


def test_without_its_key_a_certificate_is_replaced_and_the_old_one_named(aws: Aws) -> None:
    first = aws.run()
    aws.key.unlink()
    second = aws.run()
    assert second["others"] == [first["certificate_id"]] != [second["certificate_id"]]
    assert len(aws.attached()) == 2
    assert aws.describe(first["certificate_id"])["status"] == "ACTIVE"  # somebody may use it still


def test_an_expired_certificate_is_replaced(aws: Aws, moto: Moto) -> None:
    moto.authority.days = -1
    first = aws.run()
    moto.authority.days = 365
    second = aws.run()
    assert (second["others"], len(second["changes"])) == ([first["certificate_id"]], 3)
    assert aws.run()["changes"] == []


def test_a_revoked_certificate_is_replaced(aws: Aws) -> None:
    first = aws.run()
    aws.iot.update_certificate(certificateId=first["certificate_id"], newStatus="REVOKED")
    assert aws.run()["certificate_id"] != first["certificate_id"]


def test_of_five_versions_of_a_policy_the_oldest_goes(aws: Aws) -> None:
    aws.run()
    change_policy(aws, 4)
    before = {one["versionId"] for one in aws.iot.list_policy_versions(policyName=aws.policy)["policyVersions"]}
    aws.run()
    after = {one["versionId"] for one in aws.iot.list_policy_versions(policyName=aws.policy)["policyVersions"]}
    assert (len(before), len(after), before - after) == (5, 5, {"1"})


@pytest.mark.parametrize("step", ["/things/", "/policies/", "/certificates?", "/target-policies/", "/principals"])
def test_a_run_that_is_broken_off_is_finished_by_the_next(aws: Aws, moto: Moto, step: str) -> None:
    moto.refused[step] = "AccessDeniedException"
    assert isinstance(aws.run(exit_code=1), AgentError)
    assert not aws.config.exists()
    moto.refused.clear()
    aws.run()
    assert_whole(aws)
    assert len(aws.iot.list_certificates()["certificates"]) == 1


def test_a_thing_without_its_certificate_in_the_account_keeps_to_the_configured_files(aws: Aws) -> None:
    elsewhere = aws.folder / "elsewhere"
    aws.run("--certs-dir", str(elsewhere))
    assert sorted(path.name for path in elsewhere.iterdir()) == [aws.ca.name, aws.certificate.name, aws.key.name]
    assert aws.run()["changes"] == []
    assert not aws.certs.exists()


# -- config.yaml ---------------------------------------------------------------------------------------------------


def test_the_rest_of_config_yaml_stays_as_it_was(aws: Aws) -> None:
    shutil.copy(ROOT / "config.yaml", aws.config)
    aws.config.chmod(0o640)
    before = aws.config.read_text().splitlines()
    aws.run()
    after = aws.config.read_text().splitlines()
    assert len(before) == len(after)
    changed = [new.split(":")[0].strip() for old, new in zip(before, after, strict=True) if old != new]
    region = [] if REGION == "us-east-1" else ["region"]
    assert changed == ["enabled", *region, "endpoint", "thing_name", "ca_cert", "cert_file", "private_key"]
    assert "  enabled: true  # Connect to AWS IoT Core" in aws.config.read_text()
    assert mode(aws.config) == 0o640


def test_topics_and_share_group_of_the_configuration_are_in_the_policy(aws: Aws) -> None:
    aws.config.write_text("aws_iot:\n  share_group: lab\n  topics:\n    embeddings: lab/vectors\n")
    aws.run()
    named = json.dumps(aws.document())
    assert "topicfilter/$share/lab/*" in named
    assert "topicfilter/lab/vectors" in named
    assert "arxplorer/embeddings" not in named


def test_a_file_that_cannot_be_changed_is_found_before_anything_is_made(aws: Aws, moto: Moto) -> None:
    aws.config.write_text("search: &x\n  candidates: 200\naws_iot: &y\n  certificates: &z {}\n  topics: *z\n")
    error = aws.run(exit_code=1)
    assert "cannot be changed safely" in error.message
    assert "thing_name: " in error.hint
    assert (moto.requests, aws.certs.exists()) == ([], False)


# -- renewal -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cloud(aws: Aws, moto: Moto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalCloud]:
    """A local cloud as the account's endpoint: what the account issues, it knows; what moto holds, is its policy."""
    running = LocalCloud(tmp_path).start("--thing", aws.thing)
    thing = running.folder / "things" / aws.thing / "certificate.pem"
    moto.authority.use((running.folder / "ca.pem").read_bytes(), (running.folder / "ca.key").read_bytes())
    moto.authority.issued = lambda pem: thing.write_text(pem) and None
    monkeypatch.setenv("ARXPLORER__AWS_IOT__ENDPOINT", "localhost")
    monkeypatch.setenv("ARXPLORER__AWS_IOT__PORT", str(running.port))
    monkeypatch.setenv("ARXPLORER__AWS_IOT__CERTIFICATES__CA_CERT", str(running.folder / "ca.pem"))
    yield running
    running.kill()


def test_the_configuration_connects_with_the_policy_that_was_made(aws: Aws, cloud: LocalCloud) -> None:
    aws.run()
    document = json.dumps(aws.document())
    (cloud.folder / "policies" / f"{aws.thing}.json").write_text(document)
    assert aws.run(test=True)["tested"]
    # The policy is the least: another name does not get in.
    error = aws.run("--thing-name", "another", "--timeout", "2", test=True, exit_code=1)
    assert "did not get a connection within 2 s" in error.message
    assert "clock" in error.hint


def test_a_renewed_certificate_replaces_the_old_one(aws: Aws, request: pytest.FixtureRequest) -> None:
    if not REAL:
        request.getfixturevalue("cloud")
    first = aws.run()
    old_key = aws.key.read_bytes()
    second = aws.run("--renew", test=True)
    assert second["certificate_id"] == assert_whole(aws) != first["certificate_id"]
    assert aws.key.read_bytes() != old_key
    assert aws.describe(first["certificate_id"])["status"] == "INACTIVE"
    assert second["others"] == []
    assert aws.run()["changes"] == []
    assert sorted(path.name for path in aws.certs.iterdir()) == [aws.ca.name, aws.certificate.name, aws.key.name]


def test_a_renewed_certificate_that_does_not_connect_is_withdrawn(aws: Aws, cloud: LocalCloud, moto: Moto) -> None:
    aws.run()
    before = contents(aws.folder / "certs")
    moto.authority.issued = lambda _: None  # the endpoint does not know it
    error = aws.run("--renew", "--timeout", "2", test=True, exit_code=1)
    assert "did not get a connection" in error.message
    assert contents(aws.folder / "certs") == before
    assert len(aws.iot.list_certificates()["certificates"]) == 1
    assert_whole(aws)


def test_a_renewal_needs_a_certificate_and_the_test(aws: Aws, moto: Moto) -> None:
    assert "no certificate to renew" in aws.run("--renew", test=True, exit_code=1).message
    aws.run()
    assert aws.run("--renew", exit_code=2).code == 2
    assert_whole(aws)


def test_an_interrupted_renewal_is_finished_with_the_certificate_of_the_new_key(aws: Aws, moto: Moto) -> None:
    aws.run()
    old = aws.certificate.read_bytes()
    aws.key.unlink()
    second = aws.run()
    aws.certificate.write_bytes(old)  # as after the key has been moved and the certificate has not
    third = aws.run()
    assert third["certificate_id"] == second["certificate_id"]
    assert len(third["changes"]) == 1


# -- dry run -------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_calls_and_makes_none(aws: Aws, moto: Moto) -> None:
    planned = aws.run("--dry-run")["planned"]
    assert (moto.requests, list(aws.folder.iterdir())) == ([], [])
    operations = [line.split()[0] for line in planned if line.startswith(("iot.", "sts."))]
    aws.run()
    wanted = {f"iot.{name}" for name in ("create_thing", "create_policy", "create_certificate_from_csr")}
    assert wanted | {"iot.attach_policy", "iot.attach_thing_principal"} <= set(operations)
    assert len(operations) == len(moto.requests)
    assert f"write {aws.key} (mode 600): a new P-256 key" in planned
    assert "PRIVATE KEY-----" not in "".join(planned)


def test_a_dry_run_needs_no_credentials_and_prints_a_call_a_line(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "setup_aws_iot.py"), "--thing-name", "t", "--region", "us-east-1", "--dry-run"],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "iot.create_thing thingName=t" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1] == "connect to ENDPOINT as t"
    assert list(tmp_path.iterdir()) == []


# -- what goes wrong -----------------------------------------------------------------------------------------------


# fmt: off
@pytest.mark.parametrize(("code", "hint"), [
    ("AccessDeniedException", "permission iot:DescribeThing"),
    ("UnauthorizedException", "permission iot:DescribeThing"),
    ("UnrecognizedClientException", "does not take these credentials"),
    ("ExpiredTokenException", "does not take these credentials"),
    ("InvalidSignatureException", "clock of this device"),
    ("ThrottlingException", "wait a minute"),
])
# fmt: on
def test_a_refused_call_is_named_with_what_to_do(aws: Aws, moto: Moto, monkeypatch, code: str, hint: str) -> None:
    monkeypatch.setattr(account_module, "_SETTINGS", BotoConfig(retries={"total_max_attempts": 1}))
    moto.refused = {"/things/": code}
    error = aws.run(exit_code=1)
    assert error.message == f"iot.describe_thing failed: {code}: because"
    assert hint in error.hint
    assert not aws.config.exists()


def test_without_credentials_it_says_how_to_give_them(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    arguments = ["cloud", "setup", "--thing-name", "t"]
    done = subprocess.run([COMMAND, *arguments, "--region", "us-east-1"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert "Error: sts.get_caller_identity failed: Unable to locate credentials" in done.stderr
    assert "AWS_ACCESS_KEY_ID" in done.stderr
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "Error: no AWS region")
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment | {"AWS_REGION": "eu-central-1"})
    assert "Unable to locate credentials" in done.stderr
    done = subprocess.run([COMMAND, *arguments, "--region", "mars"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr.strip()) == (1, "Error: mars is no AWS region")
    environment |= {"AWS_PROFILE": "absent"}
    done = subprocess.run([COMMAND, *arguments, "--region", "us-east-1"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "absent" in done.stderr.splitlines()[0]
    assert list(tmp_path.iterdir()) == []


def test_an_endpoint_that_does_not_answer_is_named(aws: Aws, moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account_module, "_SETTINGS", BotoConfig(retries={"total_max_attempts": 1}))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    error = aws.run(exit_code=1)
    assert error.message.startswith("sts.get_caller_identity failed: Could not connect")
    assert "network" in error.hint


# fmt: off
@pytest.mark.parametrize(("content", "reason"), [
    (b"", "holds no private key"),
    (b"-----BEGIN PRIVATE KEY-----\nxx\n-----END PRIVATE KEY-----\n", "holds no private key"),
    (AMAZON_ROOT_CA.read_bytes(), "holds no private key"),
])
# fmt: on
def test_a_key_that_is_none_is_left_alone_and_named(aws: Aws, moto: Moto, content: bytes, reason: str) -> None:
    aws.certs.mkdir()
    aws.key.write_bytes(content)
    error = aws.run(exit_code=1)
    assert (error.message, error.hint) == (f"{aws.key} {reason}", "move it away, and a new key is made")
    assert (aws.key.read_bytes(), moto.changing()) == (content, [])


def test_a_folder_that_cannot_be_made_is_named(aws: Aws, moto: Moto) -> None:
    (aws.folder / "file").write_text("")
    error = aws.run("--certs-dir", str(aws.folder / "file" / "certs"), exit_code=1)
    assert "file/certs" in error.message
    assert moto.changing() == []


def test_a_certificate_that_cannot_be_stored_does_not_stay_in_the_account(aws: Aws, moto: Moto) -> None:
    aws.certificate.mkdir(parents=True)
    error = aws.run(exit_code=1)
    assert error.message.startswith(f"{aws.certificate}: ")
    assert aws.iot.list_certificates()["certificates"] == []
    aws.certificate.rmdir()
    aws.certs.chmod(0o700)
    aws.run()
    assert_whole(aws)


def test_a_thing_name_that_aws_does_not_take_is_wrong_usage(aws: Aws, moto: Moto) -> None:
    assert aws.run("--thing-name", "a/b", exit_code=2).code == 2
    assert moto.requests == []


def test_the_policy_of_a_thing_has_a_name_that_aws_takes() -> None:
    names = ["device", "a:b", "a.b".replace(".", "_"), "x" * 112, "x" * 113, "x" * 128, "x" * 127 + ":"]
    made = [policy_name(name) for name in names]
    assert len(set(made)) == len(names)
    assert all(re.fullmatch(r"[\w+=,.@-]{1,128}", name) for name in made)


def test_every_call_is_among_the_permissions_that_the_page_lists() -> None:
    code = (ROOT / "agent" / "cloud" / "setup" / "provisioning.py").read_text("utf-8")
    names = {"".join(map(str.capitalize, name.split("_"))) for name in re.findall(r'"iot\.(\w+)"', code)}
    listed = set(re.findall(r'"iot:(\w+)"', (ROOT / "docs" / "aws.md").read_text("utf-8").partition("IAM")[2]))
    assert names == listed


# -- keys and the root CA ------------------------------------------------------------------------------------------


def test_the_root_ca_is_the_published_one() -> None:
    root = AMAZON_ROOT_CA.read_text()
    assert fingerprints(root) == {PUBLISHED_FINGERPRINT.replace(":", "").lower()}
    assert root.strip() in Path(certifi.where()).read_text()


def test_a_root_ca_among_others_is_left_alone(aws: Aws, moto: Moto) -> None:
    aws.certs.mkdir(mode=0o700)
    shutil.copy(certifi.where(), aws.ca)
    aws.run()
    assert aws.ca.read_bytes() == Path(certifi.where()).read_bytes()
    assert_whole(aws)


def test_a_key_of_ones_own_is_kept(aws: Aws) -> None:
    aws.certs.mkdir(mode=0o700)
    key = key_to_pem(new_key())
    aws.key.write_bytes(key)
    aws.run()
    assert aws.key.read_bytes() == key
    assert_whole(aws)
