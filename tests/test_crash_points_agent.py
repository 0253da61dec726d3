"""kill -9 between the durable steps of the running agent: its own database, and what it owes to clients."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Client, wait_until
from crash_cases import cases, killed_at
from crash_outbox import WORK, check, sound

from agent.config import OutboxConfig
from agent.crash_points import VARIABLE
from agent.store.agent_db import AgentDatabase
from agent.store.outbox import Kept, Outbox

# -- agent.db ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scenario", "point"), cases("outbox", "damaged"))
def test_what_was_kept_is_there_after_a_kill_and_what_was_not_is_not(scenario: str, point: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    if scenario == "damaged":
        subprocess.run([sys.executable, "-c", WORK, str(path)], check=True, capture_output=True)
        content = path.read_bytes()
        assert content.count(b'"max_results":3') == 1
        path.write_bytes(content.replace(b'"max_results":3', b'"max_results":9'))
    told = killed_at(point, "-c", WORK, str(path)).splitlines()

    check(path, told)
    subprocess.run([sys.executable, "-c", WORK, str(path)], check=True, capture_output=True)
    assert sound(path)
    assert len(list(tmp_path.glob("agent.db.damaged-*"))) == (scenario == "damaged")


# -- what a client is owed ---------------------------------------------------------------------------------------------


def dies(agent) -> None:
    assert agent.process.wait(60) == -9


@pytest.mark.parametrize(("scenario", "point"), cases("question"))
def test_a_question_that_was_not_acknowledged_is_answered_again_after_a_kill(
    scenario: str, point: str, start_agent, sample_data_dir, broker
) -> None:
    agent = start_agent(sample_data_dir, broker.port, **{VARIABLE: point})
    client = Client(broker.port)
    question = b'{"query": "sphere packing"}'
    client.publish("arxplorer/search/requests", question, response_topic=client.answers, correlation=b"x")
    dies(agent)
    start_agent(sample_data_dir, broker.port)
    answers = [client.next(), client.next()]
    assert [answer.properties.CorrelationData for answer in answers] == [b"x", b"x"]
    client.close()


@pytest.mark.parametrize(("scenario", "point"), cases("update"))
def test_an_update_that_was_stored_is_reported_after_a_kill_and_not_stored_twice(
    scenario: str, point: str, start_agent, sample_data_dir, broker
) -> None:
    agent = start_agent(sample_data_dir, broker.port, **{VARIABLE: point})
    client = Client(broker.port)
    record = b'{"add": [{"arxiv_id": "2401.00001", "title": "An added paper", "abstract": "of today"}]}'
    client.publish("arxplorer/corpus/updates", record, response_topic=client.answers, correlation=b"x")
    dies(agent)
    start_agent(sample_data_dir, broker.port)
    assert b'"unchanged":1' in client.next().payload.replace(b" ", b"")
    client.close()


@pytest.mark.parametrize(("scenario", "point"), cases("deliver"))
def test_a_kept_answer_is_delivered_at_least_once_and_gone_then(
    scenario: str, point: str, start_agent, sample_data_dir, broker
) -> None:
    client = Client(broker.port)
    database = AgentDatabase(sample_data_dir / "agent.db")
    outbox = Outbox(database, OutboxConfig())
    rest = {"retain": False, "response_topic": None, "correlation": "78", "content_type": None, "user_properties": []}
    outbox.put([Kept("local", "answer", client.answers, b"kept", rest, b"k" * 32)])
    database.close()
    dies(start_agent(sample_data_dir, broker.port, wait=False, **{VARIABLE: point}))
    assert client.next().payload == b"kept"
    agent = start_agent(sample_data_dir, broker.port)
    assert client.next().payload == b"kept", "the broker may not have had it"

    def empty() -> bool:
        client.ask({"query": "sphere packing"})
        with closing(sqlite3.connect(sample_data_dir / "agent.db")) as db:
            return db.execute("SELECT count(*) FROM outbox").fetchone() == (0,)

    wait_until(empty)
    assert agent.stop() == 0
    client.close()
