"""The Python API in seven steps: connect, ask, publish and subscribe, own topics, corpus updates, errors, recovery.

Needs a broker and an agent with papers:

    arxplorer-agent corpus import --sample
    arxplorer-agent run
    python examples/mqtt_usage.py

It talks to the local broker of config.yaml, or of the environment: ARXPLORER__LOCAL_BROKER__PORT=18830. --config names
another file; with the one that the local cloud makes for an application, it talks to that cloud. With --restart it
waits in the last step until you have restarted the broker. It exits with 1 if a step fails.
"""

import argparse
import asyncio
import sys
import uuid
from pathlib import Path
from typing import Any

from agent.aws import AWSIoTMQTTClient
from agent.config import find_config_file, load_config
from agent.errors import AgentError, BrokerError


class StepFailedError(Exception):
    """An answer is not what it should be."""


def check(held: object, what: str) -> None:
    if not held:
        raise StepFailedError(what)


def good(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer is a result or an error message; here only results will do."""
    if "error" in answer:
        raise StepFailedError(f"{answer['error']['code']}: {answer['error']['message']}")
    return answer


def show(answer: dict[str, Any]) -> None:
    for hit in answer["results"]:
        print(f"   {hit['score']:.3f}  {hit['arxiv_id']:<18} {hit['title']}")


async def ask_and_wait(client: AWSIoTMQTTClient) -> None:
    """Answers are matched to their requests by correlation data: any number may be under way at once."""
    answer = await client.ask("why do cars bunch up on a motorway", {"category": "nlin.*", "max_results": 3})
    show(good(answer))

    answer = await client.ask_many(["sphere packing", "dark matter"], {"max_results": 1}, fields=["title"])
    for result in good(answer)["batches"]:
        print(f"   {result['query']}: {result['results'][0]['title']}")

    answer = good(await client.embed("sphere packing"))
    print(f"   embedded by {answer['model']} into {answer['dimensions']} dimensions")

    # Long answers are smaller compressed; they are unpacked for you.
    answer = good(await client.ask("quantum", {"max_results": 100}, accept_encoding=["gzip"]))
    print(f"   {answer['count']} results in {answer['metadata']['processing_time_ms']:.1f} ms on the device")


async def publish_and_subscribe(client: AWSIoTMQTTClient) -> None:
    """Without waiting: answers to published requests go to a topic that anyone may follow."""
    answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def handle_results(_topic: str, message: dict[str, Any]) -> None:
        await answers.put(message)

    await client.subscribe("arxplorer/search/results", handle_results)
    request_id = await client.publish_search_request(query="black holes", filters={"mode": "keyword", "max_results": 2})
    async with asyncio.timeout(10):
        answer = await answers.get()
        while answer["request_id"] != request_id:  # somebody else's
            answer = await answers.get()
    show(good(answer))


async def own_topics(client: AWSIoTMQTTClient) -> None:
    """Any topic, in and out. What a handler returns is the response to a request; or it publishes on its own."""

    async def titles(_topic: str, message: dict[str, Any]) -> list[str]:
        answer = good(await client.ask(message["about"], {"max_results": 2}, fields=["title"]))
        await client.publish("arxplorer/custom/asked", {"about": message["about"], "found": answer["count"]})
        return [hit["title"] for hit in answer["results"]]

    await client.subscribe("arxplorer/custom/titles", titles)
    await client.subscribe("arxplorer/custom/asked", lambda topic, message: print(f"   {topic}: {message}"))
    found = await client.request("arxplorer/custom/titles", {"about": "neutrinos"})
    print(f"   titles: {found}")
    check(found, "the handler found no titles")


async def change_the_corpus(client: AWSIoTMQTTClient) -> None:
    """What is reported is on the disk; it is found by keyword about a second later."""
    paper = {"arxiv_id": "2401.99999", "title": "Zebrafish that pack spheres", "categories": ["q-bio.PE"]}
    report = good(await client.update_corpus(add=[paper]))
    print(f"   added {report['added']}, unchanged {report['unchanged']}")
    async with asyncio.timeout(20):
        found = 0
        while not found:
            await asyncio.sleep(0.1)
            found = good(await client.ask("zebrafish spheres", {"category": "q-bio.PE", "mode": "keyword"}))["count"]
    report = good(await client.update_corpus(remove=["2401.99999"]))
    print(f"   found it, removed {report['removed']}")
    check(report["removed"] == 1, "the paper was not removed")


async def errors(client: AWSIoTMQTTClient) -> None:
    """A bad request is answered, by an error message. Only what keeps an answer from coming raises BrokerError."""
    error = (await client.ask("anything", {"max_results": 1000}))["error"]
    print(f"   {error['code']}: {error['message']}")
    check(error["field"] == "filters.max_results", "the error does not name the field")
    try:
        await client.ask("anybody there?", thing_name="no-such-agent", timeout_s=0.5)
    except BrokerError as unanswered:
        print(f"   BrokerError: {unanswered.message} ({unanswered.hint})")
    else:
        raise StepFailedError("an agent that does not exist has answered")


async def ask_until_answered(client: AWSIoTMQTTClient, query: str) -> dict[str, Any]:
    """Send a question again until it is answered. The request id stays the same, so that answers can be told apart."""
    request_id = f"req-{uuid.uuid4().hex[:12]}"
    while True:
        try:
            answer = await client.ask(query, {"max_results": 1}, request_id=request_id, timeout_s=2)
            if answer.get("error", {}).get("code") != "overloaded":
                return answer
            reason = "the agent is busy"
        except BrokerError as error:
            reason = error.message
        print(f"   not yet: {reason}")
        await asyncio.sleep(0.5)


async def recovery(client: AWSIoTMQTTClient, *, restart: bool) -> None:
    """The client reconnects and subscribes again by itself. What was asked meanwhile is yours to send again."""
    question = "how tightly can equal spheres be packed"
    if restart:
        connected = asyncio.Event()
        client.on_connected(connected.set)
        print("   restart the broker now", flush=True)
        async with asyncio.timeout(60):
            await connected.wait()
        answer = await ask_until_answered(client, question)  # the agent may be back later than we are
    else:  # as if the network were gone for a second
        await client.disconnect()
        asking = asyncio.create_task(ask_until_answered(client, question))
        await asyncio.sleep(1)
        await client.connect()
        answer = await asking
    show(good(answer))


async def main(*, config: Path | None, restart: bool) -> None:
    client = AWSIoTMQTTClient(load_config(find_config_file(config)))
    print(f"1. connect to {client.broker.host}:{client.broker.port}")
    await client.connect()
    try:
        print("2. ask and wait for the answer")
        await ask_and_wait(client)
        print("3. publish, and subscribe to the results")
        await publish_and_subscribe(client)
        print("4. topics of your own")
        await own_topics(client)
        print("5. change the corpus")
        await change_the_corpus(client)
        print("6. errors")
        await errors(client)
        print("7. recovery")
        await recovery(client, restart=restart)
    finally:
        await client.disconnect()
    print("done")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restart", action="store_true", help="wait in the last step for the broker to be restarted")
    parser.add_argument("--config", type=Path, help="configuration file; by default as for the agent")
    given = parser.parse_args()
    try:
        asyncio.run(main(config=given.config, restart=given.restart))
    except (AgentError, StepFailedError, TimeoutError) as error:
        sys.exit(f"failed: {error or 'nothing came in time'}")
