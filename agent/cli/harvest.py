"""`corpus harvest`: new papers straight from arXiv."""

from typing import TYPE_CHECKING

import click

from agent.cli.context import State, as_json, pass_state, print_json, progress_bar
from agent.cli.upkeep import applied

if TYPE_CHECKING:
    from agent.corpus.harvest import HarvestReport
    from agent.search import SearchAPI


@click.command()
@click.option("--category", "categories", multiple=True, metavar="C", help="Instead of corpus.harvest.categories, such as cs.LG or math.*; may be repeated.")  # fmt: skip  # noqa: E501
@click.option("--since", default="", metavar="DATE", help="What has changed since this day, YYYY-MM-DD, instead of since the last harvest.")  # fmt: skip  # noqa: E501
@as_json
@pass_state
def harvest(state: State, categories: tuple[str, ...], since: str, as_json: bool) -> None:
    """Fetch new papers from arXiv's OAI-PMH interface; the first time those of the last week."""
    from contextlib import closing, suppress
    from functools import partial

    import msgspec

    from agent.corpus.harvest import HarvestReport, harvester_of
    from agent.errors import AgentError
    from agent.search import SearchAPI
    from agent.store import agent_db
    from agent.store.agent_db import AgentDatabase
    from agent.store.journal import Journal

    report = HarvestReport()
    with SearchAPI(state.config) as api:
        api.open(owner=True, model=False)
        state.warn_of_own_folder()
        try:
            with (
                closing(AgentDatabase(state.config.data_dir / agent_db.NAME)) as database,
                progress_bar("harvesting", total=None, shown=not as_json) as progress,
            ):
                apply = partial(applied, api, journal=Journal(database))
                harvester = harvester_of(
                    api, apply, database, progress=progress, say=lambda why: click.echo(why, err=True)
                )
                harvester.harvest(categories, since=since, report=report)
        except AgentError as error:  # what was done before it is told all the same
            with suppress(AgentError):
                _embed(api)
            if as_json:
                print_json({**msgspec.to_builtins(report), "error": error.message})
            else:
                _show(report)
            raise
        _embed(api)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _show(report)


def _embed(api: "SearchAPI") -> None:
    """Make searchable what came; an agent that runs does it itself."""
    from contextlib import suppress

    from agent.corpus.embedding import embed_missing
    from agent.errors import ModelError

    index = api.engine.index
    if index.writable:
        index.catch_up()
        if index.papers.count() != index.papers.count_embedded(index.model):
            with suppress(ModelError):  # the agent says so, and keywords work without it
                embed_missing(index, api.embedder)


def _show(report: "HarvestReport") -> None:
    from agent.corpus.harvest import COUNTS

    counts = {name: getattr(report, name) for name in (*COUNTS, "unwanted", "malformed")}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing new"
    waited = f", {report.waited_s:.0f} s waited because arXiv was busy or not there" if report.waited_s else ""
    click.echo(f"{told} ({report.pages} pages{waited})")
    for problem in report.problems[:20]:
        click.echo(f"  {problem}", err=True)
