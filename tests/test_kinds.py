"""Every kind of message, through a real broker, by an independent client."""

import asyncio
import gzip
import json
import threading
from concurrent.futures import Future

import numpy as np
import paho.mqtt.client as paho
import pytest
from conftest import AgentProcess, Client, run_command, wait_until

from agent.bridge import MQTTSearchBridge
from agent.config import load_config
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker
from agent.search import SearchAPI

REQUESTS, EMBEDDINGS, UPDATES = "arxplorer/search/requests", "arxplorer/embeddings", "arxplorer/corpus/updates"
QUESTION, ANSWER = "how tightly can equal spheres be packed", "1603.04246"


def ids(result: dict) -> list[str]:
    return [hit["arxiv_id"] for hit in result["results"]]


def test_several_questions_are_answered_in_one_message_and_in_order(agent: AgentProcess, client: Client) -> None:
    answer = client.ask(
        {
            "queries": [
                QUESTION,
                {"query": "neutrino", "filters": {"mode": "keyword", "max_results": 2}},
                "1503.02531",
            ],
            "filters": {"max_results": 3},
            "fields": ["arxiv_id"],
            "request_id": "b-1",
        }
    )
    assert [part["query"] for part in answer["batches"]] == [QUESTION, "neutrino", "1503.02531"]
    assert (ids(answer["batches"][0])[0], ids(answer["batches"][2])[0]) == (ANSWER, "1503.02531")
    assert [part["count"] for part in answer["batches"]] == [3, 2, 3]
    assert answer["batches"][1]["metadata"]["mode"] == "keyword"
    assert (answer["request_id"], answer["count"]) == ("b-1", 8)
    assert set(answer["batches"][0]["results"][0]) == {"arxiv_id"}
    assert client.ask({"queries": ["x", {"query": ""}]})["error"]["field"] == "queries[1].query"


def test_a_compressed_answer_is_sent_to_those_who_take_it(agent: AgentProcess, client: Client) -> None:
    plain = {"query": QUESTION, "filters": {"max_results": 30}}
    request = json.dumps({**plain, "accept_encoding": ["gzip"]}).encode()
    client.publish(REQUESTS, request, response_topic=client.answers)
    message = client.next()
    assert message.properties.ContentType == "application/gzip"
    assert ("content-encoding", "gzip") in message.properties.UserProperty
    answer = json.loads(gzip.decompress(message.payload))
    assert ids(answer) == ids(client.ask(plain))
    assert len(message.payload) < 0.6 * len(json.dumps(answer))


def test_texts_are_embedded_as_the_index_embeds_them(agent: AgentProcess, client: Client, embedder) -> None:
    texts = ["sphere packing", "Bose-Einstein condensation"]
    answer = client.ask({"text": texts, "request_id": "e-1"}, EMBEDDINGS)
    assert (answer["model"], answer["dimensions"], answer["request_id"]) == ("all-MiniLM-L6-v2", 384, "e-1")
    for text, vector in zip(texts, answer["embeddings"], strict=True):
        assert np.dot(vector, embedder.query(text)) == pytest.approx(1, abs=1e-4)
    assert len(client.ask({"text": "one"}, EMBEDDINGS)["embeddings"]) == 1
    assert client.ask({"text": 5}, EMBEDDINGS)["error"]["field"] == "text"
    many = client.ask({"text": ["word"] * 32}, EMBEDDINGS)
    assert len(many["embeddings"]) == 32


def test_embeddings_without_a_topic_of_their_own_go_where_the_seed_says(agent: AgentProcess, client: Client) -> None:
    client.subscribe(f"{EMBEDDINGS}/response")
    client.publish(EMBEDDINGS, json.dumps({"text": "one"}).encode())
    message = client.next()
    assert (message.topic, len(json.loads(message.payload)["embeddings"])) == (f"{EMBEDDINGS}/response", 1)
    client.publish(EMBEDDINGS, b"{}")
    message = client.next()
    assert (message.topic, json.loads(message.payload)["error"]["field"]) == (f"{EMBEDDINGS}/response", "text")


PAPER = {"arxiv_id": "2401.00001", "title": "Zebrafish migration", "abstract": "Fish.", "categories": ["q-bio.PE"]}


