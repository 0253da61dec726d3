"""The agent runs with exactly the policy that it prints: all of it is needed, and nothing else is asked for."""

import asyncio
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import AgentProcess, Client, wait_until
from local_cloud import ANSWER, CLOUD_ONLY, QUESTION, QUICK, STATUS, Desk, LocalCloud, Shadow, first, status

from agent.cloud.policy import THING_NAME, THING_VARIABLE, agent_policy
from agent.config import AwsIot
from agent.local_cloud.folder import CloudFolder
from agent.local_cloud.mosquitto import Mosquitto, free_port
from agent.local_cloud.policy import Policy, parse_policy
from agent.local_cloud.service import run
from agent.protocol.topics import AgentTopics

REQUESTS = "arxplorer/search/requests"
PROBE_S = 45.0
"""More than the 20 s that a probe has to come back."""


def printed() -> dict[str, Any]:
    aws_iot = AwsIot()
    return agent_policy(AgentTopics.of(aws_iot.topics, THING_VARIABLE), aws_iot.share_group)


@pytest.fixture
def without(cloud: LocalCloud, start_agent, sample_data_dir: Path, broker: Mosquitto) -> Callable[..., AgentProcess]:
    """Start the agent, on both links, with the printed policy but for one statement, or for some of it."""

    def start(statement: int, action: str = "", resource: str = "") -> AgentProcess:
        document = printed()
        if not action and not resource:
            del document["Statement"][statement]
        else:
            lesser = document["Statement"][statement]
            lesser["Action"] = [one for one in lesser["Action"] if one != action]
            lesser["Resource"] = [one for one in lesser["Resource"] if not resource or not one.endswith(resource)]
        (cloud.folder / "policies" / "device.json").write_text(json.dumps(document))
        return start_agent(sample_data_dir, broker.port, config=cloud.config("device"), **QUICK)

    return start


@pytest.fixture
def local(client: Client) -> Iterator[Client]:
    """Who asks and reads the status on the local link, whatever the cloud does."""
    client.subscribe(f"{STATUS}/device")
    return client


def problem(local: Client, words: str) -> None:
    """Wait until the status on the local link names a problem, and see that local questions are answered all the same."""
    status(local, lambda said: any(words in one for one in said["details"].get("problems", [])))
    assert first(local.ask(QUESTION)) == ANSWER


def log_of(agent: AgentProcess) -> str:
    return agent.log.read_text("utf-8", "replace")


def everything_works(app: Client, insider: Client, shadow: Shadow) -> None:
    """What an agent does on the cloud link, each once."""
    insider.subscribe(f"{STATUS}/device")
    insider.subscribe("arxplorer/search/results")
    insider.subscribe("arxplorer/embeddings/response")
    assert status(insider, lambda said: said["status"] == "online")["client_id"] == "device"
    assert first(app.ask(QUESTION)) == ANSWER
    assert first(app.ask(QUESTION, f"{REQUESTS}/device")) == ANSWER
    assert app.ask({"text": "galaxies"}, "arxplorer/embeddings")["dimensions"] == 384
    paper = {"arxiv_id": "2401.00001", "title": "Zebrafish migration", "abstract": "Fish that travel."}
    assert app.ask({"add": [paper]}, "arxplorer/corpus/updates")["added"] == 1
    for topic, payload in ((REQUESTS, QUESTION), ("arxplorer/embeddings", {"text": "galaxies"})):
        app.publish(topic, json.dumps(payload).encode())  # without a topic of its own for the answer
    left = {"arxplorer/search/results", "arxplorer/embeddings/response"}
    while left:
        left.discard(insider.next().topic)
    wanted = shadow.wish(settings={"search": {"max_results": 3}})
    wait_until(lambda: shadow.reported.get("config", {}).get("document_version") == wanted)
    assert shadow.reported["config"]["status"] == "applied"
    assert app.ask(QUESTION)["count"] == 3
    desk = Desk(shadow.cloud, shadow.thing)
    desk.until(desk.create({"operation": "nothing that it knows"}, "job"), "REJECTED")


# -- one statement after the other, in the order of the document ------------------------------------------------------


def test_statement_0_without_connect_the_agent_says_that_it_is_not_authorized(without, cloud, local: Client) -> None:
    agent = without(0)
    wait_until(lambda: "refused, 0x87: not authorized" in log_of(agent))
    assert "CONNECT refused: NOT_AUTHORIZED" in cloud.log
    problem(local, "not authorized")


def test_statement_1_without_publish_the_agent_says_that_it_is_not_authorized(without, cloud, local: Client) -> None:
    agent = without(1)
    wait_until(lambda: "lost: 0x87: not authorized" in log_of(agent))
    assert re.search(r"disconnected with 0x87 NOT_AUTHORIZED: a message of \d+ bytes", cloud.log)
    problem(local, "not authorized")


@pytest.mark.parametrize("own", [f"{REQUESTS}/${{{THING_NAME}}}", "/shadow/*", "/jobs/*"])
def test_statement_2_without_what_is_its_own_it_says_that_it_is_not_authorized(
    without, cloud, local: Client, own: str
) -> None:
    agent = without(2, resource=own)
    wait_until(lambda: "lost: 0x87: not authorized" in log_of(agent))
    topic = own.replace(f"${{{THING_NAME}}}", "device").removesuffix("*")
    assert re.search(f"0x87 NOT_AUTHORIZED: a message of .*{topic}", cloud.log)
    problem(local, "not authorized")


