"""AWS IoT policy documents, a case a line. No network."""

import json
from typing import Any

import pytest

from agent.cloud.policy import CONNECT_ATTRIBUTES, IS_ATTACHED, THING_NAME, THING_VARIABLE, agent_policy, client_policy
from agent.config import Topics
from agent.local_cloud.policy import Policy, PolicyError, parse_policy
from agent.protocol.topics import AgentTopics

ARN = "arn:aws:iot:us-east-1:123456789012:"
CONTEXT = {"iot:ClientId": "thing-1", THING_NAME: "thing-1", IS_ATTACHED: "true", CONNECT_ATTRIBUTES: []}


def policy(*statements: dict[str, Any], version: str = "2012-10-17") -> Policy:
    return parse_policy(json.dumps({"Version": version, "Statement": list(statements)}))


def allow(action: Any, *resources: str, **rest: Any) -> dict[str, Any]:
    arns = [name if name == "*" else ARN + name for name in resources]
    return {"Effect": "Allow", "Action": action, "Resource": arns, **rest}


def deny(*arguments: Any, **rest: Any) -> dict[str, Any]:
    return allow(*arguments, **rest) | {"Effect": "Deny"}


# fmt: off
@pytest.mark.parametrize(("statements", "asked", "expected"), [
    pytest.param([], ("iot:Publish", "topic", "a"), False, id="what nothing allows is denied"),
    pytest.param([allow("iot:Publish", "topic/a/b")], ("iot:Publish", "topic", "a/b"), True, id="allowed by name"),
    pytest.param([allow("iot:Publish", "topic/a/b")], ("iot:Publish", "topic", "a/B"), False, id="topics mind case"),
    pytest.param([allow("iot:Publish", "topic/a/b")], ("iot:Subscribe", "topicfilter", "a/b"), False, id="another action"),
    pytest.param([allow("iot:Publish", "topicfilter/a")], ("iot:Publish", "topic", "a"), False, id="another kind of resource"),
    pytest.param([allow("iot:Publish", "topic/*"), deny("iot:Publish", "topic/a/*")], ("iot:Publish", "topic", "a/b"), False, id="a Deny beats an Allow"),
    pytest.param([deny("iot:Publish", "topic/a/*"), allow("iot:Publish", "topic/*")], ("iot:Publish", "topic", "b"), True, id="a Deny of something else does not"),
    pytest.param([allow("iot:Publish", "*")], ("iot:Publish", "topic", "a/b/c"), True, id="every resource"),
    pytest.param([allow("iot:*", "*")], ("iot:RetainPublish", "topic", "a"), True, id="every action"),
    pytest.param([allow("*", "*")], ("iot:Connect", "client", "a"), True, id="a single star as the action"),
    pytest.param([allow(["iot:Publish", "iot:Receive"], "topic/a")], ("iot:Receive", "topic", "a"), True, id="a list of actions"),
    pytest.param([allow("iot:Publish", "topic/a/*/c")], ("iot:Publish", "topic", "a/x/y/c"), True, id="a star spans levels"),
    pytest.param([allow("iot:Publish", "topic/a/?")], ("iot:Publish", "topic", "a/x"), True, id="a question mark is one character"),
    pytest.param([allow("iot:Publish", "topic/a/?")], ("iot:Publish", "topic", "a/xy"), False, id="and no more than one"),
    pytest.param([allow("iot:Subscribe", "topicfilter/a/+/c")], ("iot:Subscribe", "topicfilter", "a/+/c"), True, id="+ in a policy is a plus"),
    pytest.param([allow("iot:Subscribe", "topicfilter/a/+/c")], ("iot:Subscribe", "topicfilter", "a/b/c"), False, id="and matches nothing else"),
    pytest.param([allow("iot:Subscribe", "topicfilter/a/#")], ("iot:Subscribe", "topicfilter", "a/b"), False, id="nor does #"),
    pytest.param([allow("iot:Subscribe", "topicfilter/a/*")], ("iot:Subscribe", "topicfilter", "a/#"), True, id="a star allows a wildcard subscription"),
    pytest.param([allow("iot:Subscribe", "topicfilter/$share/g/a")], ("iot:Subscribe", "topicfilter", "$share/g/a"), True, id="a shared subscription by its whole name"),
    pytest.param([allow("iot:Subscribe", "topicfilter/a")], ("iot:Subscribe", "topicfilter", "$share/g/a"), False, id="not by its filter alone"),
    pytest.param([allow("iot:Publish", "topic/a.b")], ("iot:Publish", "topic", "axb"), False, id="a dot is a dot"),
    pytest.param([allow("iot:Publish", "topic/" + THING_VARIABLE + "/x")], ("iot:Publish", "topic", "thing-1/x"), True, id="the thing's name is filled in"),
    pytest.param([allow("iot:Publish", "topic/" + THING_VARIABLE + "/x")], ("iot:Publish", "topic", "thing-2/x"), False, id="and no other"),
    pytest.param([allow("iot:Publish", "topic/${iot:Unknown}/x")], ("iot:Publish", "topic", "${iot:Unknown}/x"), False, id="a variable without a value applies to nothing"),
    pytest.param([allow("iot:Publish", "topic/*"), deny("iot:Publish", "topic/${iot:Unknown}*")], ("iot:Publish", "topic", "a"), True, id="neither in a Deny"),
    pytest.param([allow("iot:Publish", "topic/a/${*}")], ("iot:Publish", "topic", "a/*"), True, id="a star that is meant"),
    pytest.param([allow("iot:Publish", "topic/a/${*}")], ("iot:Publish", "topic", "a/b"), False, id="is no wildcard"),
])
# fmt: on
def test_a_policy_allows(statements, asked, expected) -> None:
    assert policy(*statements).allows(*asked, CONTEXT) is expected