def test_a_corpus_update_is_stored_before_it_is_acknowledged_and_found_soon_after(agent, client: Client) -> None:
    report = client.ask({"add": [PAPER], "remove": [ANSWER, "absent"], "request_id": "u-1"}, UPDATES)
    assert (report["added"], report["removed"], report["request_id"]) == (1, 1, "u-1")
    for mode in ("keyword", "semantic"):
        request = {"query": "zebrafish", "filters": {"mode": mode}}
        wait_until(lambda request=request: ids(client.ask(request))[:1] == [PAPER["arxiv_id"]])
    assert ANSWER not in ids(client.ask({"query": QUESTION}))
    again = client.ask({"add": [PAPER], "remove": [ANSWER]}, UPDATES)
    assert (again["added"], again["unchanged"], again["removed"]) == (0, 1, 0)


def test_updates_are_carried_out_in_the_order_in_which_they_were_sent(agent: AgentProcess, client: Client) -> None:
    for version in range(1, 41):
        record = {
            **PAPER,
            "title": f"Zebrafish {version}",
            "updated": f"2024-01-{version % 28 + 1:02d}",
            "version": version,
        }
        client.publish(UPDATES, json.dumps({"add": [record]}).encode())
    client.publish(UPDATES, json.dumps({"remove": [PAPER["arxiv_id"]]}).encode())
    report = client.ask({"add": [{**PAPER, "title": "Zebrafish at last"}]}, UPDATES)
    assert report["added"] == 1
    wait_until(lambda: client.ask({"query": PAPER["arxiv_id"]})["results"][:1])
    assert client.ask({"query": PAPER["arxiv_id"]})["results"][0]["title"] == "Zebrafish at last"


def test_an_update_is_acknowledged_once(agent: AgentProcess, broker, client: Client) -> None:
    client.ask({"add": [PAPER]}, UPDATES)
    client.ask({"query": QUESTION})
    # An acknowledgement too many for the update would stand between the two that belong here.
    wait_until(lambda: broker.log.read_text("utf-8", "replace").count("Received PUBACK from test-agent") == 2)


def test_an_update_with_one_bad_record_changes_nothing_and_names_it(agent: AgentProcess, client: Client) -> None:
    bad = {"arxiv_id": "2401.00002", "title": 5}
    answer = client.ask({"add": [PAPER, bad], "remove": [ANSWER]}, UPDATES)
    assert answer["error"]["field"] == "add[1].title"
    assert client.ask({"add": [{**PAPER, "vector": [1, 2]}]}, UPDATES)["error"]["field"] == "add[0].vector"
    assert ids(client.ask({"query": PAPER["arxiv_id"]})) == []
    assert ids(client.ask({"query": QUESTION}))[0] == ANSWER


def test_updates_survive_a_kill_in_the_middle(agent: AgentProcess, client: Client) -> None:
    records = [{**PAPER, "arxiv_id": f"2402.{n:05d}", "title": f"Zebrafish {n}"} for n in range(60)]
    for record in records:
        client.publish(UPDATES, json.dumps({"add": [record]}).encode())
    client.ask({"query": "x"})  # some of them are through by now
    agent.process.kill()
    agent.process.wait()
    agent.start()
    request = {"queries": [record["arxiv_id"] for record in records[::4]], "fields": ["arxiv_id"]}
    wait_until(lambda: all(part["results"] for part in client.ask(request)["batches"]))


@pytest.mark.parametrize(("bound", "value"), [("MAX_WAITING", 3), ("MAX_WAITING_BYTES", 3_000)])
async def test_what_waited_too_long_expires_and_what_does_not_fit_is_refused_as_overloaded(
    broker, sample_data_dir, monkeypatch, client: Client, bound: str, value: int
) -> None:
    """With one worker that is held up, so that both cases come for sure."""
    config = load_config(
        environment={"ARXPLORER__LIMITS__WORKERS": "1", "ARXPLORER__LOCAL_BROKER__PORT": str(broker.port)},
        data_dir=sample_data_dir,
    )
    monkeypatch.setattr(f"agent.bridge.{bound}", value)
    release = threading.Event()
    with SearchAPI(config) as api:
        api.open(model=False)
        connection = Connection(Broker("127.0.0.1", broker.port, "slow-agent"))
        bridge = MQTTSearchBridge(connection, api)
        await bridge.setup()
        connection.start()
        await connection.wait_connected(20)
        api.pool.submit(release.wait, 20)
        for number in range(4):
            request = json.dumps({"query": "sphere", "request_id": str(number)}).encode()
            expiry_s = 1 if number == 1 else None
            client.publish(
                REQUESTS, request, response_topic=client.answers, correlation=b"c" * 1_000, expiry_s=expiry_s
            )
        refused = json.loads((await asyncio.to_thread(client.next)).payload)
        assert (refused["request_id"], refused["error"]["code"]) == ("3", "overloaded")
        await asyncio.sleep(1.2)  # what expires is time itself
        release.set()
        answers = [json.loads((await asyncio.to_thread(client.next)).payload) for _ in range(3)]
        assert [(answer["request_id"], answer.get("error", {}).get("code")) for answer in answers] == [
            ("0", None),
            ("1", "expired"),
            ("2", None),
        ]
        await bridge.close()
        await connection.stop()
    assert dict(bridge.counters) == {"requests": 4, "answers": 2, "errors": 2}


