"""The main job, shown: an agent with papers, between a local broker and a cloud, is asked, and configured from there.

The cloud is the local one: a stand-in for AWS IoT Core on this machine, with mutual TLS and a Device Shadow.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from agent.aws import AWSIoTMQTTClient
from agent.cli.context import show_results
from agent.config import Config, load_config
from agent.local_cloud.mosquitto import Mosquitto, free_port

COMMAND = str(Path(sys.executable).with_name("arxplorer-agent"))
STOP_WITHIN_S = 5.0
QUESTIONS = (
    ("By meaning and by keyword", "why do cars bunch up on a motorway for no visible reason", {}, "adap-org/9502004"),
    (
        "In one field, since a date",
        "how should neural networks be trained",
        {"category": "cs.*", "published_from": "2015-01-01"},
        None,
    ),
    ("By arXiv address", "https://arxiv.org/abs/1603.04246v2", {}, "1603.04246"),
)
console = Console()


class DemoError(Exception):
    """A step did not hold."""


class LocalCloud:
    """`arxplorer-agent local-cloud` with one device and one application that asks."""

    DEVICE, APP = "demo-agent", "demo-app"

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cloud"
        self.port = free_port()
        things = ["--thing", self.DEVICE, "--client", self.APP]
        command = [COMMAND, "local-cloud", "--dir", str(self.folder), "--port", str(self.port), *things]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        if not self._process.stdout or self._process.stdout.readline() != b"ready\n":
            raise DemoError("the local cloud did not start")

    def config(self, thing: str) -> Path:
        return self.folder / "things" / thing / "config.yaml"

    def shadow(self, *arguments: str) -> dict[str, Any]:
        """The device's shadow `config`, read or updated."""
        operation, *document = arguments
        command = [COMMAND, "local-cloud", "shadow", operation, self.DEVICE, *document, "--name", "config"]
        done = subprocess.run([*command, "--dir", str(self.folder)], capture_output=True, check=True)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def wish(self, settings: dict[str, Any]) -> None:
        wished = json.dumps({"state": {"desired": {"settings": settings}}})
        console.print(f"[dim]desired: {escape(json.dumps(settings))}[/dim]", highlight=False)
        self.shadow("update", wished)

    async def reported(self, status: str, *, unlike: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the device reports, once it says that this became of its configuration; not what it said before."""
        async with asyncio.timeout(30):
            while True:
                reported: dict[str, Any] = self.shadow("get")["state"]["reported"]
                if reported != unlike and reported.get("config", {}).get("status") == status:
                    return reported
                await asyncio.sleep(0.1)

    def wish_for(self, targets: dict[str, Any]) -> None:
        self.shadow("update", json.dumps({"state": {"desired": {"targets": targets}}}))

    async def reached(self, version: str) -> dict[str, Any]:
        """What the device reports of its corpus, once that is of this version."""
        async with asyncio.timeout(60):
            while True:
                target: dict[str, Any] = self.shadow("get")["state"]["reported"].get("targets", {}).get("corpus", {})
                if target.get("state") == "failed":
                    raise DemoError(f"the update failed: {target}")
                if target.get("state") == "current" and target["version"].startswith(f"{version}+"):
                    return target
                await asyncio.sleep(0.1)

    def fault(self, name: str) -> None:
        subprocess.run([COMMAND, "local-cloud", "fault", name, "--dir", str(self.folder)], check=True)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


def step(text: str) -> None:
    console.print(f"\n[bold green]>[/bold green] [bold]{text}[/bold]")


def run(arguments: list[str], environment: dict[str, str]) -> None:
    subprocess.run([COMMAND, *arguments], env=environment, check=True)


def start_agent(folder: Path, cloud: LocalCloud, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    options = ["--config", str(cloud.config(cloud.DEVICE)), "--data-dir", str(folder / "data")]
    return subprocess.Popen([COMMAND, *options, "run"], env=environment)


async def wait_online(client: AWSIoTMQTTClient, config: Config) -> dict[str, object]:
    """The agent's first status message that says online."""
    online: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()

    def seen(_: str, message: dict[str, object]) -> None:
        if message["status"] == "online" and not online.done():
            online.set_result(message)

    await client.subscribe(config.local_broker.topics.status, seen)
    async with asyncio.timeout(30):
        return await online


async def ask_all(client: AWSIoTMQTTClient) -> None:
    for title, query, filters, first in QUESTIONS:
        asked = f"{query!r}" + (f"  {json.dumps(filters)}" if filters else "")
        step(f"{title}: {asked}")
        started = time.perf_counter()
        answer = await client.ask(query, {**filters, "max_results": 3}, timeout_s=30)
        took = (time.perf_counter() - started) * 1e3
        show_results(answer)
        console.print(f"[dim]answered over MQTT, {took:.1f} ms from request to answer[/dim]")
        if not answer["results"] or (first and answer["results"][0]["arxiv_id"] != first):
            raise DemoError(f"the answer to {query!r} is not what it should be")
    step("A bad request gets an answer too: {'max_results': 1000}")
    answer = await client.ask("anything", {"max_results": 1000})
    show_results(answer)
    if answer.get("error", {}).get("field") != "filters.max_results":
        raise DemoError("the error does not name the field")


async def configure(cloud: LocalCloud, local: AWSIoTMQTTClient) -> None:
    step("Change its settings from the cloud, by its Device Shadow")
    before = await cloud.reported("applied")
    cloud.wish({"search": {"default_mode": "keyword", "max_results": 2}})
    reported = await cloud.reported("applied", unlike=before)
    console.print(f"[dim]reported: {json.dumps(reported['config'])}[/dim]")
    console.print(f"[dim]in effect: {json.dumps(reported['settings']['search'])}[/dim]")
    answer = await local.ask("sphere packing")
    show_results(answer)
    if (answer["count"], answer["metadata"]["mode"]) != (2, "keyword"):
        raise DemoError("the settings are not in effect")
    step("A bad setting is rejected as a whole, with the reason")
    cloud.wish({"search": {"default_mode": "telepathy", "max_results": 5}})
    reported = await cloud.reported("rejected")
    for error in reported["config"]["errors"]:
        console.print(
            f"[yellow]rejected[/yellow] {error['path']} = {error['value']!r}: {error['reason']}", highlight=False
        )
    answer = await local.ask("sphere packing")
    if (answer["count"], answer["metadata"]["mode"]) != (2, "keyword"):
        raise DemoError("a rejected document has changed something")
    console.print("[dim]the settings before it are still in effect[/dim]")


async def go_offline(cloud: LocalCloud, local: AWSIoTMQTTClient) -> None:
    step("Take the cloud away, and ask on the local broker")
    cloud.fault("refuse")
    answer = await local.ask("black holes", {"max_results": 2})
    show_results(answer)
    if not answer["results"]:
        raise DemoError("no answer without the cloud")
    step("Bring it back: the agent connects by itself")
    cloud.fault("clear")
    await ask_over_the_cloud(cloud)


async def ask_over_the_cloud(cloud: LocalCloud) -> None:
    step("Ask over the cloud: mutual TLS, a certificate and a policy of the application's own")
    app = AWSIoTMQTTClient(load_config(cloud.config(cloud.APP), environment={}), link="cloud")
    await app.connect(timeout_s=30)
    try:
        answer = await app.ask("dark matter in galaxy clusters", {"max_results": 2})
    finally:
        await app.disconnect()
    show_results(answer)
    if answer["metadata"]["processed_by"] != cloud.DEVICE:
        raise DemoError("the agent did not answer over the cloud")


class Operator:
    """Who makes packs and publishes them, signed, in a folder that any web server could carry."""

    def __init__(self, folder: Path) -> None:
        self.repository, self.keys = folder / "repository", folder / "keys"
        self._data, self._pack = folder / "operator", folder / "pack"

    def settings(self) -> dict[str, str]:
        """What a device needs to know of them."""
        return {
            "ARXPLORER__CORPUS__REPOSITORY": str(self.repository),
            "ARXPLORER__CORPUS__TRUST": str(self.keys / "root.json"),
        }

    def publish(self, version: str, record: dict[str, Any], environment: dict[str, str]) -> None:
        corpus = ["--data-dir", str(self._data), "corpus"]
        run([*corpus, "import", "--sample"], environment)
        run([*corpus, "add", json.dumps(record)], environment)
        run([*corpus, "pack", str(self._pack), "--version", version], environment)
        run(["corpus", "keys", str(self.keys)], environment)
        publishing = ["corpus", "publish", str(self.repository), "--pack", str(self._pack), "--keys", str(self.keys)]
        run(publishing, environment)


def paper(arxiv_id: str, title: str) -> dict[str, Any]:
    text = f"{title}: a record of this demonstration, which no archive has."
    return {"id": arxiv_id, "title": title, "abstract": text, "categories": "cs.DL", "update_date": "2026-11-01"}


async def update_and_roll_back(
    cloud: LocalCloud, local: AWSIoTMQTTClient, operator: Operator, environment: dict[str, str], command: list[str]
) -> None:
    step("Publish a signed pack with one more paper, and wish for it by the shadow")
    theirs, own = paper("2611.00001", "How a corpus learns of new papers"), paper("2611.00002", "Notes of this boat")
    operator.publish("demo-2", theirs, environment)
    cloud.wish_for({"corpus": {"version": "demo-2"}})
    target = await cloud.reached("demo-2")
    console.print(f"[dim]reported: {json.dumps(target)}[/dim]", highlight=False)
    await must_find(local, theirs, found=True)
    step("A paper of the device's own, by message")
    await local.publish("arxplorer/corpus/updates", {"add": [own]})
    await must_find(local, own, found=True)
    step("Roll the update back: what the device added itself stays")
    run([*command, "corpus", "rollback"], environment)
    await must_find(local, theirs, found=False)
    await must_find(local, own, found=True)


async def must_find(local: AWSIoTMQTTClient, record: dict[str, Any], *, found: bool) -> None:
    """Ask for a paper by its title until it is there, or is not any more: the agent follows within seconds."""
    async with asyncio.timeout(30):
        while True:
            answer = await local.ask(record["title"], {"max_results": 1, "mode": "hybrid"})
            is_there = any(hit["arxiv_id"] == record["id"] for hit in answer["results"])
            if is_there == found:
                break
            await asyncio.sleep(0.1)
    is_or_not = "is" if found else "is not"
    console.print(f"[dim]{record['title']!r} {is_or_not} in {answer['metadata']['corpus_version']}[/dim]")


async def demo(folder: Path, *, keep: bool) -> None:
    with Mosquitto(folder / "broker") as broker, closing(LocalCloud(folder)) as cloud:
        operator = Operator(folder)
        environment = {
            **os.environ,
            **operator.settings(),
            "ARXPLORER__LOCAL_BROKER__PORT": str(broker.port),
            "ARXPLORER__LOGGING__LEVEL": "warning",
        }
        step("A cloud of its own: a stand-in for AWS IoT Core")
        console.print(f"[dim]mutual TLS on localhost:{cloud.port}, things {cloud.DEVICE} and {cloud.APP}[/dim]")
        config = load_config(cloud.config(cloud.DEVICE), environment=environment, data_dir=folder / "data")
        step(f"A broker of its own: mosquitto on 127.0.0.1:{broker.port}")
        step("Import the sample corpus: well-known papers, with their vectors")
        run(["--data-dir", str(folder / "data"), "corpus", "import", "--sample"], environment)
        step("Start the agent: it serves the local broker and the cloud")
        client = AWSIoTMQTTClient(config)
        await client.connect()
        agent = start_agent(folder, cloud, environment)
        try:
            status = await wait_online(client, config)
            details = status["details"]
            console.print(
                f"[dim]{status['client_id']} is online: {json.dumps(details['corpus'])}, model {details['model']}[/dim]"
            )  # type: ignore[index]
            await ask_all(client)
            await ask_over_the_cloud(cloud)
            await go_offline(cloud, client)
            await configure(cloud, client)
            command = ["--config", str(cloud.config(cloud.DEVICE)), "--data-dir", str(folder / "data")]
            await update_and_roll_back(cloud, client, operator, environment, command)
            if keep:
                leave_running(broker, cloud, folder)
            step("Stop the agent")
            started = time.monotonic()
            agent.send_signal(signal.SIGTERM)
            if agent.wait(STOP_WITHIN_S) != 0:
                raise DemoError(f"the agent ended with code {agent.returncode}")
            console.print(f"[dim]stopped in order after {time.monotonic() - started:.2f} s[/dim]")
        finally:
            if agent.poll() is None:
                agent.kill()
            await client.disconnect()
    console.print("\n[bold green]Every step held.[/bold green]  Next: README.md, or scripts/demo --keep to try it.")


def leave_running(broker: Mosquitto, cloud: LocalCloud, folder: Path) -> None:
    command = Path(COMMAND).relative_to(Path.cwd()) if Path(COMMAND).is_relative_to(Path.cwd()) else COMMAND
    console.print(
        f"\n[bold]Broker, cloud and agent are running.[/bold] In another terminal, for example:\n\n"
        f"  export ARXPLORER__LOCAL_BROKER__PORT={broker.port}\n"
        f"  {command} ask 'what holds a neural network together' --category 'cs.*'\n"
        f"  {command} local-cloud shadow get {cloud.DEVICE} --name config --dir {cloud.folder}\n"
        f"  {command} local-cloud fault cut --dir {cloud.folder}\n\n"
        f"Their files are in {folder}. Press Ctrl-C to end all of it.",
        highlight=False,
        soft_wrap=True,
    )
    stops: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda given, _: stops.append(given))
    while not stops:
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave broker and agent running to try")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory(prefix="arxplorer-demo-") as folder:
        Path(folder).chmod(0o755)  # mosquitto gives up root and still reads its folder
        try:
            asyncio.run(demo(Path(folder), keep=keep))
        except (DemoError, subprocess.SubprocessError, TimeoutError) as error:
            console.print(f"[bold red]Failed:[/bold red] {error}")
            sys.exit(1)


if __name__ == "__main__":
    main()
