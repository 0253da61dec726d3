"""Policies for any region and account."""

import pytest

from agent.cloud.policy import THING_VARIABLE, agent_policy, client_policy, partition_of, policy_text
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
