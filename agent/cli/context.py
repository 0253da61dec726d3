"""What every command shares: the configuration, and how results are shown."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from agent.config import Config

as_json: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON only.")


class State:
    """The options before the subcommand; the configuration is read when first asked for."""

    def __init__(self, config_file: Path | None, data_dir: Path | None) -> None:
        self.config_file: Final = config_file
        self.data_dir: Final = data_dir

    @cached_property
    def config(self) -> "Config":
        from agent.config import find_config_file, load_config

        return load_config(find_config_file(self.config_file), data_dir=self.data_dir)

    def warn_of_own_folder(self) -> None:
        """Tell who changes a corpus of their own, perhaps unawares, that the agent has another one."""
        from agent.paths import shut_out

        if hint := shut_out(self.config.data_dir):
            click.echo(f"The corpus in {self.config.data_dir} is your own. {hint}", err=True)


pass_state = click.make_pass_decorator(State)


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, ensure_ascii=False))


@contextmanager
def progress_bar(label: str, *, total: int | None, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yield a callback that takes the number done so far; a bar is drawn on a terminal only."""
    import sys

    if not shown or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)


def show_results(message: dict[str, Any]) -> None:
    """Print a result message for a person to read."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    if "error" in message:
        console.print(f"[red]{escape(message['error']['message'])}[/red] ({message['error']['code']})")
        return
    if not message["results"]:
        console.print("No papers match.")
    for rank, hit in enumerate(message["results"], 1):
        authors = ", ".join(hit["authors"][:4]) + (" and others" if len(hit["authors"]) > 4 else "")  # noqa: PLR2004
        console.print(f"[bold]{rank:3}. {escape(hit['title'])}[/bold]")
        facts = [f"{hit['score']:.3f}", hit["arxiv_id"], hit["published"], " ".join(hit["categories"])]
        console.print(f"     [cyan]{escape('  '.join(filter(None, facts)))}[/cyan]", highlight=False)
        if authors:
            console.print(f"     [dim]{escape(authors)}[/dim]", highlight=False)
    metadata = message["metadata"]
    console.print(
        f"[dim]{metadata['mode']} search by {escape(metadata['processed_by'])} "
        f"in {metadata['processing_time_ms']:.1f} ms[/dim]",
        highlight=False,
    )