def test_statement_2_without_retaining_the_agent_says_that_it_is_not_authorized(without, cloud, local: Client) -> None:
    agent = without(2, "iot:RetainPublish")
    wait_until(lambda: "lost: 0x87: not authorized" in log_of(agent))
    assert "last will not allowed: left out" in cloud.log
    assert re.search(
        r"0x87 NOT_AUTHORIZED: a retained message of \d+ bytes, QoS 1, on 'arxplorer/status/device'", cloud.log
    )
    problem(local, "not authorized")


def test_statement_3_without_subscribe_the_agent_names_what_it_cannot_hear(without, cloud, local: Client) -> None:
    agent = without(3, "iot:Subscribe")
    wait_until(lambda: "the broker refused the subscription to" in log_of(agent))
    refused = re.search("not subscribed: (.*)", cloud.log)[1]
    for topic in (
        f"$share/arxplorer/{REQUESTS}",
        f"{REQUESTS}/device",
        "arxplorer/embeddings",
        "arxplorer/corpus/updates",
    ):
        assert f"'{topic}' NOT_AUTHORIZED" in refused
    problem(local, "refused the subscription to")


def test_statement_3_without_receive_requests_to_all_do_not_arrive(without, cloud, app: Client) -> None:
    """Those to this agent alone do, and so do its probes: nobody but the service can tell that the others do not."""
    agent = without(3, "iot:Receive")
    wait_until(lambda: f"connected to localhost:{cloud.port}" in log_of(agent))
    app.publish(REQUESTS, json.dumps(QUESTION).encode())
    wait_until(lambda: f"receiving on '{REQUESTS}' is not allowed" in cloud.log)
    assert first(app.ask(QUESTION, f"{REQUESTS}/device")) == ANSWER


def test_without_receive_of_its_own_requests_the_agent_notices_that_it_hears_nothing(
    cloud: LocalCloud, start_agent, sample_data_dir: Path, broker: Mosquitto, local: Client
) -> None:
    document = printed()
    document["Statement"][2]["Action"].remove("iot:Receive")
    (cloud.folder / "policies" / "device.json").write_text(json.dumps(document))
    agent = start_agent(sample_data_dir, broker.port, config=cloud.config("device"), **QUICK)
    wait_until(lambda: "hears nothing" in log_of(agent), PROBE_S)
    assert f"receiving on '{REQUESTS}/device' is not allowed" in cloud.log
    problem(local, "iot:Receive")


@pytest.mark.parametrize("statement", range(len(printed()["Statement"])))
def test_each_statement_has_its_test(statement: int) -> None:
    tests = [name for name, _ in inspect.getmembers(sys.modules[__name__], inspect.isfunction)]
    assert any(name.startswith(f"test_statement_{statement}_") for name in tests)


# -- all of it --------------------------------------------------------------------------------------------------------


class Recorded(Policy):
    """Remembers what it was asked for."""

    def __init__(self, policy: Policy, asked: list[tuple[tuple[Any, ...], bool]]) -> None:
        super().__init__(policy.statements)
        self._asked = asked

    def allows(self, *question: Any) -> bool:
        allowed = super().allows(*question)
        self._asked.append((question, allowed))
        return allowed


async def test_with_all_of_the_policy_everything_works_and_each_resource_in_it_is_used(
    start_agent, sample_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[Any, ...], bool]] = []
    policy_of = CloudFolder.policy_of

    def recorded(folder: CloudFolder, thing: str) -> Policy:
        policy = policy_of(folder, thing)
        return Recorded(policy, asked) if thing == "device" else policy

    monkeypatch.setattr(CloudFolder, "policy_of", recorded)
    tmp_path.chmod(0o755)  # mosquitto gives up root
    cloud = LocalCloud(tmp_path)
    ready = asyncio.Event()
    serving = asyncio.create_task(run(cloud.folder, cloud.port, ["device"], ["app"], ready.set))
    try:
        await ready.wait()
        (cloud.folder / "policies" / "device.json").write_text(json.dumps(printed()))

        def exercise() -> None:
            insider, app = cloud.insider(), cloud.client()
            insider.subscribe(STATUS)
            agent = start_agent(sample_data_dir, free_port(), config=cloud.config("device"), **CLOUD_ONLY, **QUICK)
            everything_works(app, insider, Shadow(cloud, "device"))
            assert agent.stop() == 0
            app.close()
            insider.close()

        await asyncio.to_thread(exercise)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert [question for question, allowed in asked if not allowed] == []
    for number, statement in enumerate(printed()["Statement"]):
        for place, resource in enumerate(statement["Resource"]):
            document = printed()
            document["Statement"][number]["Resource"][place] = "arn:aws:iot:us-east-1:123456789012:topic/nobody's"
            lesser = parse_policy(json.dumps(document))
            assert any(not lesser.allows(*question) for question, _ in asked), f"{statement['Action']} on {resource}"
        for action in statement["Action"] if isinstance(statement["Action"], list) else []:
            document = printed()
            document["Statement"][number]["Action"].remove(action)
            lesser = parse_policy(json.dumps(document))
            assert any(not lesser.allows(*question) for question, _ in asked), f"{action} of {statement['Resource']}"
