"""The running agent, asked by an independent MQTT client through a real broker."""

import getpass
import json
import os
import re
import signal
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from conftest import AgentProcess, Client, run_command, wait_until

from agent.local_cloud.mosquitto import Mosquitto

REQUESTS = "arxplorer/search/requests"
QUESTION = {"query": "how tightly can equal spheres be packed", "request_id": "r-1", "client_id": "app-1"}
ANSWER = "1603.04246"


def first(answer: dict) -> str:
    return answer["results"][0]["arxiv_id"]


# -- requests and answers ---------------------------------------------------------------------------------------------


def test_a_request_is_answered_on_its_response_topic_with_its_correlation_data(agent, client: Client) -> None:
    client.publish(REQUESTS, json.dumps(QUESTION).encode(), response_topic=client.answers, correlation=b"\x00\xff42")
    message = client.next()
    answer = json.loads(message.payload)
    assert (message.topic, message.qos, message.retain) == (client.answers, 1, False)
    assert message.properties.CorrelationData == b"\x00\xff42"
    assert message.properties.ContentType == "application/json"
    assert (first(answer), answer["request_id"], answer["client_id"]) == (ANSWER, "r-1", "app-1")
    assert answer["query"] == QUESTION["query"]
    metadata = answer["metadata"]
    assert (metadata["processed_by"], metadata["mode"], metadata["truncated"]) == ("test-agent", "hybrid", False)
    assert metadata["corpus_version"] == "local+149"
    assert abs(answer["timestamp"] - time.time()) < 60


def test_an_mqtt_3_client_names_its_answer_topic_in_the_message(agent: AgentProcess, client: Client) -> None:
    old = Client(agent.port, version=paho.MQTTv311)
    old.publish(REQUESTS, json.dumps({**QUESTION, "reply_to": old.answers}).encode())
    assert first(json.loads(old.next().payload)) == ANSWER
    old.close()


def test_without_a_topic_of_its_own_a_request_is_answered_on_the_results_topic(agent, client: Client) -> None:
    client.subscribe("arxplorer/search/results")
    client.publish(REQUESTS, json.dumps(QUESTION).encode())
    message = client.next()
    assert (message.topic, first(json.loads(message.payload))) == ("arxplorer/search/results", ANSWER)


def test_an_agent_can_be_asked_alone(agent: AgentProcess, client: Client) -> None:
    assert first(client.ask(QUESTION, topic=f"{REQUESTS}/test-agent")) == ANSWER


@pytest.mark.parametrize("topic", ["elsewhere/x", "arxplorer/status/test-agent", "arxplorer/search/requests"])
def test_a_refused_answer_topic_gets_an_error_without_results_on_the_results_topic(agent, client, topic: str) -> None:
    client.subscribe("arxplorer/search/results")
    client.subscribe("elsewhere/#")
    client.publish(REQUESTS, json.dumps(QUESTION).encode(), response_topic=topic)
    message = client.next()
    answer = json.loads(message.payload)
    assert (message.topic, answer["results"], answer["error"]["field"]) == (
        "arxplorer/search/results",
        [],
        "response_topic",
    )
    assert first(client.ask(QUESTION)) == ANSWER


def test_answer_topics_that_no_packet_may_hold_cost_nothing(agent: AgentProcess, client: Client) -> None:
    """More of them than requests may be under way: each gets its error, none stays unacknowledged."""
    client.subscribe("arxplorer/search/results")
    for ending in ["a\nb", "\x01", "\x7f", "\ufdd0", "\ufffe"] * 10:
        client.publish(REQUESTS, json.dumps({**QUESTION, "reply_to": f"arxplorer/responses/{ending}"}).encode())
        assert json.loads(client.next().payload)["error"]["field"] == "reply_to"
    assert first(client.ask(QUESTION)) == ANSWER
    assert b"Traceback" not in agent.log.read_bytes()


