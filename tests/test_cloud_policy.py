"""Policies for any region and account, and `cloud policy`, which prints them."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND

from agent.cloud.policy import THING_NAME, THING_VARIABLE, agent_policy, client_policy, partition_of, policy_text
from agent.config import Topics
from agent.errors import AgentError
from agent.local_cloud.policy import parse_policy
from agent.protocol.topics import AgentTopics

TOPICS = AgentTopics.of(Topics(), THING_VARIABLE)
LONGEST = {"region": "us-gov-west-1", "account": "9" * 12, "partition": "aws-us-gov"}


def test_every_resource_is_in_the_region_and_account_that_were_given() -> None:
    for document in (agent_policy(TOPICS, "arxplorer", **LONGEST), client_policy(TOPICS, **LONGEST)):
        resources = [one for statement in document["Statement"] for one in statement["Resource"]]
        assert {tuple(one.split(":")[:5]) for one in resources} == {
            ("arn", "aws-us-gov", "iot", "us-gov-west-1", "9" * 12)
        }


def test_the_policies_keep_to_the_length_that_aws_takes_also_where_the_names_are_long() -> None:
    for document in (agent_policy(TOPICS, "arxplorer", **LONGEST), client_policy(TOPICS, **LONGEST)):
        assert len(policy_text(document)) <= 2048
        parse_policy(policy_text(document))


def test_a_policy_that_is_too_long_for_aws_is_refused() -> None:
    with pytest.raises(AgentError, match="AWS takes 2048") as caught:
        policy_text(agent_policy(TOPICS, "g" * 500))
    assert "shorten the topics" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("region", "partition"),
    [("us-east-1", "aws"), ("eu-central-1", "aws"), ("cn-north-1", "aws-cn"), ("us-gov-east-1", "aws-us-gov")],
)
def test_a_region_tells_its_partition(region: str, partition: str) -> None:
    assert partition_of(region) == partition


# -- the command ---------------------------------------------------------------------------------------------------


def shown_policy(folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    done = subprocess.run([COMMAND, "cloud", "policy", *options], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_the_policy_is_printed_for_the_configured_topics(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("aws_iot:\n  share_group: lab\n  topics:\n    status: lab/status\n")
    document, notes = shown_policy(tmp_path, "--region", "cn-north-1", "--account", "999999999999")
    policy, text = parse_policy(json.dumps(document)), json.dumps(document)
    assert notes == ""
    assert set(re.findall(r"arn:[^:]*:iot:[^:]*:\d*", text)) == {"arn:aws-cn:iot:cn-north-1:999999999999"}
    context = {"iot:ClientId": "t", THING_NAME: "t"}
    assert policy.allows("iot:Publish", "topic", "lab/status/t", context)
    assert not policy.allows("iot:Publish", "topic", "lab/status/u", context)
    assert policy.allows("iot:Subscribe", "topicfilter", "$share/lab/arxplorer/search/requests", context)


def test_the_policy_for_an_application_is_another(tmp_path: Path) -> None:
    document, notes = shown_policy(tmp_path, "--client")
    policy, context = parse_policy(json.dumps(document)), {THING_NAME: "app"}
    assert "123456789012 stands for the number of your account" in notes
    assert policy.allows("iot:Publish", "topic", "arxplorer/search/requests", context)
    assert policy.allows("iot:Subscribe", "topicfilter", "arxplorer/responses/app", context)
    assert not policy.allows("iot:Subscribe", "topicfilter", "arxplorer/responses/other", context)


def test_the_command_refuses_a_policy_that_is_too_long_for_aws(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"aws_iot:\n  topics:\n    corpus_updates: {'x' * 250}\n    status: {'y' * 250}\n"
    )
    done = subprocess.run([COMMAND, "cloud", "policy"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "AWS takes 2048" in done.stderr
