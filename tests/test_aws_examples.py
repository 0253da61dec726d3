"""The example for AWS: the template passes its linter, and rules and function do the right thing with real messages.

Nothing here runs AWS's SQL: what a rule lets through is decided by `lets_through`, which knows what the rules use of it.
"""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, AgentProcess, Client
from moto import mock_aws
from moto.iotdata.models import iotdata_backends

from agent.config import Topics
from agent.protocol.answers import encode_status
from agent.protocol.requests import parse_search_request
from agent.protocol.schemas import schemas
from agent.protocol.topics import AgentTopics, topic_matches

FOLDER = ROOT / "examples" / "aws"
SPECIALIST = "test-agent"
TOPICS = AgentTopics.of(Topics(), SPECIALIST)
REQUEST = {
    "query": "Machine Learning of phase transitions",
    "filters": {"max_results": 3},
    "fields": ["arxiv_id", "score"],
    "client_id": "mobile-app-123",
    "request_id": "req-1",
    "reply_to": "arxplorer/responses/mobile-app-123",
    "timestamp": 1640995200.0,
}
FUNCTIONS = {"clientid", "isUndefined", "lower", "regexp_matches", "timestamp", "topic"}
"""What of AWS's list of SQL functions (version 2016-03-23) the rules use."""


class Template(yaml.SafeLoader):
    """CloudFormation's YAML: `!Ref Alerts` and the like as plain values."""


Template.add_multi_constructor("!", lambda loader, _, node: getattr(loader, f"construct_{node.id}")(node))


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return yaml.load((FOLDER / "template.yaml").read_text("utf-8"), Template)


@pytest.fixture(scope="module")
def resources(template: dict[str, Any]) -> dict[str, Any]:
    return {name: resource.get("Properties", {}) for name, resource in template["Resources"].items()}


@pytest.fixture(scope="module")
def rules(template: dict[str, Any], resources: dict[str, Any]) -> dict[str, str]:
    """The rules' SQL by name, with the default subject."""
    subject = template["Parameters"]["Subject"]["Default"]
    kinds = {name: resource["Type"] for name, resource in template["Resources"].items()}
    return {
        name: resources[name]["TopicRulePayload"]["Sql"].replace("${Subject}", subject)
        for name, kind in kinds.items()
        if kind == "AWS::IoT::TopicRule"
    }


@pytest.fixture(scope="module")
def code(resources: dict[str, Any]) -> str:
    return resources["AskSpecialist"]["Code"]["ZipFile"]


