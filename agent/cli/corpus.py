"""`corpus`: papers in and out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agent.cli.context import State, as_json, pass_state, print_json, progress_bar
from agent.cli.harvest import harvest
from agent.cli.packs import pack
from agent.cli.repository import keys, publish
from agent.cli.switching import rollback
from agent.cli.syncing import install, sync
from agent.cli.upkeep import add, export, rebuild, remove, verify

if TYPE_CHECKING:
    from agent.corpus.importer import ImportReport
    from agent.search import SearchAPI

SHOWN_PROBLEMS: Final = 20


@click.group()
def corpus() -> None:
    """Import papers and look after the corpus."""


@corpus.command(name="import")
@click.argument("file", required=False)
@click.option("--vectors", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Ready-made vectors, .npy of i8 or f32: row i for line i of FILE. What gets none is embedded.")  # fmt: skip  # noqa: E501
@click.option("--no-embed", is_flag=True, help="Keywords only for now; `corpus embed` or the running agent adds vectors.")  # fmt: skip  # noqa: E501
@click.option("--sample", is_flag=True, help="The sample corpus that comes with the program, instead of FILE.")
@as_json
@pass_state
def import_(state: State, file: str | None, vectors: Path | None, no_embed: bool, sample: bool, as_json: bool) -> None:
    """Import arXiv metadata from FILE: JSON lines, plain, .gz or .zst; `-` is standard input."""
    import msgspec

    from agent.corpus.importer import ImportReport
    from agent.corpus.sample import SAMPLE_PAPERS, sample_vectors
    from agent.errors import AgentError
    from agent.search import SearchAPI

    if sample:
        if file or vectors:
            raise click.UsageError("give either --sample or FILE, with --vectors where you have them")
        file = str(SAMPLE_PAPERS)
    if not file:
        raise click.UsageError("give a FILE, - for standard input, or --sample")
    report = ImportReport()
    with SearchAPI(state.config) as api:
        api.open(owner=True, model=False)
        state.warn_of_own_folder()
        vectors = sample_vectors(api.model_name) if sample else vectors
        try:
            _import(api, file, vectors, report, quiet=as_json)
            embedded = 0 if no_embed else _embed_rest(api, given=vectors is not None, quiet=as_json)
        except AgentError as error:  # what was done before it is told all the same
            if as_json:
                print_json({**msgspec.to_builtins(report), "embedded": 0, "error": error.message})
            raise
    if as_json:
        print_json({**msgspec.to_builtins(report), "embedded": embedded})


def _import(api: "SearchAPI", file: str, vectors: Path | None, report: "ImportReport", *, quiet: bool) -> None:
    from agent.corpus.importer import import_papers, read_vectors
    from agent.store.journal import journal_of

    matrix = read_vectors(vectors, api.dimensions) if vectors else None
    index = api.engine.index
    journal = journal_of(api.config.data_dir)
    try:
        with progress_bar("importing", total=None, shown=not quiet) as progress:
            import_papers(file, index, index.model, vectors=matrix, progress=progress, report=report, journal=journal)
    finally:
        if not quiet:
            _show(report)


def _embed_rest(api: "SearchAPI", *, given: bool, quiet: bool) -> int | None:
    """Embed what has no vector; beside given vectors only if the model is installed."""
    from agent.corpus.embedding import embed_missing
    from agent.search.api import model_folder

    index = api.engine.index
    papers, name = index.papers, index.model
    missing = papers.count() - papers.count_embedded(name)
    if not missing:
        return 0
    if given and not model_folder(api.config, index.folder, name):
        if not quiet:
            click.echo(f"{missing} papers have no vector yet: model {name} is not installed")
        return 0
    with progress_bar("embedding", total=missing, shown=not quiet) as progress:
        embedded = embed_missing(api.engine.index, api.embedder, progress=progress)
    if not quiet:
        click.echo("another process is embedding" if embedded is None else f"{embedded} papers embedded")
    return embedded


def _show(report: "ImportReport") -> None:
    from agent.corpus.importer import KEPT_PROBLEMS

    counts = {name: getattr(report, name) for name in ("added", "updated", "unchanged", "older", "malformed")}
    click.echo(f"{report.lines} lines: " + (", ".join(f"{n} {name}" for name, n in counts.items() if n) or "no papers"))
    if report.vectors:
        click.echo(f"{report.vectors} vectors taken over")
    if report.unusable_vectors:
        click.echo(f"{report.unusable_vectors} rows of --vectors are zeros, NaN or infinity: taken for absent")
    shown = report.problems[:SHOWN_PROBLEMS]
    for problem in shown:
        click.echo(f"  line {problem.line}: {problem.reason}", err=True)
    if report.malformed > len(shown):
        click.echo(f"  ... and {report.malformed - len(shown)} more; --json names up to {KEPT_PROBLEMS}", err=True)


@corpus.command()
@as_json
@pass_state
def embed(state: State, as_json: bool) -> None:
    """Embed papers that have no vector yet."""
    from agent.corpus.embedding import embed_missing
    from agent.search import SearchAPI

    with SearchAPI(state.config) as api:
        api.open(owner=True)
        papers = api.engine.index.papers
        missing = papers.count() - papers.count_embedded(api.model_name)
        with progress_bar("embedding", total=missing, shown=not as_json) as progress:
            done = embed_missing(api.engine.index, api.embedder, progress=progress)
    if as_json:
        print_json({"embedded": done})
    else:
        click.echo("another process is embedding" if done is None else f"{done} papers embedded")


@corpus.command()
@as_json
@pass_state
def stats(state: State, as_json: bool) -> None:
    """Count papers, vectors and bytes."""
    from agent.search import SearchAPI

    with SearchAPI(state.config) as api:
        api.open(model=False)
        index = api.engine.index
        figures: dict[str, Any] = {
            "papers": index.papers.count(),
            "embedded": index.papers.count_embedded(index.model),
            "version": api.engine.corpus_version,
            "model": index.model,
            "folder": str(index.folder),
            "bytes": {
                "papers": index.papers.path.stat().st_size,
                "vectors": _size(index.vectors.folder),
                "keywords": _size(index.keywords.folder),
            },
        }
    if as_json:
        print_json(figures)
        return
    for name, value in figures.items():
        click.echo(f"{name:9} {value}")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


for command in (add, remove, export, verify, rebuild, pack, keys, publish, rollback, install, sync, harvest):
    corpus.add_command(command)
