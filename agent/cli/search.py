"""`search`, `ask` and `evaluate`: questions, and how good the answers are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from agent.cli.context import State, as_json, pass_state, print_json, progress_bar, show_results
from agent.domain import MAX_OFFSET, MAX_RESULTS, MODES, is_date


def _date(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_date(value):
        raise click.BadParameter(f"{value!r} is no date; expected YYYY-MM-DD")
    return value


def question_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a question, shared by `search` and `ask`."""
    options = [
        click.argument("query"),
        click.option("--mode", type=click.Choice(MODES), help="How to rank. Default: the configured mode."),
        click.option("--category", multiple=True, help="cs.LG, or cs.* for all below; may be given several times."),
        click.option("--author", multiple=True, help="Family name, with given name or initial if you like."),
        click.option("--from", "published_from", callback=_date, metavar="DATE", help="Published on or after."),
        click.option("--to", "published_to", callback=_date, metavar="DATE", help="Published on or before."),
        click.option("--max-results", type=click.IntRange(1, MAX_RESULTS), help="Number of results."),
        click.option("--offset", type=click.IntRange(0, MAX_OFFSET), default=0, help="Results to pass over."),
        as_json,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _filters(**values: Any) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value}


@click.command()
@question_options
@pass_state
def search(state: State, /, query: str, offset: int, as_json: bool, category: tuple[str, ...], author: tuple[str, ...], **rest: Any) -> None:  # fmt: skip  # noqa: E501
    """Search the corpus on this device, without any broker."""
    from agent.search import SearchAPI

    with SearchAPI(state.config) as api:
        api.open(model=rest["mode"] != "keyword")
        message = api.search_sync(query, _filters(category=category, author=author, **rest), offset=offset)
        for problem in api.problems:
            click.echo(f"Note: {problem}", err=True)
    print_json(message) if as_json else show_results(message)


@click.command()
@question_options
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=30.0, help="Seconds to wait for the answer.")
@click.option("--thing-name", help="Ask this agent alone.")
@pass_state
def ask(state: State, /, query: str, offset: int, as_json: bool, timeout: float, thing_name: str | None, category: tuple[str, ...], author: tuple[str, ...], **rest: Any) -> None:  # fmt: skip  # noqa: E501
    """Ask a running agent the same question over MQTT."""
    import asyncio

    from agent.aws import AWSIoTMQTTClient

    filters = _filters(category=category, author=author, **rest)

    async def question() -> dict[str, Any]:
        client = AWSIoTMQTTClient(state.config)
        await client.connect()
        try:
            return await client.ask(query, filters, timeout_s=timeout, thing_name=thing_name, offset=offset)
        finally:
            await client.disconnect()

    message = asyncio.run(question())
    print_json(message) if as_json else show_results(message)
    if "error" in message:
        raise SystemExit(1)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--qrels", default="test", show_default=True, help="Name of the judgements, qrels/NAME.tsv.")
@as_json
@pass_state
def evaluate(state: State, folder: Path, qrels: str, as_json: bool) -> None:
    """Measure ranking quality on a BEIR-style FOLDER: corpus.jsonl, queries.jsonl, qrels/NAME.tsv."""
    from agent.evaluation import evaluate_folder
    from agent.search.api import load_embedder

    embedder = load_embedder(state.config)
    with progress_bar("embedding", total=None, shown=not as_json) as progress:
        scores = evaluate_folder(folder, [qrels], embedder, state.config.search, progress=progress)[qrels]
    if as_json:
        print_json(scores)
        return
    for mode, figures in scores.items():
        click.echo(f"{mode:9}" + "".join(f"  {name} {value:.4f}" for name, value in figures.items()))
