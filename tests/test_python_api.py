"""The seed's Python classes against a real broker."""

import asyncio
import getpass
import gzip
import json
import os
import signal
import threading
from typing import Any

import pytest
from conftest import AgentProcess, Client, import_sample

from agent.aws import AWSIoTMQTTClient, MQTTSearchBridge, MQTTSearchService
from agent.aws.client import MAX_CONTENT_BYTES
from agent.config import Config, load_config
from agent.errors import BrokerError, ConfigError, NotReadyError
from agent.local_cloud.mosquitto import Mosquitto
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker, Outgoing
from agent.search import SearchAPI

QUESTION = "how tightly can equal spheres be packed"
ANSWER = "1603.04246"


@pytest.fixture
def config(broker: Mosquitto, tmp_path) -> Config:
    return load_config(environment={"ARXPLORER__LOCAL_BROKER__PORT": str(broker.port)}, data_dir=tmp_path / "data")


@pytest.fixture
async def client(config: Config):
    connected = AWSIoTMQTTClient(config)
    await connected.connect()
    yield connected
    await connected.disconnect()


@pytest.fixture
async def asking(agent: AgentProcess):
    """A client of an agent that runs as a process of its own."""
    connected = AWSIoTMQTTClient(load_config(environment={"ARXPLORER__LOCAL_BROKER__PORT": str(agent.port)}))
    await connected.connect()
    yield connected
    await connected.disconnect()