# fmt: off
@pytest.mark.parametrize(("condition", "context", "expected"), [
    pytest.param({"Bool": {IS_ATTACHED: "true"}}, {IS_ATTACHED: "true"}, True, id="attached"),
    pytest.param({"Bool": {IS_ATTACHED: True}}, {IS_ATTACHED: "true"}, True, id="true without quotes"),
    pytest.param({"Bool": {IS_ATTACHED: ["true"]}}, {IS_ATTACHED: "false"}, False, id="not attached"),
    pytest.param({"Bool": {IS_ATTACHED: "true"}}, {}, False, id="no value"),
    pytest.param({"ForAllValues:StringEquals": {CONNECT_ATTRIBUTES: ["PersistentConnect"]}}, {CONNECT_ATTRIBUTES: []}, True, id="uses no attribute"),
    pytest.param({"ForAllValues:StringEquals": {CONNECT_ATTRIBUTES: ["PersistentConnect"]}}, {CONNECT_ATTRIBUTES: ["PersistentConnect"]}, True, id="uses the one that is allowed"),
    pytest.param({"ForAllValues:StringEquals": {CONNECT_ATTRIBUTES: ["PersistentConnect"]}}, {CONNECT_ATTRIBUTES: ["PersistentConnect", "LastWill"]}, False, id="uses one more"),
    pytest.param({"ForAllValues:StringNotEquals": {CONNECT_ATTRIBUTES: ["PersistentConnect"]}}, {CONNECT_ATTRIBUTES: ["LastWill"]}, True, id="uses none of those excluded"),
    pytest.param({"ForAllValues:StringNotEquals": {CONNECT_ATTRIBUTES: ["PersistentConnect"]}}, {CONNECT_ATTRIBUTES: ["PersistentConnect"]}, False, id="uses an excluded one"),
    pytest.param({"ForAnyValue:StringEquals": {CONNECT_ATTRIBUTES: ["LastWill"]}}, {CONNECT_ATTRIBUTES: ["PersistentConnect", "LastWill"]}, True, id="uses any of those"),
    pytest.param({"ForAnyValue:StringEquals": {CONNECT_ATTRIBUTES: ["LastWill"]}}, {CONNECT_ATTRIBUTES: []}, False, id="uses none of those"),
    pytest.param({"StringEquals": {"iot:ClientId": ["a", "b"]}}, {"iot:ClientId": "b"}, True, id="one of several values"),
    pytest.param({"StringNotEquals": {"iot:ClientId": ["a", "b"]}}, {"iot:ClientId": "b"}, False, id="none of several values"),
    pytest.param({"StringLike": {"iot:ClientId": "dev-*"}}, {"iot:ClientId": "dev-7"}, True, id="a pattern"),
    pytest.param({"StringNotLike": {"iot:ClientId": "dev-*"}}, {"iot:ClientId": "dev-7"}, False, id="no such pattern"),
    pytest.param({"StringEqualsIgnoreCase": {"iot:ClientId": "DEV"}}, {"iot:ClientId": "dev"}, True, id="whatever the case"),
    pytest.param({"StringEquals": {"iot:ClientId": THING_VARIABLE}}, {"iot:ClientId": "t", THING_NAME: "t"}, True, id="a variable as the value"),
    pytest.param({"StringEquals": {"iot:ClientId": "t"}, "Bool": {IS_ATTACHED: "true"}}, {"iot:ClientId": "t", IS_ATTACHED: "false"}, False, id="all conditions must hold"),
])
# fmt: on
def test_a_statement_applies_only_where_its_condition_holds(condition, context, expected) -> None:
    asked = policy(allow("iot:Connect", "*", Condition=condition))
    assert asked.allows("iot:Connect", "client", "t", context) is expected


