"""The main job, shown: papers imported, an agent started, questions answered over MQTT, the agent stopped in order."""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from agent.aws import AWSIoTMQTTClient
from agent.cli.context import show_results
from agent.config import Config, load_config
from agent.local_cloud.mosquitto import Mosquitto

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


def step(text: str) -> None:
    console.print(f"\n[bold green]>[/bold green] [bold]{text}[/bold]")


def run(arguments: list[str], environment: dict[str, str]) -> None:
    subprocess.run([COMMAND, *arguments], env=environment, check=True)


def start_agent(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([COMMAND, "--data-dir", str(folder / "data"), "run"], env=environment)


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


async def demo(folder: Path, *, keep: bool) -> None:
    with Mosquitto(folder / "broker") as broker:
        environment = {
            **os.environ,
            "ARXPLORER__LOCAL_BROKER__PORT": str(broker.port),
            "ARXPLORER__LOGGING__LEVEL": "warning",
        }
        config = load_config(environment=environment, data_dir=folder / "data")
        step(f"A broker of its own: mosquitto on 127.0.0.1:{broker.port}")
        step("Import the sample corpus: well-known papers, with their vectors")
        run(["--data-dir", str(folder / "data"), "corpus", "import", "--sample"], environment)
        step("Start the agent")
        client = AWSIoTMQTTClient(config)
        await client.connect()
        agent = start_agent(folder, environment)
        try:
            status = await wait_online(client, config)
            details = status["details"]
            console.print(
                f"[dim]{status['client_id']} is online: {json.dumps(details['corpus'])}, model {details['model']}[/dim]"
            )  # type: ignore[index]
            await ask_all(client)
            if keep:
                leave_running(broker, folder)
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


def leave_running(broker: Mosquitto, folder: Path) -> None:
    command = Path(COMMAND).relative_to(Path.cwd()) if Path(COMMAND).is_relative_to(Path.cwd()) else COMMAND
    console.print(
        f"\n[bold]Broker and agent are running.[/bold] In another terminal, for example:\n\n"
        f"  export ARXPLORER__LOCAL_BROKER__PORT={broker.port}\n"
        f"  {command} ask 'what holds a neural network together' --category 'cs.*'\n\n"
        f"Their files are in {folder}. Press Ctrl-C to end both.",
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