async def test_an_update_is_acknowledged_once_it_is_stored_also_while_its_report_is_under_way(
    broker, sample_data_dir, monkeypatch, client: Client
) -> None:
    """Else a later update, acknowledged first, could be overtaken: after a lost link the earlier one would come again."""
    with SearchAPI(load_config(environment={}, data_dir=sample_data_dir)) as api:
        api.open(owner=True, model=False)
        connection = Connection(Broker("127.0.0.1", broker.port, "updated"))
        bridge = MQTTSearchBridge(connection, api)
        await bridge.setup()
        connection.start()
        await connection.wait_connected(20)
        monkeypatch.setattr(connection, "publish_soon", lambda _: Future())  # a report that does not arrive
        client.publish(UPDATES, json.dumps({"add": [PAPER]}).encode(), response_topic=client.answers)
        client.publish(UPDATES, json.dumps({"remove": [f"arXiv:{PAPER['arxiv_id']}v3"]}).encode())

        def acknowledged() -> bool:
            return broker.log.read_text("utf-8", "replace").count("Received PUBACK from updated") == 2

        await asyncio.to_thread(wait_until, acknowledged)
        assert api.engine.index.papers.find(PAPER["arxiv_id"]) is None
        await connection.stop()


def test_what_is_added_while_the_agent_embeds_a_backlog_does_not_wait_for_it(
    agent: AgentProcess, client: Client
) -> None:
    rows = [
        {"arxiv_id": f"2403.{n:05d}", "title": f"Backlog {n}", "abstract": "many words " * 60} for n in range(1_500)
    ]
    data = "\n".join(map(json.dumps, rows)).encode()
    run_command("corpus", "import", "-", "--no-embed", data_dir=agent.data_dir, stdin=data)
    client.ask({"add": [PAPER]}, UPDATES)
    request = {"query": "zebrafish", "filters": {"mode": "semantic", "max_results": 1}}
    wait_until(lambda: ids(client.ask(request)) == [PAPER["arxiv_id"]])
    stats = json.loads(run_command("corpus", "stats", "--json", data_dir=agent.data_dir).stdout)
    assert stats["embedded"] < stats["papers"], "the backlog was gone before"


async def test_a_bridge_whose_corpus_is_open_to_read_takes_no_updates(broker, sample_data_dir, client: Client) -> None:
    with SearchAPI(load_config(environment={}, data_dir=sample_data_dir)) as api:
        api.open(model=False)
        connection = Connection(Broker("127.0.0.1", broker.port, "reader"))
        bridge = MQTTSearchBridge(connection, api)
        await bridge.setup()
        connection.start()
        await connection.wait_connected(20)
        refused = await asyncio.to_thread(client.ask, {"remove": [ANSWER]}, UPDATES)
        assert refused["error"]["code"] == "unsupported"
        assert ids(await asyncio.to_thread(client.ask, {"query": ANSWER}))[0] == ANSWER
        await bridge.close()
        await connection.stop()


def test_an_mqtt_3_client_can_do_all_of_it_by_reply_to(agent: AgentProcess, client: Client) -> None:
    old = Client(agent.port, version=paho.MQTTv311)
    for topic, request, known in (
        (REQUESTS, {"queries": [QUESTION]}, "batches"),
        (EMBEDDINGS, {"text": "x"}, "embeddings"),
        (UPDATES, {"remove": ["absent"]}, "removed"),
    ):
        old.publish(topic, json.dumps({**request, "reply_to": old.answers}).encode())
        assert known in json.loads(old.next().payload)
    old.close()


def test_what_is_exported_can_be_imported_again(sample_data_dir, tmp_path) -> None:
    exported, matrix = tmp_path / "papers.jsonl", tmp_path / "vectors.npy"
    run_command("corpus", "export", str(exported), "--vectors", str(matrix), data_dir=sample_data_dir)
    done = run_command(
        "corpus", "import", str(exported), "--vectors", str(matrix), "--json", data_dir=tmp_path / "second"
    )
    report = json.loads(done.stdout)
    assert (report["added"], report["vectors"], report["malformed"], report["embedded"]) == (149, 149, 0, 0)
    assert run_command("corpus", "export", data_dir=tmp_path / "second").stdout == exported.read_bytes()
