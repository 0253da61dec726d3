"""`corpus pack`: the corpus, or some of it, as files that carry it to other devices."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.context import State, as_json, pass_state, print_json, progress_bar

if TYPE_CHECKING:
    from agent.protocol.pack_manifest import PackManifest, Selection

Step = Callable[[str, int, int], None]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--category", "categories", multiple=True, help="Only papers of this category, such as cs.LG or cs.*.")
@click.option("--from", "published_from", metavar="DATE", help="Only papers published from YYYY, YYYY-MM or YYYY-MM-DD on.")  # fmt: skip  # noqa: E501
@click.option("--limit", type=click.IntRange(min=1), help="Only the newest so many, by publication.")
@click.option("--version", help="What to call it. Default: from its contents, so that the same contents have one name.")
@click.option("--with-model", is_flag=True, help="Add the installed model.")
@click.option("--since", type=click.Path(exists=True, path_type=Path), help="Only what changed since this whole pack, a folder or .tar.")  # fmt: skip  # noqa: E501
@as_json
@pass_state
def pack(
    state: State,
    folder: Path,
    categories: tuple[str, ...],
    published_from: str | None,
    limit: int | None,
    version: str | None,
    with_model: bool,
    since: Path | None,
    as_json: bool,
) -> None:
    """Pack the corpus into FOLDER, new or empty; an agent that runs goes on meanwhile.

    Papers without a vector are packed without one. With --since the selection is that of the earlier pack unless you
    give one.
    """
    from agent.corpus.packing import pack as make
    from agent.search.api import corpus_model
    from agent.store.generations import current_generation, no_corpus

    config = state.config
    corpus = current_generation(config.data_dir)
    if corpus is None:
        raise no_corpus(config.data_dir)
    model = corpus_model(config, corpus)
    given = categories or published_from or limit
    with _steps(shown=not as_json) as step:
        manifest = make(
            corpus,
            model.name,
            model.dimensions,
            folder,
            selection=_selection(categories, published_from, limit) if given or not since else None,
            version=version,
            since=since,
            model_files=_model_files(state, corpus, model.name) if with_model else None,
            progress=step,
        )
    _show(manifest, folder, as_json=as_json)


def _selection(categories: tuple[str, ...], published_from: str | None, limit: int | None) -> "Selection":
    from agent.domain import is_date
    from agent.protocol.pack_manifest import Selection

    first = f"{published_from}-01" if published_from and published_from.isdecimal() else published_from
    if first is not None and not is_date(first):
        raise click.UsageError(f"--from: expected YYYY, YYYY-MM or YYYY-MM-DD, got {published_from!r}")
    # In one order and each once, so that the same wish makes the same pack.
    return Selection(tuple(sorted(set(categories))), first, limit)


def _model_files(state: State, corpus: Path, name: str) -> Path:
    from agent.errors import ModelError
    from agent.search.api import model_folder

    found = model_folder(state.config, corpus, name)
    if found is None:
        raise ModelError(f"model {name} is not installed", hint=f"arxplorer-agent model install {name}")
    return found


@contextmanager
def _steps(*, shown: bool) -> Iterator[Step]:
    """Yield a callback that takes what is being done, how much of it is done, and how much there is (0: not known)."""
    with ExitStack() as bar:
        shown_now: dict[str, Callable[[int], None]] = {}

        def step(what: str, done: int, total: int) -> None:
            if what not in shown_now:
                bar.close()
                shown_now.clear()
                shown_now[what] = bar.enter_context(progress_bar(what, total=total or None, shown=shown))
            shown_now[what](done)

        yield step


def _show(manifest: "PackManifest", folder: Path, *, as_json: bool) -> None:
    figures: dict[str, Any] = {
        "version": manifest.version,
        "since": manifest.base.version if manifest.base else None,
        "papers": manifest.papers,
        "embedded": manifest.embedded,
        "model": manifest.model,
        "contents": manifest.contents,
        "bytes": manifest.packed_bytes,
        "unpacked_bytes": manifest.unpacked_bytes,
        "folder": str(folder),
    }
    if as_json:
        print_json(figures)
        return
    for name, value in figures.items():
        if value is not None:
            click.echo(f"{name:14} {value}")