@pytest.fixture
def hand_on(code: str, resources: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The function as Lambda calls it; what it has published then."""
    variables = resources["AskSpecialist"]["Environment"]["Variables"]
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("${SpecialistThing}", SPECIALIST))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    module: dict[str, Any] = {}
    exec(compile(code, "index.py", "exec"), module)

    def call(event: dict[str, Any]) -> list[tuple[str, bytes]]:
        with mock_aws():
            module["lambda_handler"](event, None)
            return iotdata_backends["123456789012"]["eu-central-1"].published_payloads

    return call


def parts(sql: str) -> tuple[str, str, str]:
    """What is selected, the topic filter, the condition."""
    found = re.fullmatch(r"SELECT (.+) FROM '(.+)' WHERE (.+)", sql)
    assert found, sql
    return found[1], found[2], found[3]


def field(message: dict[str, Any], path: str) -> Any:
    for name in path.split("."):
        message = message.get(name) if isinstance(message, dict) else None
    return message


def lets_through(sql: str, topic: str, payload: bytes) -> bool:
    """Whether a rule lets a message through, for conditions of the few kinds that the rules have."""
    _, topic_filter, condition = parts(sql)
    message = json.loads(payload)

    def holds(test: str) -> bool:
        if found := re.fullmatch(r"(\w+) = '(.+)'", test):
            return field(message, found[1]) == found[2]
        if found := re.fullmatch(r"isUndefined\((.+)\)", test):
            return field(message, found[1]) is None
        found = re.fullmatch(r"regexp_matches\(lower\((\w+)\), '(.+)'\)", test)
        assert found, f"{test} is something new: teach it to this test"
        value = field(message, found[1])
        return isinstance(value, str) and bool(re.search(found[2], value.lower()))

    return topic_matches(topic_filter, topic) and all(map(holds, condition.split(" AND ")))


def through(rules: dict[str, str], topic: str, payload: bytes) -> list[str]:
    return [name for name, sql in rules.items() if lets_through(sql, topic, payload)]


# -- the template -------------------------------------------------------------------------------------------------


def test_the_template_has_nothing_that_cfn_lint_would_mention() -> None:
    program = Path(sys.executable).parent / "cfn-lint"
    regions = ["--regions", "us-east-1", "eu-central-1", "--include-checks", "I"]
    done = subprocess.run([program, *regions, "--template", FOLDER / "template.yaml"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_function_has_nothing_that_ruff_would_mention(code: str) -> None:
    command = [Path(sys.executable).parent / "ruff", "check", "--isolated", "--select", "B,E,F,I,S,UP", "-"]
    done = subprocess.run([*command, "--line-length", "120"], input=code, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(code) <= 4096  # what every version of CloudFormation takes inline


def test_every_rule_says_what_becomes_of_a_failure(resources: dict[str, Any], rules: dict[str, str]) -> None:
    for name in rules:
        assert resources[name]["TopicRulePayload"]["ErrorAction"]["Sqs"]["QueueUrl"] == "Failures"
    assert resources["AskSpecialist"]["DeadLetterConfig"]["TargetArn"] == "Failures.Arn"


def test_the_roles_may_do_what_is_needed_and_no_more(resources: dict[str, Any]) -> None:
    def allowed(role: str) -> dict[str, str]:
        (policy,) = resources[role]["Policies"]
        statements = policy["PolicyDocument"]["Statement"]
        return {
            action: one["Resource"]
            for one in statements
            for action in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"])
        }

    function = allowed("FunctionRole")
    assert function.keys() == {"iot:Publish", "logs:CreateLogStream", "logs:PutLogEvents", "sqs:SendMessage"}
    topic = function["iot:Publish"].partition(":topic/")[2].replace("${SpecialistThing}", SPECIALIST)
    assert topic == TOPICS.own_requests
    rule = allowed("RuleRole")
    assert rule.keys() == {"sns:Publish", "sqs:SendMessage", "cloudwatch:PutMetricData"}
    assert [action for action, resource in (function | rule).items() if resource == "*"] == ["cloudwatch:PutMetricData"]


# -- the rules ----------------------------------------------------------------------------------------------------


def test_the_rules_ask_for_fields_that_the_messages_have(rules: dict[str, str]) -> None:
    kinds = {TOPICS.shared_requests: "search-request", "arxplorer/status/+": "status"}

    def known(schema: dict[str, Any], path: list[str]) -> bool:
        while path:
            schema = schemas()[kinds[topic_filter]]["$defs"][schema["$ref"].rpartition("/")[2]]
            schema = schema["properties"].get(path.pop(0))
            if schema is None:
                return False
        return True

    for sql in rules.values():
        selected, topic_filter, condition = parts(sql)
        assert "LIKE" not in sql  # AWS has none
        assert set(re.findall(r"(\w+)\(", sql)) <= FUNCTIONS
        bare = re.sub(r"'[^']*'|\w+(?=\()| AS \w+|\bAND\b", " ", f"{selected} {condition}")
        fields = set(re.findall(r"[a-z]\w*(?:\.\w+)*", bare))
        assert fields
        for path in fields:
            assert known(schemas()[kinds[topic_filter]], path.split(".")), path


def test_a_question_on_the_subject_is_let_through_and_others_are_not(rules: dict[str, str]) -> None:
    def asked(**request: Any) -> list[str]:
        return through(rules, TOPICS.shared_requests, json.dumps(request).encode())

    assert asked(**REQUEST) == ["RequestOnSubject"]
    assert asked(query="sphere packing") == []
    assert asked(queries=["machine learning"]) == []


def test_degraded_is_counted_and_online_is_no_matter(rules: dict[str, str]) -> None:
    def said(status: str) -> list[str]:
        details = {"service": "arxplorer_search", "version": "1.0", "problems": ["the disk is full"]}
        message = encode_status(status, details, client_id=SPECIALIST, timestamp=1.0)
        assert through(rules, TOPICS.status, message) == []  # else each would count twice
        return through(rules, TOPICS.own_status, message)

    assert {status: said(status) for status in ("online", "degraded")} == {"online": [], "degraded": ["AgentDegraded"]}


def test_an_agent_that_was_cut_off_is_reported_and_one_that_ends_is_not(
    rules: dict[str, str], agent: AgentProcess, client: Client
) -> None:
    def farewell() -> list[str]:
        while (message := client.next()).topic != TOPICS.own_status or b'"offline"' not in message.payload:
            pass
        return through(rules, message.topic, message.payload)

    client.subscribe("arxplorer/status/+")
    agent.stop(signal.SIGKILL)
    assert farewell() == ["AgentLost"]
    agent.start()
    agent.stop()
    assert farewell() == []


# -- the function -------------------------------------------------------------------------------------------------


def test_the_function_hands_the_question_on_to_the_agent_of_choice(hand_on, capsys) -> None:
    ((topic, payload),) = hand_on({**REQUEST, "asked_by": "app"})
    assert topic == TOPICS.own_requests
    request = parse_search_request(payload)
    assert (request.query, request.fields, request.request_id) == (REQUEST["query"], ("arxiv_id", "score"), "req-1")
    assert "reply_to" not in json.loads(payload)
    assert json.loads(capsys.readouterr().out) == {"asked": topic, "asked_by": "app", "query": REQUEST["query"]}


def test_no_rule_takes_what_the_function_or_the_answer_publishes(hand_on, rules: dict[str, str]) -> None:
    ((topic, payload),) = hand_on({**REQUEST, "asked_by": "app"})
    for published in (topic, TOPICS.results):
        assert through(rules, published, payload) == []


def test_the_agent_of_choice_answers_on_the_results_topic(hand_on, agent: AgentProcess, client: Client) -> None:
    client.subscribe(TOPICS.results)
    ((topic, payload),) = hand_on({**REQUEST, "asked_by": "app"})
    client.publish(topic, payload)
    message = client.next()
    answer = json.loads(message.payload)
    assert (message.topic, answer["request_id"], answer["client_id"]) == (TOPICS.results, "req-1", "mobile-app-123")
    assert (answer["count"], answer["metadata"]["processed_by"]) == (3, SPECIALIST)
