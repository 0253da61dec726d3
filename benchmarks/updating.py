"""Questions while a corpus is installed and gone over to: how many fail, and how long the slowest one takes."""

import asyncio
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from agent.aws import AWSIoTMQTTClient
from benchmarks.agent import COMMAND, ready_client, running_agent
from benchmarks.data import OUTPUT, corpus, queries
from benchmarks.report import percentiles, publish


class Asked:
    """Questions one after the other: seconds of each, those without an answer, the corpora that answered."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.failed = 0
        self.versions: list[str] = []

    async def ask(self, client: AWSIoTMQTTClient, text: str) -> None:
        started = time.perf_counter()
        answer = await client.ask(text, timeout_s=60)
        self.times.append(time.perf_counter() - started)
        self.failed += not answer["results"]
        version = answer.get("metadata", {}).get("corpus_version", "").partition("+")[0]
        if version not in self.versions[-1:]:
            self.versions.append(version)

    def row(self) -> dict[str, object]:
        worst = {"slowest_ms": round(max(self.times) * 1e3, 1), "questions": len(self.times), "failed": self.failed}
        return {**percentiles(self.times), **worst, "corpora": " ".join(self.versions)}


def measure(size: str, questions: int) -> None:
    """A device that has one pack takes another one of as many papers, and goes back."""
    packs = [_packed(size, "before"), _packed(size, "after")]
    with tempfile.TemporaryDirectory(prefix="device-", dir=OUTPUT) as folder:
        data_dir = Path(folder) / "data"
        subprocess.run([*_corpus(data_dir), "install", str(packs[0])], check=True)
        rows = asyncio.run(_measure(data_dir, packs[1], queries(questions)))
    publish(f"updating-{size}", rows)


def _packed(size: str, version: str) -> Path:
    pack = OUTPUT / f"pack-{size}-{version}"
    if not (pack / "manifest.json").is_file():
        subprocess.run([*_corpus(corpus(size).data_dir), "pack", str(pack), "--version", version], check=True)
    return pack


def _corpus(data_dir: Path) -> list[str]:
    return [COMMAND, "--data-dir", str(data_dir), "corpus"]


async def _measure(data_dir: Path, pack: Path, texts: Sequence[str]) -> dict[str, dict[str, object]]:
    with running_agent(data_dir) as agent:
        client = await ready_client(agent)
        rows = {"before": Asked(), "installing and going over": Asked(), "going back": Asked(), "after": Asked()}
        for text in texts:
            await rows["before"].ask(client, text)
        for name, command in (("installing and going over", ["install", str(pack)]), ("going back", ["rollback"])):
            await _ask_during(client, rows[name], [*_corpus(data_dir), *command], texts)
        for text in texts:
            await rows["after"].ask(client, text)
        await client.disconnect()
    return {name: asked.row() for name, asked in rows.items()}


async def _ask_during(client: AWSIoTMQTTClient, asked: Asked, command: list[str], texts: Sequence[str]) -> None:
    """Ask while a command runs, and until another corpus answers."""
    process = await asyncio.create_subprocess_exec(*command, "--json", stdout=subprocess.PIPE)
    number = 0
    while process.returncode is None or len(asked.versions) < 2:
        await asked.ask(client, texts[number % len(texts)])
        number += 1
    done, _ = await process.communicate()
    if process.returncode or not json.loads(done):
        raise RuntimeError(f"{command} failed")
