"""Packs and a signed repository to install from, made once by the command line, as an operator makes them."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from conftest import import_sample

from agent.cli import cli
from agent.config import load_config
from agent.search import SearchAPI

SUBJECT = "lighthouse keepers"


def paper(number: int, *, subject: str = SUBJECT, version: int = 1) -> dict[str, Any]:
    title = f"On {subject}, note {number}"
    return {"arxiv_id": f"2611.{number:05d}", "title": title, "abstract": f"What {subject} do.", "version": version}


def command(*arguments: str | Path) -> str:
    """Run one in this process, which must succeed; what it printed."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.stdout


class Operator:
    """A corpus of three states, each a whole pack, the later ones as increments too; published in this order.

    `1` is the sample, `2` has papers 0 to 9 beside it, `3` lacks papers 0 to 4 and has a new version of paper 5.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir, self.keys, self.repository = folder / "data", folder / "keys", folder / "repository"
        self.trust = self.keys / "root.json"
        config = load_config(environment={}, data_dir=self.data_dir)
        with SearchAPI(config) as api:
            api.open(owner=True, model=False)
            import_sample(api)
        command("corpus", "keys", self.keys)
        self._pack("1")
        self._add(*(paper(number) for number in range(10)))
        self._pack("2", since="1")
        command("--data-dir", self.data_dir, "corpus", "remove", *(paper(number)["arxiv_id"] for number in range(5)))
        self._add(paper(5, subject="harbour masters", version=2))
        self._pack("3", since="2")

    def pack(self, version: str) -> Path:
        return self.folder / f"pack-{version}"

    def increment(self, version: str) -> Path:
        return self.folder / f"increment-{version}"

    def publish(self, *versions: str, increments: bool = True, channel: str = "stable") -> None:
        for version in versions:
            packs = [self.pack(version), *([self.increment(version)] if increments and version != "1" else [])]
            for pack in packs:
                options = ["--pack", pack, "--keys", self.keys, "--channel", channel]
                command("corpus", "publish", self.repository, *options)

    def environment(self, **more: str) -> dict[str, str]:
        """What tells a device of the repository."""
        names = {"REPOSITORY": str(self.repository), "TRUST": str(self.trust), **more}
        return {f"ARXPLORER__CORPUS__{name}": value for name, value in names.items()}

    def _add(self, *records: dict[str, Any]) -> None:
        command("--data-dir", self.data_dir, "corpus", "add", *map(json.dumps, records))

    def _pack(self, version: str, since: str | None = None) -> None:
        corpus = ["--data-dir", self.data_dir, "corpus", "pack"]
        command(*corpus, self.pack(version), "--version", version)
        if since:
            command(*corpus, self.increment(version), "--version", version, "--since", self.pack(since))


def found(api_or_answer: Any) -> set[str]:
    return {hit["arxiv_id"] for hit in api_or_answer["results"]}
