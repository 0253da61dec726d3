"""The local cloud as other people's clients meet it: paho, awscrt, and the SDK's own clients of shadows and jobs."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from queue import Queue
from typing import Any

import mqtt5 as codec
import paho.mqtt.client as paho
import pytest
from awscrt import mqtt5, mqtt_request_response
from awscrt.mqtt_request_response import SubscriptionStatusEventType
from awsiot import ServiceStreamOptions, V2ServiceException, iotjobs, iotshadow, mqtt5_client_builder
from awsiot.iotjobs import IotJobsClientV2, JobStatus, RejectedErrorCode
from awsiot.iotshadow import IotShadowClientV2, ShadowState
from conftest import ROOT, WAIT_S
from local_cloud import Desk, LocalCloud
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    running = LocalCloud(tmp_path_factory.mktemp("local")).start("--thing", "device", "--client", "app")
    yield running
    running.kill()


class Sdk:
    """The SDK's MQTT 5 client with the SDK's own settings for AWS IoT Core, its metrics user name included."""

    def __init__(self, cloud: LocalCloud, thing: str) -> None:
        files = cloud.files(thing)
        self.thing = thing
        self.events: Queue[tuple[str, Any]] = Queue()
        self._stopped = threading.Event()
        self.client = mqtt5_client_builder.mtls_from_path(
            cert_filepath=files["cert"],
            pri_key_filepath=files["key"],
            ca_filepath=files["ca"],
            endpoint="localhost",
            port=cloud.port,
            client_id=thing,
            session_behavior=mqtt5.ClientSessionBehaviorType.REJOIN_ALWAYS,
            keep_alive_interval_sec=45,
            session_expiry_interval_sec=60,
            min_reconnect_delay_ms=50,
            max_reconnect_delay_ms=100,
            on_lifecycle_connection_success=lambda event: self.events.put(("connected", event.connack_packet)),
            on_lifecycle_connection_failure=lambda event: self.events.put(("failed", event.connack_packet)),
            on_lifecycle_disconnection=lambda event: self.events.put(("disconnected", event.disconnect_packet)),
            on_lifecycle_stopped=lambda _: self._stopped.set(),
        )
        self.client.start()

    def wait_for(self, wanted: str) -> Any:
        while True:
            name, packet = self.events.get(timeout=WAIT_S)
            if name == wanted:
                return packet

    def stop(self) -> None:
        self.client.stop()
        assert self._stopped.wait(WAIT_S)


@pytest.fixture
def sdk(cloud: LocalCloud, request: pytest.FixtureRequest) -> Iterator[Sdk]:
    """Connected as a thing of the test's own, `sdk.thing`, with an agent's policy."""
    client = Sdk(cloud, cloud.thing(f"thing-{abs(hash(request.node.nodeid))}", policy=None))
    assert client.wait_for("connected").reason_code == 0
    yield client
    client.stop()


def _options() -> mqtt_request_response.ClientOptions:
    return mqtt_request_response.ClientOptions(
        max_request_response_subscriptions=10, max_streaming_subscriptions=4, operation_timeout_in_seconds=10
    )


@pytest.fixture
def shadows(sdk: Sdk) -> IotShadowClientV2:
    return IotShadowClientV2(sdk.client, _options())


def result(future: Future[Any]) -> Any:
    return future.result(WAIT_S)


def refusal(future: Future[Any]) -> Any:
    with pytest.raises(V2ServiceException) as refused:
        future.result(WAIT_S)
    return refused.value.modeled_error


def test_paho_asks_and_another_thing_answers(cloud: LocalCloud) -> None:
    def connected(thing: str) -> tuple[paho.Client, Queue[paho.MQTTMessage]]:
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=thing, protocol=paho.MQTTv5)
        files, received, ready = cloud.files(thing), Queue(), threading.Event()
        client.tls_set(files["ca"], files["cert"], files["key"])
        client.on_connect = lambda *_: ready.set()
        client.on_message = lambda *arguments: received.put(arguments[2])
        client.connect("localhost", cloud.port)
        client.loop_start()
        assert ready.wait(WAIT_S)
        return client, received

    def subscribed(client: paho.Client, topic: str) -> list[int]:
        codes: Queue[list[int]] = Queue()
        client.on_subscribe = lambda *arguments: codes.put([code.value for code in arguments[3]])
        client.subscribe(topic, qos=1)
        return codes.get(timeout=WAIT_S)

    (app, answers), (agent, requests) = connected("app"), connected("device")
    try:
        assert subscribed(app, "arxplorer/responses/app") == [1]
        assert subscribed(app, "arxplorer/search/requests") == [0x87]
        assert subscribed(agent, "$share/arxplorer/arxplorer/search/requests") == [1]
        wishes = Properties(PacketTypes.PUBLISH)
        wishes.ResponseTopic, wishes.CorrelationData = "arxplorer/responses/app", b"7"
        app.publish("arxplorer/search/requests", b'{"query": "x"}', qos=1, properties=wishes).wait_for_publish(WAIT_S)
        request = requests.get(timeout=WAIT_S)
        echo = Properties(PacketTypes.PUBLISH)
        echo.CorrelationData = request.properties.CorrelationData
        agent.publish(request.properties.ResponseTopic, request.payload, qos=1, properties=echo)
        answer = answers.get(timeout=WAIT_S)
        assert (answer.payload, answer.properties.CorrelationData) == (b'{"query": "x"}', b"7")
    finally:
        for client in (app, agent):
            client.disconnect()
            client.loop_stop()


def test_the_example_of_the_docs_gets_its_answer(cloud: LocalCloud) -> None:
    page = (ROOT / "docs" / "local-cloud.md").read_text("utf-8")
    example = page.partition("```python\n")[2].partition("```")[0].replace("8883", str(cloud.port))
    agent = cloud.connect("device")
    assert agent.subscribe("$share/arxplorer/arxplorer/search/requests") == [1]
    command = [sys.executable, "-c", example]
    asking = subprocess.Popen(command, cwd=cloud.folder.parent, stdout=subprocess.PIPE, text=True)
    request = agent.receive(codec.PublishPacket)
    agent.publish(request.response_topic, b"the answer to " + request.payload)
    assert asking.communicate(timeout=WAIT_S)[0] == 'the answer to {"query": "gravitational waves"}\n'
    cloud.close_clients()


def test_awscrt_subscribes_publishes_and_hears_why_it_is_disconnected(sdk: Sdk) -> None:
    packet = mqtt5.SubscribePacket([mqtt5.Subscription("arxplorer/embeddings", mqtt5.QoS.AT_LEAST_ONCE)])
    assert result(sdk.client.subscribe(packet)).reason_codes == [1]
    good = mqtt5.PublishPacket(topic="arxplorer/status", payload=b"x", qos=mqtt5.QoS.AT_LEAST_ONCE)
    assert result(sdk.client.publish(good)).puback.reason_code == 0
    sdk.client.publish(mqtt5.PublishPacket(topic="arxplorer/search/requests", payload=b"x", qos=mqtt5.QoS.AT_MOST_ONCE))
    assert sdk.wait_for("disconnected").reason_code == 0x87
    assert sdk.wait_for("connected").session_present


def test_the_sdks_shadow_client_gets_updates_and_deletes_the_classic_shadow(
    sdk: Sdk, shadows: IotShadowClientV2
) -> None:
    assert refusal(shadows.get_shadow(iotshadow.GetShadowRequest(thing_name=sdk.thing))).code == 404
    wish = iotshadow.UpdateShadowRequest(thing_name=sdk.thing, state=ShadowState(desired={"colour": "red"}))
    assert result(shadows.update_shadow(wish)).version == 1
    held = result(shadows.get_shadow(iotshadow.GetShadowRequest(thing_name=sdk.thing)))
    assert (held.state.desired, held.state.delta, held.version) == ({"colour": "red"}, {"colour": "red"}, 1)
    assert result(shadows.delete_shadow(iotshadow.DeleteShadowRequest(thing_name=sdk.thing))).version == 1
    assert refusal(shadows.get_shadow(iotshadow.GetShadowRequest(thing_name=sdk.thing))).code == 404


def test_the_sdks_shadow_client_follows_a_named_shadow(cloud: LocalCloud, sdk: Sdk, shadows: IotShadowClientV2) -> None:
    deltas, documents = Queue(), Queue()
    name = {"thing_name": sdk.thing, "shadow_name": "config"}
    streams = [
        shadows.create_named_shadow_delta_updated_stream(
            iotshadow.NamedShadowDeltaUpdatedSubscriptionRequest(**name), _stream(deltas)
        ),
        shadows.create_named_shadow_updated_stream(
            iotshadow.NamedShadowUpdatedSubscriptionRequest(**name), _stream(documents)
        ),
    ]
    for stream, queue in zip(streams, (deltas, documents), strict=True):
        stream.open()
        assert queue.get(timeout=WAIT_S) == "subscribed"

    wish = {"state": {"desired": {"search": {"max_results": 5}, "list": [1, 2]}}}
    done = cloud.run("shadow", "update", sdk.thing, json.dumps(wish), "--name", "config")
    assert json.loads(done.stdout)["version"] == 1
    delta = deltas.get(timeout=WAIT_S)
    assert (delta.state, delta.version) == (wish["state"]["desired"], 1)
    assert documents.get(timeout=WAIT_S).current.state.desired == wish["state"]["desired"]

    def update(version: int | None = None, **state: Any) -> Future[Any]:
        request = iotshadow.UpdateNamedShadowRequest(**name, state=ShadowState(**state), version=version)
        return shadows.update_named_shadow(request)

    assert refusal(update(version=7, reported={"x": 1})).code == 409
    assert result(update(version=1, reported={"search": {"max_results": 5}})).version == 2
    assert deltas.get(timeout=WAIT_S).state == {"list": [1, 2]}
    assert result(update(desired=None, desired_is_nullable=True)).version == 3
    held = result(shadows.get_named_shadow(iotshadow.GetNamedShadowRequest(**name)))
    assert (held.state.desired, held.state.delta, held.version) == (None, None, 3)
    assert refusal(update(desired={"a": "x" * 8192})).code == 413
    assert deltas.empty()


def test_the_sdks_jobs_client_takes_a_job_and_tells_how_it_goes(cloud: LocalCloud, sdk: Sdk) -> None:
    jobs, changed, following = IotJobsClientV2(sdk.client, _options()), Queue(), Queue()
    thing = {"thing_name": sdk.thing}
    streams = [
        jobs.create_job_executions_changed_stream(
            iotjobs.JobExecutionsChangedSubscriptionRequest(**thing), _stream(changed)
        ),
        jobs.create_next_job_execution_changed_stream(
            iotjobs.NextJobExecutionChangedSubscriptionRequest(**thing), _stream(following)
        ),
    ]
    for stream, queue in zip(streams, (changed, following), strict=True):
        stream.open()
        assert queue.get(timeout=WAIT_S) == "subscribed"
    start = partial(iotjobs.StartNextPendingJobExecutionRequest, **thing)
    assert result(jobs.start_next_pending_job_execution(start())).execution is None

    desk = Desk(cloud, sdk.thing)
    for number in (1, 2):
        desk.create({"operation": "any", "number": number}, f"job-{number}")
    assert [one.job_id for one in changed.get(timeout=WAIT_S).jobs[JobStatus.QUEUED]] == ["job-1"]
    assert following.get(timeout=WAIT_S).execution.job_document == {"operation": "any", "number": 1}
    listed = result(jobs.get_pending_job_executions(iotjobs.GetPendingJobExecutionsRequest(**thing)))
    assert [one.job_id for one in listed.queued_jobs] == ["job-1", "job-2"]
    began = result(jobs.start_next_pending_job_execution(start(status_details={"step": "one"}))).execution
    assert (began.job_id, began.status, began.status_details) == ("job-1", JobStatus.IN_PROGRESS, {"step": "one"})
    one = {**thing, "job_id": "job-1"}

    def update(version: int | None, **fields: Any) -> Any:
        return jobs.update_job_execution(
            iotjobs.UpdateJobExecutionRequest(
                **one, expected_version=version, include_job_execution_state=True, **fields
            )
        )

    state = result(update(began.version_number, status="IN_PROGRESS", status_details={"step": "two"})).execution_state
    assert (state.status_details, state.version_number) == ({"step": "two"}, began.version_number + 1)
    refused = refusal(update(began.version_number, status="FAILED"))
    assert refused.code == RejectedErrorCode.VERSION_MISMATCH
    assert refused.execution_state.version_number == state.version_number
    assert refusal(update(None, status="DONE")).code == RejectedErrorCode.INVALID_REQUEST
    described = result(jobs.describe_job_execution(iotjobs.DescribeJobExecutionRequest(**one))).execution
    assert (described.status_details, described.execution_number) == ({"step": "two"}, began.execution_number)
    result(update(None, status="SUCCEEDED"))
    assert following.get(timeout=WAIT_S).execution.job_id == "job-2"
    assert refusal(update(None, status="FAILED")).code == RejectedErrorCode.INVALID_STATE_TRANSITION
    gone = refusal(jobs.describe_job_execution(iotjobs.DescribeJobExecutionRequest(**one)))
    assert gone.code == RejectedErrorCode.TERMINAL_STATE_REACHED
    desk.cancel("job-2")
    assert following.get(timeout=WAIT_S).execution is None


def test_jobs_from_the_command_line(cloud: LocalCloud, sdk: Sdk) -> None:
    def ran(*arguments: str, stdin: bytes | None = None) -> str:
        done = cloud.run("job", *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def refused(*arguments: str) -> str:
        done = cloud.run("job", *arguments)
        assert (done.returncode, done.stdout) == (1, b"")
        return done.stderr.decode()

    document = {"operation": "corpus.update", "version": "2026.11"}
    assert ran("create", sdk.thing, json.dumps(document), "--id", "mine", "--timeout-minutes", "5") == "mine\n"
    assert refused("create", sdk.thing, "{}", "--id", "mine").startswith("Error: rejected: ResourceAlreadyExists")
    made = ran("create", sdk.thing, "-", stdin=b"{}").strip()
    held = json.loads(ran("get", sdk.thing, "mine"))
    assert (held["status"], held["jobDocument"], held["versionNumber"]) == ("QUEUED", document, 1)
    ran("cancel", sdk.thing, "mine")
    listed = json.loads(ran("list", sdk.thing))["executions"]
    assert [(one["jobId"], one["status"]) for one in listed] == [("mine", "CANCELED"), (made, "QUEUED")]
    assert "InvalidStateTransition" in refused("cancel", sdk.thing, "mine")
    ran("delete", sdk.thing, "mine")
    assert "ResourceNotFound" in refused("get", sdk.thing, "mine")
    assert "not valid JSON" in refused("create", sdk.thing, "{")
    assert "a job document is a JSON object" in refused("create", sdk.thing, "[]")
    assert "there is no thing nobody" in refused("list", "nobody")


def _stream(queue: Queue[Any]) -> Any:
    def status(event: Any) -> None:
        if event.type == SubscriptionStatusEventType.SUBSCRIPTION_ESTABLISHED:
            queue.put("subscribed")

    return ServiceStreamOptions(
        incoming_event_listener=queue.put,
        subscription_status_listener=status,
        deserialization_failure_listener=queue.put,
    )
