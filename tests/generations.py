"""Generations to switch to, made as a pack would leave them: complete, synced, with the manifest of their pack."""

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from agent.config import Config, load_config
from agent.corpus.switching import Switched, activate
from agent.corpus.trials import HeldBackPacks
from agent.corpus.updates import apply_update
from agent.corpus.upkeep import verify
from agent.domain import CorpusUpdate
from agent.protocol.pack_manifest import MANIFEST, PackManifest, Part, dump_pack_manifest
from agent.search import SearchAPI
from agent.store.agent_db import NAME, AgentDatabase
from agent.store.generations import INCOMING, update_lock
from agent.store.journal import journal_of
from agent.store.papers import PaperStore

Record = dict[str, Any]
MARKS = shutil.ignore_patterns("*.lock", "caches.in-use", "previous", "on-trial", MANIFEST)
WORDS = ("galaxy", "neuron", "lattice", "quantum", "protein", "market", "turbulence", "graph", "prime", "laser")


def record(number: int, version: int = 1, word: str = "") -> Record:
    """A paper whose title finds it by keyword."""
    word = word or WORDS[number % len(WORDS)]
    title = f"The {word} of number{number} in its version{version}"
    return {"arxiv_id": f"2301.{number:05d}", "title": title, "abstract": f"About {word}", "version": version}


def manifest(version: str, *, model: str = "all-MiniLM-L6-v2", dimensions: int = 384) -> PackManifest:
    part = Part(name="0.zst", bytes=1, sha256="0" * 64, path="papers.db", unpacked_bytes=1, unpacked_sha256="0" * 64)
    contents = hashlib.sha256(version.encode()).hexdigest()
    return PackManifest(
        version=version, model=model, dimensions=dimensions, papers=0, embedded=0, contents=contents, parts=(part,)
    )


def config_of(data_dir: Path) -> Config:
    return load_config(data_dir=data_dir)


def built(folder: Path, records: Sequence[Record], *, base: Path | None = None) -> Path:
    """The folder of a generation of these papers, and those of the data folder `base`, in a data folder of its own."""
    if base:
        shutil.copytree(base, folder, symlinks=True, ignore=shutil.ignore_patterns("agent.db*"))
    with SearchAPI(config_of(folder)) as api:
        index = api.open(owner=True, model=False).engine.index
        apply_update(index.papers, CorpusUpdate(add=tuple(records)), index.model, index.dimensions, None)
        index.catch_up()
        return index.folder


def update(data_dir: Path, given: CorpusUpdate) -> None:
    """What a command does with an update, but for the vectors."""
    with SearchAPI(config_of(data_dir)) as api:
        index = api.open(owner=True, model=False).engine.index
        apply_update(index.papers, given, index.model, index.dimensions, journal_of(data_dir))
        index.catch_up()


def lay(data_dir: Path, source: Path, pack: PackManifest) -> Path:
    """Put a copy of a generation where one that is being made stands."""
    incoming = data_dir / "generations" / INCOMING
    incoming.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(incoming, ignore_errors=True)
    shutil.copytree(source, incoming, ignore=MARKS)
    (incoming / MANIFEST).write_bytes(dump_pack_manifest(pack))
    return incoming


def install(data_dir: Path, source: Path, version: str) -> Switched:
    """What an installation does once everything is unpacked."""
    with update_lock(data_dir):
        incoming = lay(data_dir, source, manifest(version))
        return activate(SearchAPI(config_of(data_dir)), incoming, journal_of(data_dir))


def held_back(data_dir: Path) -> dict[str, str]:
    database = AgentDatabase(data_dir / NAME)
    with closing(database):
        return {pack.version: pack.reason for pack in HeldBackPacks(database).all()}


def papers_in(folder: Path) -> dict[str, int]:
    """arXiv ids and versions, by papers.db."""
    with closing(PaperStore(folder / "papers.db", read_only=True)) as papers:
        return {paper.arxiv_id: paper.version for _, paper in papers.papers()}


def current(data_dir: Path) -> str:
    return (data_dir / "current").resolve().name


def numbers(data_dir: Path) -> list[str]:
    """Everything in the folder of generations."""
    return sorted(path.name for path in (data_dir / "generations").iterdir())


def is_whole(data_dir: Path) -> bool:
    return verify((data_dir / "current").resolve()) == []