def test_variables_are_plain_text_in_a_document_of_2008() -> None:
    old = policy(allow("iot:Publish", "topic/" + THING_VARIABLE), version="2008-10-17")
    assert not old.allows("iot:Publish", "topic", "thing-1", CONTEXT)
    assert old.allows("iot:Publish", "topic", THING_VARIABLE, CONTEXT)


def test_a_value_is_never_read_as_a_wildcard_by_the_policy() -> None:
    by_client = policy(allow("iot:Subscribe", "topicfilter/${iot:ClientId}/x"))
    assert not by_client.allows("iot:Subscribe", "topicfilter", "other/x", {"iot:ClientId": "*"})
    # But to MQTT it is one: this is why ${iot:ClientId} does not belong into a topic filter.
    assert by_client.allows("iot:Subscribe", "topicfilter", "+/x", {"iot:ClientId": "+"})


# fmt: off
@pytest.mark.parametrize(("document", "said"), [
    ("{", "not valid JSON"),
    ("[]", "Statement: missing"),
    ({"Statement": [1]}, r"Statement\[0\]: expected an object"),
    ({"Version": "2024", "Statement": []}, "Version: '2024'"),
    ({"Statement": {"Effect": "allow"}}, r"Statement\[0\].Effect"),
    ({"Statement": {"Effect": "Allow", "NotAction": "iot:Publish"}}, r"Statement\[0\].NotAction: not supported"),
    ({"Statement": {"Effect": "Allow", "Resource": "*"}}, r"Statement\[0\].Action"),
    ({"Statement": {"Effect": "Allow", "Action": "iot:*", "Resource": []}}, r"Statement\[0\].Resource"),
    ({"Statement": {"Effect": "Allow", "Action": "iot:*", "Resource": "topic/a"}}, "'topic/a' is no ARN"),
    ({"Statement": allow("iot:*", "*", Condition={"NumericLess": {}})}, "Condition.NumericLess: not supported"),
    ({"Statement": allow("iot:*", *[f"topic/{number}" for number in range(100)])}, "longer than the 2048 characters"),
    ({"Statement": allow("iot:*", "*", Condition={"Bool": "x"})}, "Condition.Bool: expected an object"),
])
# fmt: on
def test_a_document_that_cannot_be_used_is_refused_with_the_place(document, said) -> None:
    with pytest.raises(PolicyError, match=said):
        parse_policy(document if isinstance(document, str) else json.dumps(document))


def default(name: str) -> Policy:
    topics = AgentTopics.of(Topics(), THING_VARIABLE)
    return parse_policy(json.dumps(agent_policy(topics, "arxplorer") if name == "agent" else client_policy(topics)))


@pytest.mark.parametrize("who", ["agent", "client"])
def test_the_default_policies_are_short_enough_in_the_region_with_the_longest_name(who) -> None:
    topics = AgentTopics.of(Topics(), THING_VARIABLE)
    document = agent_policy(topics, "arxplorer") if who == "agent" else client_policy(topics)
    parse_policy(json.dumps(document).replace("us-east-1", "ap-southeast-2"))