HOSTILE = {
    "invalid UTF-8": b'{"query": "\xff\xfe"}',
    "no JSON": b"{{{{",
    "empty": b"",
    "deep": b'{"query": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep in an unknown field": b'{"query": "x", "y": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "an array": b"[1, 2]",
    "wrong type": b'{"query": 5}',
    "NaN": b'{"query": "x", "timestamp": NaN}',
    "a huge number": b'{"query": "x", "offset": 1e308}',
    "a huge integer": b'{"query": "x", "filters": {"max_results": ' + b"9" * 5_000 + b"}}",
    "unknown mode": b'{"query": "x", "filters": {"mode": "magic"}}',
    "query syntax": b'{"query": "body:x^2 AND (NOT [a TO b] \\"~3"}',
    "SQL": b'{"query": "\'; DROP TABLE papers; --", "filters": {"author": "\' OR 1=1 --"}}',
    "control characters": b'{"query": "a\\u0000b\\u0007\\u001b[31m"}',
    "lone surrogate": b'{"query": "\\ud800"}',
    "200 KB of x": b'{"query": "' + b"x" * 200_000 + b'"}',
    "200 KB of words": b'{"query": "' + b"x " * 100_000 + b'"}',
}


def test_every_hostile_request_gets_an_answer_and_the_next_one_is_right(agent: AgentProcess, client: Client) -> None:
    for name, payload in HOSTILE.items():
        answer = client.ask(payload)
        if "error" in answer:
            code = answer["error"]["code"]
            assert code in ("invalid_json", "invalid_request", "payload_too_large"), name
            assert code != "invalid_request" or answer["error"]["field"] or name == "an array", name
            assert (answer["results"], answer["count"]) == ([], 0)
        assert first(client.ask(QUESTION)) == ANSWER, name
    assert agent.process.poll() is None


def test_many_requests_at_once_are_all_answered(agent: AgentProcess, client: Client) -> None:
    for number in range(200):
        request = {"query": f"question number {number}", "request_id": str(number)}
        client.publish(REQUESTS, json.dumps(request).encode(), response_topic=client.answers)
    answered = {json.loads(client.next().payload)["request_id"] for _ in range(200)}
    assert answered == {str(number) for number in range(200)}


def test_a_retained_request_is_not_answered_at_each_start(start_agent, sample_data_dir, broker, client: Client) -> None:
    client.publish(REQUESTS, json.dumps({**QUESTION, "reply_to": client.answers}).encode(), retain=True)
    start_agent(sample_data_dir, broker.port)
    assert first(client.ask({**QUESTION, "request_id": "live"})) == ANSWER
    assert client.received.empty()


def test_a_paper_with_characters_that_no_editor_shows_is_delivered_as_it_was_given(
    start_agent, sample_data_dir, broker: Mosquitto, client: Client
) -> None:
    """Real abstracts hold U+007F and C1 controls, which MQTT allows in a payload but not in a topic."""
    text = "a" + "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0xFDD0, 0xFEFF, 0xFFFE, 0xFFFF, 0x1FFFE]))
    row = json.dumps({"arxiv_id": "2401.00001", "title": "Zebrafish", "abstract": text}).encode()
    run_command("corpus", "import", "-", "--no-embed", data_dir=sample_data_dir, stdin=row)
    start_agent(sample_data_dir, broker.port)
    assert client.ask({"query": "2401.00001"})["results"][0]["abstract"] == text


def test_an_answer_is_fitted_to_what_the_broker_takes(start_agent, sample_data_dir, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with Mosquitto(tmp_path / "strict", extra="max_packet_size 6000") as strict:
        start_agent(sample_data_dir, strict.port)
        client = Client(strict.port)
        answer = client.ask({**QUESTION, "filters": {"max_results": 50}})
        assert answer["metadata"]["truncated"]
        assert 0 < answer["count"] <= 50
        assert first(answer) == ANSWER
        client.close()


def test_an_answer_topic_that_the_broker_forbids_is_reported_on_the_results_topic(
    start_agent, sample_data_dir, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite arxplorer/search/#\ntopic readwrite arxplorer/status/#\n")
    rules.chmod(0o644)
    with Mosquitto(tmp_path / "strict", extra=f"acl_file {rules}\nuser {getpass.getuser()}") as strict:
        start_agent(sample_data_dir, strict.port)
        client = Client(strict.port)
        client.subscribe("arxplorer/search/results")
        client.publish(REQUESTS, json.dumps(QUESTION).encode(), response_topic=client.answers)
        message = client.next()
        answer = json.loads(message.payload)
        assert (message.topic, answer["error"]["field"]) == ("arxplorer/search/results", "response_topic")
        assert (answer["request_id"], answer["results"]) == ("r-1", [])
        client.close()


# -- acknowledged only when answered ----------------------------------------------------------------------------------


def test_the_answer_is_at_the_broker_before_the_request_is_acknowledged(agent, broker: Mosquitto, client) -> None:
    for number in range(20):
        client.ask({"query": f"question {number}"})
    # QoS 1 from broker to agent: the broker's log names the packet ids of requests sent to the agent and of
    # their acknowledgements, and the answers that came in between.
    wait_until(lambda: broker.log.read_text("utf-8", "replace").count("Received PUBACK from test-agent") >= 20)
    answers = acknowledged = 0
    for line in broker.log.read_text("utf-8", "replace").splitlines():
        if re.search(rf"Received PUBLISH from test-agent .*'{client.answers}'", line):
            answers += 1
        elif "Received PUBACK from test-agent" in line:
            acknowledged += 1
            assert acknowledged <= answers
    assert (answers, acknowledged) == (20, 20)


def test_requests_sent_while_the_agent_is_away_are_answered_when_it_is_back(agent, client: Client) -> None:
    """They arrive with the connection, before the subscriptions are confirmed; quick answers must not fail by that."""
    assert agent.stop() == 0
    names = {f"away-{number}" for number in range(40)}
    for name in names:
        request = {**QUESTION, "request_id": name, "filters": {"mode": "keyword"}}
        client.publish(REQUESTS, json.dumps(request).encode(), response_topic=client.answers)
    agent.start()
    assert {json.loads(client.next().payload)["request_id"] for _ in names} == names


def test_a_killed_agent_leaves_no_request_unanswered(agent: AgentProcess, client: Client) -> None:
    ids = {f"kill-{number}" for number in range(60)}
    for name in ids:
        client.publish(REQUESTS, json.dumps({**QUESTION, "request_id": name}).encode(), response_topic=client.answers)
    answered = {json.loads(client.next().payload)["request_id"]}
    agent.stop(signal.SIGKILL)
    agent.start()
    while answered != ids:
        answered.add(json.loads(client.next().payload)["request_id"])


def test_the_agent_waits_for_its_broker_and_comes_back_to_it(
    start_agent, sample_data_dir: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    broker = Mosquitto(tmp_path / "broker")
    agent = start_agent(sample_data_dir, broker.port, wait=False)
    wait_until(lambda: b"cannot connect" in agent.log.read_bytes())
    for _ in range(2):
        with broker:  # a new broker each time: it knows neither session nor subscription
            client = Client(broker.port)
            client.subscribe("arxplorer/status/test-agent")
            assert json.loads(client.next().payload)["status"] == "online"
            assert first(client.ask(QUESTION)) == ANSWER
            client.close()
    assert agent.stop() == 0


# -- status and life --------------------------------------------------------------------------------------------------


def test_the_status_is_retained_and_says_what_the_agent_can_do(agent: AgentProcess, client: Client) -> None:
    def retained() -> dict:
        reader = Client(agent.port)
        reader.subscribe("arxplorer/status/test-agent")
        message = reader.next()
        reader.close()
        return json.loads(message.payload) if message.retain else {}

    status = wait_until(retained)
    assert (status["status"], status["client_id"]) == ("online", "test-agent")
    details = status["details"]
    assert details["corpus"] == {"papers": 149, "embedded": 149, "version": "local+149"}
    assert details["capabilities"] == ["keyword_search", "semantic_search", "hybrid_search"]
    assert (details["service"], details["problems"]) == ("arxplorer_search", [])
    assert details["memory_mb"]["uss"] > 0


def test_the_heartbeat_counts_requests(start_agent, sample_data_dir, broker: Mosquitto, client: Client) -> None:
    start_agent(sample_data_dir, broker.port, ARXPLORER__HEALTH__HEARTBEAT_S="1")
    client.ask(QUESTION)
    client.ask(b"bad")
    client.subscribe("arxplorer/status")

    def counted() -> bool:
        message = client.next()
        counters = json.loads(message.payload)["details"]["counters"]
        return not message.retain and counters == {"requests": 2, "answers": 1, "errors": 1}

    wait_until(counted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_in_order_quick_and_said(agent: AgentProcess, client: Client, number: int) -> None:
    client.subscribe("arxplorer/status/test-agent")
    client.next()
    assert agent.stop(number, timeout_s=5) == 0
    assert json.loads(client.next().payload)["status"] == "offline"
    assert b"Traceback" not in agent.log.read_bytes()


def test_a_stop_under_load_is_quick_too(agent: AgentProcess, client: Client) -> None:
    for _ in range(300):
        client.publish(REQUESTS, json.dumps(QUESTION).encode(), response_topic=client.answers)
    assert agent.stop(timeout_s=5) == 0
    assert b"Traceback" not in agent.log.read_bytes()


def test_the_last_will_says_offline_when_the_agent_dies(agent: AgentProcess, client: Client) -> None:
    client.subscribe("arxplorer/status/test-agent")
    client.next()
    agent.stop(signal.SIGKILL)
    message = client.next(timeout_s=15)
    assert json.loads(message.payload)["status"] == "offline"


def test_an_agent_without_papers_says_so_and_answers_once_they_are_imported(
    start_agent, tmp_path, broker, client
) -> None:
    (tmp_path / "data").mkdir()
    start_agent(tmp_path / "data", broker.port)
    assert client.ask(QUESTION)["error"]["code"] == "not_ready"
    assert run_command("corpus", "import", "--sample", data_dir=tmp_path / "data").returncode == 0
    wait_until(lambda: "results" in (answer := client.ask(QUESTION)) and answer["results"] and first(answer) == ANSWER)


def test_an_agent_told_to_begins_with_the_sample_papers_once(start_agent, tmp_path, broker, client) -> None:
    (tmp_path / "data").mkdir()
    agent = start_agent(tmp_path / "data", broker.port, arguments=["--sample"])
    answer = client.ask(QUESTION)
    assert (first(answer), answer["metadata"]["mode"]) == (ANSWER, "hybrid")
    exported = run_command("corpus", "export", data_dir=agent.data_dir).stdout.splitlines()
    papers = [json.loads(line)["arxiv_id"] for line in exported]
    assert run_command("corpus", "remove", *papers, data_dir=agent.data_dir).returncode == 0
    agent.stop()
    agent.start()
    assert client.ask(QUESTION)["results"] == []


def test_the_running_agent_embeds_what_was_imported_without_vectors(agent: AgentProcess, client: Client) -> None:
    rows = [{"arxiv_id": f"2401.{i:05d}", "title": f"Zebrafish migration {i}", "abstract": "Fish."} for i in range(5)]
    data = "\n".join(map(json.dumps, rows)).encode()
    done = run_command("corpus", "import", "-", "--no-embed", "--json", data_dir=agent.data_dir, stdin=data)
    assert json.loads(done.stdout)["added"] == 5
    request = {"query": "small striped fish travelling", "filters": {"mode": "semantic", "max_results": 5}}
    wait_until(lambda: {hit["arxiv_id"] for hit in client.ask(request)["results"]} == {row["arxiv_id"] for row in rows})


def test_a_wrong_broker_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    refused = run_command("run", data_dir=tmp_path / "data", ARXPLORER__AWS_IOT__ENABLED="true")
    assert (refused.returncode, b"aws_iot.endpoint" in refused.stderr) == (1, True)
    unread = run_command("run", data_dir=tmp_path / "data", ARXPLORER__LOCAL_BROKER__PASSWORD_FILE="/absent")
    assert (unread.returncode, b"local_broker.password_file" in unread.stderr) == (1, True)


def test_the_agent_is_small_and_quiet_while_idle(agent: AgentProcess, client: Client) -> None:
    """No threshold on speed or size (scripts/bench measures them): only that it does not poll in a loop."""
    client.ask(QUESTION)
    ticks = os.sysconf("SC_CLK_TCK")

    def cpu() -> int:
        fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before, started = cpu(), time.monotonic()
    wait_until(lambda: time.monotonic() - started > 2)
    assert (cpu() - before) / ticks < 0.5 * (time.monotonic() - started)
