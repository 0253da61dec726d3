"""`corpus add`, `remove`, `export`, `verify`, `rebuild`: looking after what is there."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.context import State, as_json, pass_state, print_json
from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.domain import CorpusUpdate
    from agent.search import SearchAPI
    from agent.store.journal import Journal


def _records(given: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for text in given:
        lines = sys.stdin if text == "-" else [text]
        for line in filter(str.strip, lines):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise click.UsageError(f"not valid JSON: {error}") from error
            if not isinstance(record, dict):
                raise click.UsageError(f"expected a JSON object, got {line.strip()[:40]}")
            yield record


@click.command()
@click.argument("record", nargs=-1, required=True)
@as_json
@pass_state
def add(state: State, record: tuple[str, ...], as_json: bool) -> None:
    """Add papers: each RECORD is a JSON object as in an import, with a vector if you like; - reads lines."""
    from agent.domain import CorpusUpdate

    _apply(state, CorpusUpdate(add=tuple(_records(record))), as_json)


@click.command()
@click.argument("arxiv_id", nargs=-1)
@click.option("--sample", is_flag=True, help="Those of the sample corpus.")
@as_json
@pass_state
def remove(state: State, arxiv_id: tuple[str, ...], sample: bool, as_json: bool) -> None:
    """Remove papers by their arXiv ids."""
    from agent.corpus.sample import sample_ids
    from agent.domain import CorpusUpdate

    if not (arxiv_id or sample):
        raise click.UsageError("give arXiv ids, or --sample")
    _apply(state, CorpusUpdate(remove=arxiv_id + (sample_ids() if sample else ())), as_json)


def _apply(state: State, update: "CorpusUpdate", as_json: bool) -> None:
    """Write papers.db; an agent that runs follows within a second, and without one it is all done here."""
    from agent.corpus.embedding import embed_missing
    from agent.search import SearchAPI
    from agent.store.journal import journal_of

    journal = journal_of(state.config.data_dir)
    with SearchAPI(state.config) as api:
        api.open(owner=True, model=False)
        state.warn_of_own_folder()
        counts = applied(api, update, journal)
        index = api.engine.index
        if index.writable:
            index.catch_up()
            if update.add and index.papers.count() != index.papers.count_embedded(index.model):
                embed_missing(index, api.embedder)
    if as_json:
        print_json(counts)
    else:
        click.echo(", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing to change")


def applied(api: "SearchAPI", update: "CorpusUpdate", journal: "Journal") -> dict[str, int]:
    """As apply_update; where another generation is taking the place of the open one, on that."""
    from agent.corpus.updates import apply_update
    from agent.errors import SupersededError

    while True:
        index = api.engine.index
        try:
            return apply_update(index.papers, update, index.model, index.dimensions, journal)
        except SupersededError:
            api.engine.close()
            api.open(owner=True, model=False)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--vectors", type=click.Path(dir_okay=False, path_type=Path), help="Also write their vectors, .npy of i8: row i for line i; 0 where there is none.")  # fmt: skip  # noqa: E501
@pass_state
def export(state: State, file: Path | None, vectors: Path | None) -> None:
    """Write all papers as JSON lines, as `corpus import` reads them; without FILE to standard output."""
    from agent.corpus.export import export_papers
    from agent.search import SearchAPI

    with SearchAPI(state.config) as api:
        api.open(model=False)
        index = api.engine.index
        stream = file.open("wb") if file else sys.stdout.buffer
        try:
            count = export_papers(index.papers, stream, index.model, vectors, index.dimensions)
        finally:
            if file:
                stream.close()
    click.echo(f"{count} papers", err=True)


def _folder(state: State) -> Path:
    from agent.store.generations import current_generation, no_corpus

    folder = current_generation(state.config.data_dir)
    if folder is None:
        raise no_corpus(state.config.data_dir)
    return folder


@click.command()
@as_json
@pass_state
def verify(state: State, as_json: bool) -> None:
    """Read every file of the corpus and say what is damaged; exit 1 if anything is."""
    from agent.corpus.upkeep import verify as verify_corpus

    problems = verify_corpus(_folder(state))
    if as_json:
        print_json({"problems": problems})
    for problem in problems if not as_json else ():
        click.echo(problem)
    if problems:
        raise AgentError(
            f"{len(problems)} problems in the corpus", hint="arxplorer-agent corpus rebuild makes whole what can be"
        )
    if not as_json:
        click.echo("the corpus is whole")


@click.command()
@as_json
@pass_state
def rebuild(state: State, as_json: bool) -> None:
    """Make the indexes again from the papers, and papers.db from its whole rows where it is damaged."""
    from agent.corpus.upkeep import rebuild as rebuild_corpus
    from agent.footprint import footprint
    from agent.search.api import corpus_model

    folder = _folder(state)
    name, dimensions, _ = corpus_model(state.config, folder)
    fits = footprint(state.config.limits.memory_mb)
    done = rebuild_corpus(folder, name, dimensions, fits=fits)
    if as_json:
        salvaged = done.salvaged._asdict() if done.salvaged else None
        print_json({"papers": done.papers, "vectors": done.vectors, "salvaged": salvaged})
        return
    if done.salvaged:
        click.echo(f"papers.db was damaged: {done.salvaged.papers} papers saved, {done.salvaged.lost} rows lost")
    click.echo(f"indexes made again of {done.papers} papers and {done.vectors} vectors")
