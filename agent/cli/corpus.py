"""`corpus`: papers in and out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.context import State, as_json, pass_state, print_json, progress_bar
from agent.cli.upkeep import add, export, rebuild, remove, verify

if TYPE_CHECKING:
    from agent.corpus.importer import ImportReport


@click.group()
def corpus() -> None:
    """Import papers and look after the corpus."""


@corpus.command(name="import")
@click.argument("file", required=False)
@click.option("--vectors", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Ready-made vectors, .npy of i8 or f32: row i for line i of FILE.")  # fmt: skip  # noqa: E501
@click.option("--no-embed", is_flag=True, help="Keywords only for now; `corpus embed` or the running agent adds vectors.")  # fmt: skip  # noqa: E501
@click.option("--sample", is_flag=True, help="The sample corpus that comes with the program, instead of FILE.")
@as_json
@pass_state
def import_(state: State, file: str | None, vectors: Path | None, no_embed: bool, sample: bool, as_json: bool) -> None:
    """Import arXiv metadata from FILE: JSON lines, plain, .gz or .zst; `-` is standard input."""
    from agent.corpus.embedding import embed_missing
    from agent.corpus.importer import import_papers, read_vectors
    from agent.corpus.sample import SAMPLE_PAPERS, SAMPLE_VECTORS, sample_fits
    from agent.search import SearchAPI

    if sample:
        given, file = file, str(SAMPLE_PAPERS)
        vectors = SAMPLE_VECTORS if sample_fits(state.config.model.name) else None
        if given:
            raise click.UsageError("give either FILE or --sample")
    if not file:
        raise click.UsageError("give a FILE, - for standard input, or --sample")
    with SearchAPI(state.config) as api:
        api.open(owner=True, model=not no_embed and vectors is None)
        index, name = api.engine.index, state.config.model.name
        matrix = read_vectors(vectors, api.dimensions) if vectors else None
        with progress_bar("importing", total=None, shown=not as_json) as progress:
            report = import_papers(file, index, name, vectors=matrix, progress=progress)
        if not as_json:
            _show(report)
        embedded: int | None = 0
        if not no_embed and vectors is None:
            missing = index.papers.count() - index.papers.count_embedded(name)
            with progress_bar("embedding", total=missing, shown=not as_json) as progress:
                embedded = embed_missing(index, api.embedder, progress=progress)
            if not as_json:
                click.echo("another process is embedding" if embedded is None else f"{embedded} papers embedded")
    if as_json:
        import msgspec

        print_json({**msgspec.to_builtins(report), "embedded": embedded})


def _show(report: "ImportReport") -> None:
    counts = {name: getattr(report, name) for name in ("added", "updated", "unchanged", "older", "malformed")}
    click.echo(f"{report.lines} lines: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count))
    if report.vectors:
        click.echo(f"{report.vectors} vectors taken over")
    for problem in report.problems:
        click.echo(f"  line {problem.line}: {problem.reason}", err=True)
    if report.malformed > len(report.problems):
        click.echo(f"  ... and {report.malformed - len(report.problems)} more", err=True)


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
        missing = papers.count() - papers.count_embedded(state.config.model.name)
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
            "embedded": index.papers.count_embedded(state.config.model.name),
            "version": api.engine.corpus_version,
            "model": state.config.model.name,
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


for command in (add, remove, export, verify, rebuild):
    corpus.add_command(command)
