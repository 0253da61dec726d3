"""The least that an agent, or an application that asks agents, must be allowed to do: policy documents. Pure."""

import json
from typing import Any, Final

from agent.errors import AgentError
from agent.protocol.limits import IOT_CORE
from agent.protocol.topics import AgentTopics

REGION: Final = "us-east-1"
ACCOUNT: Final = "123456789012"
"""No account: the number that AWS's own documents use as an example."""
PARTITION: Final = "aws"
THING_NAME: Final = "iot:Connection.Thing.ThingName"
IS_ATTACHED: Final = "iot:Connection.Thing.IsAttached"
CONNECT_ATTRIBUTES: Final = "iot:ConnectAttributes"
CUSTOM_TOPICS: Final = "arxplorer/custom/*"
THING_VARIABLE: Final = f"${{{THING_NAME}}}"


def agent_policy(
    topics: AgentTopics, share_group: str, *, region: str = REGION, account: str = ACCOUNT, partition: str = PARTITION
) -> dict[str, Any]:
    """What an agent does: take requests and updates, answer, report its status, keep its own shadows, take its jobs.

    `topics` are filled in with `THING_VARIABLE` as the thing's name, so that one document serves every agent. AWS takes
    2,048 characters. Hence the group of shared subscriptions, the shadows and the jobs are not listed topic by topic,
    what is alike stands in one statement (topics are received, filters subscribed to), and one filter serves all
    reserved topics of the thing: what it hears by that, the topics say.
    """
    wanted, things = [topics.embeddings, topics.corpus_updates], f"$aws/things/{THING_VARIABLE}"
    answered = [topics.results.replace("{client_id}", "*"), topics.embeddings_response, f"{topics.response_prefix}*"]
    # On the topic of its own requests it probes whether messages still arrive; its own status it leaves retained.
    own = [topics.own_requests, topics.own_status, f"{things}/shadow/*", f"{things}/jobs/*"]
    heard = _resources("topic", [topics.shared_requests, *wanted])
    heard += _resources("topicfilter", [topics.own_requests, *wanted, f"$share/{share_group}/*", f"{things}/*"])
    return _document(
        f"arn:{partition}:iot:{region}:{account}:",
        _connect("PersistentConnect", "LastWill"),
        _allow("iot:Publish", "topic", [*answered, topics.status]),
        _allow(["iot:Publish", "iot:Receive", "iot:RetainPublish"], "topic", own),
        _statement(["iot:Receive", "iot:Subscribe"], heard),
    )


def client_policy(
    topics: AgentTopics, *, region: str = REGION, account: str = ACCOUNT, partition: str = PARTITION
) -> dict[str, Any]:
    """What an application does: ask, send texts and papers, read its answers and the agents' status.

    Topics of its own, for handlers and what they answer, lie under `CUSTOM_TOPICS`.
    """
    own = [f"{topics.response_prefix}{THING_VARIABLE}", f"{topics.response_prefix}{THING_VARIABLE}/*", CUSTOM_TOPICS]
    read = [topics.results.replace("{client_id}", THING_VARIABLE), topics.embeddings_response]
    read.append(f"{topics.status}*")  # that of one agent stands below; one resource, since AWS counts characters
    return _document(
        f"arn:{partition}:iot:{region}:{account}:",
        _connect("PersistentConnect"),
        _allow(
            "iot:Publish",
            "topic",
            [topics.shared_requests, f"{topics.shared_requests}/*", topics.embeddings, topics.corpus_updates],
        ),
        _allow(["iot:Publish", "iot:Receive"], "topic", own),
        _allow("iot:Subscribe", "topicfilter", [*read, *own]),
        _allow("iot:Receive", "topic", read),
    )


def _connect(*attributes: str) -> dict[str, Any]:
    statement = _allow("iot:Connect", "client", [THING_VARIABLE])
    statement["Condition"] = {
        "Bool": {IS_ATTACHED: "true"},
        "ForAllValues:StringEquals": {CONNECT_ATTRIBUTES: list(attributes)},
    }
    return statement


def _allow(action: str | list[str], kind: str, names: list[str]) -> dict[str, Any]:
    return _statement(action, _resources(kind, names))


def _statement(action: str | list[str], resources: list[str]) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resources}


def _resources(kind: str, names: list[str]) -> list[str]:
    return [f"{kind}/{name}" for name in names]


def _document(prefix: str, *statements: dict[str, Any]) -> dict[str, Any]:
    """Make resources ARNs by the prefix: the partition, region and account that they are in."""
    for statement in statements:
        statement["Resource"] = [prefix + name for name in statement["Resource"]]
    return {"Version": "2012-10-17", "Statement": list(statements)}


def policy_text(document: dict[str, Any]) -> str:
    """Write a policy as AWS takes it. Raises AgentError for one that is too long."""
    text = json.dumps(document, separators=(",", ":"))
    size = len("".join(text.split()))
    if size > IOT_CORE.policy_characters:
        raise AgentError(
            f"the policy has {size} characters, AWS takes {IOT_CORE.policy_characters}",
            hint="shorten the topics of aws_iot.topics in config.yaml",
        )
    return text


def partition_of(region: str) -> str:
    """The part of AWS that a region is in, as ARNs name it, without asking AWS's own tables."""
    known = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}
    return next((partition for prefix, partition in known.items() if region.startswith(prefix)), PARTITION)