class Inbox:
    """Collects what a subscription delivers."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    async def __call__(self, topic: str, message: Any) -> None:
        await self.messages.put((topic, message))

    async def next(self) -> tuple[str, Any]:
        async with asyncio.timeout(20):
            return await self.messages.get()


async def test_client_and_bridge_answer_a_published_request_on_the_results_topic(client, config: Config) -> None:
    with SearchAPI(config) as api:
        api.open(owner=True)
        import_sample(api)
        service_client = AWSIoTMQTTClient(config)
        await service_client.connect()
        bridge = MQTTSearchBridge(service_client, api)
        await bridge.setup()
        inbox = Inbox()
        await client.subscribe("arxplorer/search/results", inbox)
        request_id = await client.publish_search_request(query=QUESTION, filters={"category": "math.*"})
        topic, answer = await inbox.next()
        assert (topic, answer["request_id"], answer["client_id"]) == (
            "arxplorer/search/results",
            request_id,
            client.client_id,
        )
        assert answer["results"][0]["arxiv_id"] == ANSWER
        await service_client.disconnect()


async def test_the_service_runs_until_it_is_stopped(client: AWSIoTMQTTClient, config: Config) -> None:
    with SearchAPI(config) as api:
        api.open(owner=True)
        import_sample(api)
    statuses = Inbox()
    await client.subscribe("arxplorer/status/#", statuses)
    service = MQTTSearchService(config)
    running = asyncio.ensure_future(service.run_forever())
    _, status = await statuses.next()
    assert status["status"] == "online"
    answer = await client.ask(QUESTION, {"max_results": 2})
    assert (answer["results"][0]["arxiv_id"], answer["count"]) == (ANSWER, 2)
    assert (await client.ask("x", {"mode": "magic"}))["error"]["field"] == "filters.mode"
    service.stop()
    await running


async def test_the_service_stops_in_time_while_an_index_is_being_built(config: Config, monkeypatch) -> None:
    building, release = threading.Event(), threading.Event()

    def build() -> None:
        building.set()
        release.wait(60)

    service = MQTTSearchService(config)
    monkeypatch.setattr(service._keeper, "turn", build)  # noqa: SLF001  where an index would be built
    running = asyncio.ensure_future(service.run_forever())
    await asyncio.to_thread(building.wait, 20)
    service.stop()
    async with asyncio.timeout(5):
        await running
    release.set()
    service._upkeep.shutdown(wait=True)  # noqa: SLF001  what the process's end does otherwise


async def test_search_api_needs_to_be_initialized(config: Config) -> None:
    with pytest.raises(NotReadyError, match="not open yet"):
        SearchAPI(config).search_sync("x")
    with SearchAPI(config) as writer:
        writer.open(owner=True)
        import_sample(writer)
        api = SearchAPI(config)
        await api.initialize()
        message = await api.search(QUESTION, {"max_results": 1}, request_id="r")
        assert (message["results"][0]["arxiv_id"], message["request_id"]) == (ANSWER, "r")
        api.close()


async def test_custom_topics_carry_json_and_a_failing_handler_stops_nothing(client: AWSIoTMQTTClient, caplog) -> None:
    inbox = Inbox()
    calls: list[Any] = []

    def failing(topic: str, message: Any) -> None:
        calls.append(message)
        raise RuntimeError("on purpose")

    await client.subscribe("lab/custom/+", inbox)
    await client.subscribe("lab/failing", failing)
    await client.publish("lab/failing", {"n": 1})
    await client.publish("lab/custom/x", {"n": [1, None, "ü"]})
    await client.publish("lab/custom/y", b"\xff no json")
    assert await inbox.next() == ("lab/custom/x", {"n": [1, None, "ü"]})
    assert await inbox.next() == ("lab/custom/y", b"\xff no json")
    await client.publish("lab/failing", {"n": 2})
    await client.publish("lab/custom/z", 1)
    await inbox.next()
    assert calls == [{"n": 1}, {"n": 2}]
    assert "on purpose" in caplog.text


async def test_a_message_that_is_taken_during_a_disconnect_does_not_hold_it_up(client, config, caplog) -> None:
    taken = asyncio.Event()
    release = asyncio.Event()

    async def slow(_: str, __: Any) -> None:
        taken.set()
        await release.wait()

    await client.subscribe("lab/slow", slow)
    await client.publish("lab/slow", 1)
    await taken.wait()
    closing = asyncio.ensure_future(client.disconnect())
    await asyncio.sleep(0)
    release.set()
    await closing
    assert "did not close in time" not in caplog.text


async def test_no_broker_and_no_agent_are_told_apart(client: AWSIoTMQTTClient) -> None:
    with pytest.raises(BrokerError, match="no answer within"):
        await client.ask("x", timeout_s=0.3)
    lost = AWSIoTMQTTClient(load_config(environment={"ARXPLORER__LOCAL_BROKER__PORT": "1"}))
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1") as caught:
        await lost.connect(timeout_s=0.5)
    assert "mosquitto" in caught.value.hint
    with pytest.raises(BrokerError, match="not connected"):
        await lost.publish("a", {})


async def test_giving_up_on_a_publish_leaves_the_library_in_peace(client, broker: Mosquitto, capfd) -> None:
    os.kill(broker.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.publish("lab/x", 1)
    os.kill(broker.pid, signal.SIGCONT)
    await client.publish("lab/x", 2)  # in order: the broker has acknowledged the first one by now
    assert "InvalidStateError" not in capfd.readouterr().err


async def test_a_client_that_failed_to_connect_can_be_used_again(tmp_path) -> None:
    tmp_path.chmod(0o755)
    broker = Mosquitto(tmp_path / "late")
    client = AWSIoTMQTTClient(load_config(environment={"ARXPLORER__LOCAL_BROKER__PORT": str(broker.port)}))
    with pytest.raises(BrokerError):
        await client.connect(timeout_s=0.3)
    with broker:
        await client.connect()
        inbox = Inbox()
        await client.subscribe("lab/x", inbox)
        for number in range(50):  # more than may be unacknowledged
            await client.publish("lab/x", number)
        assert [(await inbox.next())[1] for _ in range(50)] == list(range(50))
        await client.disconnect()
        assert not client.connected.is_set()


async def test_a_wide_subscription_does_not_take_the_answers(agent: AgentProcess) -> None:
    client = AWSIoTMQTTClient(load_config(environment={"ARXPLORER__LOCAL_BROKER__PORT": str(agent.port)}))
    await client.connect()
    await client.subscribe("arxplorer/#", Inbox())
    assert (await client.ask(QUESTION))["results"][0]["arxiv_id"] == ANSWER
    await client.disconnect()


async def test_subscriptions_survive_a_new_broker(tmp_path, config: Config) -> None:
    tmp_path.chmod(0o755)
    broker = Mosquitto(tmp_path / "second").start()
    environment = {"ARXPLORER__LOCAL_BROKER__PORT": str(broker.port)}
    client = AWSIoTMQTTClient(load_config(environment=environment))
    await client.connect()
    inbox = Inbox()
    await client.subscribe("lab/x", inbox)
    again = asyncio.Event()
    client.on_connected(again.set)
    broker.stop()
    broker.start()
    async with asyncio.timeout(20):
        await again.wait()
    await client.publish("lab/x", "still here")
    assert await inbox.next() == ("lab/x", "still here")
    await client.disconnect()
    broker.stop()


async def test_a_publish_that_the_broker_refuses_is_an_error(tmp_path) -> None:
    tmp_path.chmod(0o755)
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite lab/#\n")
    rules.chmod(0o644)
    with Mosquitto(tmp_path / "strict", extra=f"acl_file {rules}\nuser {getpass.getuser()}") as broker:
        client = AWSIoTMQTTClient(load_config(environment={"ARXPLORER__LOCAL_BROKER__PORT": str(broker.port)}))
        await client.connect()
        await client.publish("lab/x", 1)
        with pytest.raises(BrokerError, match="refused"):
            await client.publish("elsewhere", 1)
        await client.disconnect()


def test_a_configuration_without_any_broker_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"local_broker\.enabled"):
        MQTTSearchService(load_config(environment={"ARXPLORER__LOCAL_BROKER__ENABLED": "false"}))


async def test_an_agent_of_its_own_process_is_asked_the_same_way(agent: AgentProcess) -> None:
    environment = {"ARXPLORER__LOCAL_BROKER__PORT": str(agent.port)}
    client = AWSIoTMQTTClient(load_config(environment=environment))
    await client.connect()
    answers = await asyncio.gather(*(client.ask(QUESTION, {"max_results": 1}) for _ in range(50)))
    assert {answer["results"][0]["arxiv_id"] for answer in answers} == {ANSWER}
    await client.disconnect()
    independent = Client(agent.port)
    assert independent.ask(json.dumps({"query": QUESTION}).encode())["results"][0]["arxiv_id"] == ANSWER
    independent.close()


async def test_a_connection_says_that_it_stands_only_once_it_is_heard(config: Config, caplog, monkeypatch) -> None:
    """Whoever waits for that line may ask at once; before the subscription the broker would drop the request."""
    caplog.set_level("INFO")
    subscribing, granted = asyncio.Event(), asyncio.Event()
    subscribe = Connection._subscribe  # noqa: SLF001  the step that is held back

    async def slowly(self: Connection, packet) -> None:
        subscribing.set()
        await granted.wait()
        await subscribe(self, packet)

    monkeypatch.setattr(Connection, "_subscribe", slowly)
    connection = Connection(Broker(config.local_broker.host, config.local_broker.port, "slow"))
    await connection.listen(["lab/x"], lambda message: message.acknowledge())
    connection.start()
    await subscribing.wait()
    assert "connected to" not in caplog.text
    granted.set()
    await connection.wait_connected(20)
    assert "connected to" in caplog.text
    await connection.stop()


@pytest.mark.parametrize("wrong", ["a/#/b", "a+", "", "x#", "a\x00b", "a\x7f"])
async def test_a_subscription_that_mqtt_does_not_allow_is_an_error_and_leaves_the_client_as_it_was(
    client: AWSIoTMQTTClient, wrong: str
) -> None:
    inbox = Inbox()
    await client.subscribe("lab/x", inbox)
    with pytest.raises(BrokerError, match="topic filter"):
        await client.subscribe(wrong, inbox)
    await client.disconnect()
    await client.connect()
    await client.publish("lab/x", 1)
    assert await inbox.next() == ("lab/x", 1)


# -- every kind of message --------------------------------------------------------------------------------------------


async def test_several_questions_are_asked_at_once(asking: AWSIoTMQTTClient) -> None:
    questions = [QUESTION, {"query": "dark matter", "filters": {"max_results": 3}}]
    answer = await asking.ask_many(questions, {"max_results": 1}, thing_name="test-agent", fields=["arxiv_id"])
    assert [batch["count"] for batch in answer["batches"]] == [1, 3]
    assert answer["batches"][0]["results"] == [{"arxiv_id": ANSWER}]
    assert (await asking.ask_many([]))["error"]["field"] == "queries"


async def test_texts_are_embedded(asking: AWSIoTMQTTClient) -> None:
    both = await asking.embed(["spheres", "neutrinos"])
    one = await asking.embed("spheres")
    assert [len(vector) for vector in both["embeddings"]] == [both["dimensions"]] * 2
    assert one["embeddings"] == both["embeddings"][:1]
    assert (await asking.embed("x", kind="poem"))["error"]["field"] == "kind"


async def test_a_corpus_update_is_reported_and_found(asking: AWSIoTMQTTClient) -> None:
    paper = {"arxiv_id": "2401.00001", "title": "Migration of zebrafish", "authors": ["Ada Byron"]}
    done = await asking.update_corpus(add=[paper], remove=[ANSWER])
    assert (done["added"], done["removed"]) == (1, 1)
    assert (await asking.update_corpus(add=[paper], remove=[ANSWER]))["unchanged"] == 1
    async with asyncio.timeout(20):
        found: list[dict] = []
        while not found:
            found = (await asking.ask("zebrafish", {"mode": "keyword"}))["results"]
    assert found[0]["arxiv_id"] == "2401.00001"
    assert (await asking.update_corpus(add=[{"arxiv_id": "1"}]))["error"]["field"] == "add[0].title"


async def test_compressed_answers_are_read_like_any_other(asking: AWSIoTMQTTClient) -> None:
    plain = await asking.ask(QUESTION, {"max_results": 50})
    packed = await asking.ask(QUESTION, {"max_results": 50}, accept_encoding=["gzip"])
    assert packed["results"] == plain["results"]
    inbox = Inbox()
    await asking.subscribe("arxplorer/search/results", inbox)
    await asking.publish_search_request(QUESTION, {"max_results": 50}, accept_encoding=["gzip"])
    assert (await inbox.next())[1]["results"] == plain["results"]


async def test_what_only_says_that_it_is_compressed_is_handed_over_as_it_is(client: AWSIoTMQTTClient) -> None:
    inbox = Inbox()
    await client.subscribe("lab/x", inbox)
    whole = gzip.compress(b'{"a": 1}')
    huge = gzip.compress(b"1" * (MAX_CONTENT_BYTES + 1), 9)
    damaged = whole[:-8] + bytes(8)
    for payload, expected in [(whole, {"a": 1}), *((raw, raw) for raw in (whole[:-1], damaged, huge, b"{}", b""))]:
        await client.send(Outgoing("lab/x", payload, content_type="application/gzip"))
        assert (await inbox.next())[1] == expected


# -- topics of one's own ----------------------------------------------------------------------------------------------


async def test_the_custom_handler_of_the_seed_document_answers_on_its_own_topic(asking: AWSIoTMQTTClient) -> None:
    async def custom_handler(topic: str, message: dict) -> None:
        if topic.endswith("/embeddings"):
            embeddings = (await asking.embed(message["text"]))["embeddings"]
            await asking.publish(f"{topic}/response", {"embeddings": embeddings})

    inbox = Inbox()
    await asking.subscribe("arxplorer/custom/embeddings", custom_handler)
    await asking.subscribe("arxplorer/custom/embeddings/response", inbox)
    await asking.publish("arxplorer/custom/embeddings", {"text": "neural networks"})
    assert len((await inbox.next())[1]["embeddings"][0]) == 384


async def test_what_a_handler_returns_is_the_response(client: AWSIoTMQTTClient, config: Config, caplog) -> None:
    async def twice(_: str, message: Any) -> Any:
        return {"twice": message * 2} if message else None

    server = AWSIoTMQTTClient(config)
    await server.connect()
    await server.subscribe("lab/twice", twice)
    answers = await asyncio.gather(*(client.request("lab/twice", number) for number in (1, 2, "x")))
    assert answers == [{"twice": 2}, {"twice": 4}, {"twice": "xx"}]
    with pytest.raises(BrokerError, match="no answer within"):
        await client.request("lab/twice", 0, timeout_s=0.3)
    inbox = Inbox()
    await client.subscribe("lab/elsewhere", inbox)
    await client.send(Outgoing("lab/twice", b"1", response_topic="lab/elsewhere"))  # not where answers may go
    await client.publish("lab/elsewhere", "the end")
    assert await inbox.next() == ("lab/elsewhere", "the end")
    assert "must lie under arxplorer/responses/" in caplog.text
    await server.disconnect()


async def test_the_search_of_the_seed_document_is_bridged(client: AWSIoTMQTTClient, config: Config) -> None:
    with SearchAPI(config) as api:
        api.open(owner=True, model=False)
        import_sample(api)
    search_api = SearchAPI(config)
    await search_api.initialize()
    mqtt_client = AWSIoTMQTTClient(config)
    bridge = MQTTSearchBridge(mqtt_client, search_api)
    await mqtt_client.connect()
    await bridge.setup()
    for answer in (await client.ask(QUESTION), await search_api.search(QUESTION), search_api.search_sync(QUESTION)):
        assert answer["results"][0]["arxiv_id"] == ANSWER
    await bridge.close()
    await mqtt_client.disconnect()
    search_api.close()


async def test_a_broker_that_hangs_is_waited_for_no_longer_than_was_said(client, broker: Mosquitto) -> None:
    await client.publish("lab/x", 1)
    os.kill(broker.pid, signal.SIGSTOP)
    with pytest.raises(BrokerError, match=r"no answer within 0\.2 s"):
        await client.ask("x", timeout_s=0.2)
    os.kill(broker.pid, signal.SIGCONT)