# fmt: off
@pytest.mark.parametrize(("who", "asked", "expected"), [
    ("agent", ("iot:Connect", "client", "thing-1"), True),
    ("agent", ("iot:Connect", "client", "thing-2"), False),
    ("agent", ("iot:Subscribe", "topicfilter", "$share/arxplorer/arxplorer/search/requests"), True),
    ("agent", ("iot:Subscribe", "topicfilter", "arxplorer/search/requests/thing-1"), True),
    ("agent", ("iot:Subscribe", "topicfilter", "arxplorer/search/requests/thing-2"), False),
    ("agent", ("iot:Subscribe", "topicfilter", "#"), False),
    ("agent", ("iot:Receive", "topic", "arxplorer/search/requests"), True),
    ("agent", ("iot:Receive", "topic", "arxplorer/responses/app"), False),
    ("agent", ("iot:Publish", "topic", "arxplorer/responses/app"), True),
    ("agent", ("iot:Publish", "topic", "arxplorer/search/requests"), False),
    ("agent", ("iot:RetainPublish", "topic", "arxplorer/status/thing-1"), True),
    ("agent", ("iot:RetainPublish", "topic", "arxplorer/status"), False),
    ("agent", ("iot:Publish", "topic", "arxplorer/status/thing-2"), False),
    ("agent", ("iot:Publish", "topic", "$aws/things/thing-1/shadow/name/config/update"), True),
    ("agent", ("iot:Publish", "topic", "$aws/things/thing-1/shadow/get"), True),
    ("agent", ("iot:Subscribe", "topicfilter", "arxplorer/search/requests"), False),
    ("agent", ("iot:Publish", "topic", "$aws/things/thing-2/shadow/update"), False),
    ("agent", ("iot:Subscribe", "topicfilter", "$aws/things/thing-1/shadow/name/config/get/+"), True),
    ("agent", ("iot:Subscribe", "topicfilter", "$aws/things/+/shadow/get/+"), False),
    ("agent", ("iot:Receive", "topic", "$aws/things/thing-1/shadow/name/config/update/delta"), True),
    ("agent", ("iot:Publish", "topic", "$aws/things/thing-1/jobs/start-next"), True),
    ("agent", ("iot:Publish", "topic", "$aws/things/thing-1/jobs/any-job/update"), True),
    ("agent", ("iot:Subscribe", "topicfilter", "$aws/things/thing-1/jobs/notify-next"), True),
    ("agent", ("iot:Subscribe", "topicfilter", "$aws/things/thing-1/jobs/any-job/update/+"), True),
    ("agent", ("iot:Receive", "topic", "$aws/things/thing-1/jobs/start-next/accepted"), True),
    ("agent", ("iot:Publish", "topic", "$aws/things/thing-2/jobs/start-next"), False),
    ("agent", ("iot:Subscribe", "topicfilter", "$aws/things/thing-2/jobs/notify-next"), False),
    ("agent", ("iot:Subscribe", "topicfilter", "$aws/things/+/jobs/notify-next"), False),
    ("agent", ("iot:Receive", "topic", "$aws/things/thing-2/jobs/notify-next"), False),
    ("agent", ("iot:Publish", "topic", "$aws/things/thing-1/defender/metrics/json"), False),
    ("agent", ("iot:Receive", "topic", "$aws/things/thing-1/tunnels/notify"), False),
    ("agent", ("iot:RetainPublish", "topic", "arxplorer/search/requests"), False),
    ("agent", ("iot:RetainPublish", "topic", "arxplorer/responses/app"), False),
    ("client", ("iot:Publish", "topic", "arxplorer/search/requests"), True),
    ("client", ("iot:Publish", "topic", "arxplorer/search/requests/thing-9"), True),
    ("client", ("iot:Publish", "topic", "arxplorer/search/results"), False),
    ("client", ("iot:Subscribe", "topicfilter", "arxplorer/responses/thing-1"), True),
    ("client", ("iot:Subscribe", "topicfilter", "arxplorer/responses/thing-1/#"), True),
    ("client", ("iot:Subscribe", "topicfilter", "arxplorer/responses/#"), False),
    ("client", ("iot:Receive", "topic", "arxplorer/status/thing-9"), True),
])
# fmt: on
def test_the_default_policies_allow_what_is_needed_and_no_more(who, asked, expected) -> None:
    assert default(who).allows(*asked, CONTEXT) is expected
