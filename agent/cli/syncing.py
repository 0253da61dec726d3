"""`corpus install` and `corpus sync`: a corpus from a pack at hand, or from a signed repository."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from agent.cli.context import State, as_json, pass_state, print_json, progress_bar

if TYPE_CHECKING:
    from agent.corpus.installing import Installer, Tell
    from agent.corpus.syncing import Source
    from agent.protocol.targets import Progress, Wish
    from agent.store.agent_db import AgentDatabase

STEPS: Final = 1000

again_option = click.option("--again", is_flag=True, help="Also a pack that failed here before, or was rolled back.")
channel_option = click.option("--channel", help="Which packs of the repository. Default: corpus.channel.")
version_option = click.option("--version", help="Which of them. Default: the newest.")


@contextmanager
def _installer(state: State) -> Iterator[tuple["AgentDatabase", "Installer"]]:
    from agent.corpus.installing import Installer
    from agent.store import agent_db
    from agent.store.agent_db import AgentDatabase

    state.warn_of_own_folder()
    database = AgentDatabase(state.config.data_dir / agent_db.NAME)
    try:
        yield database, Installer(state.config, database)
    finally:
        database.close()


@contextmanager
def _telling(*, quiet: bool) -> Iterator["Tell"]:
    """Download and installation as one bar each, on a terminal."""
    with progress_bar("updating", total=STEPS, shown=not quiet) as show:

        def tell(progress: "Progress") -> None:
            show(round(STEPS * (progress.part or 0)))

        yield tell


@click.command()
@click.argument("source", metavar="DIR|FILE|URL")
@click.option("--trust", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="KEY", help="root.json of the repository, whose keys vouch for it; kept.")  # fmt: skip  # noqa: E501
@channel_option
@version_option
@again_option
@as_json
@pass_state
def install(
    state: State, source: str, trust: Path | None, channel: str | None, version: str | None, again: bool, as_json: bool
) -> None:
    """Install a pack at hand, a folder or a tar, or the newest one of a signed repository, by its folder or URL.

    A pack at hand needs no signature, unless a key is given or configured.
    """
    from agent.corpus.syncing import Source
    from agent.errors import PackError
    from agent.protocol.targets import Wish

    given = trust or (Path(state.config.corpus.trust) if state.config.corpus.trust else None)
    if is_repository(source):
        _sync(state, Source(source, given), Wish(channel=channel, version=version), again=again, as_json=as_json)
        return
    if channel or version:
        raise click.UsageError("--channel and --version choose from a repository; a pack at hand is what it is")
    if given:
        raise PackError(
            f"{source} is a pack without a signature, and only what {given} vouches for is wanted",
            hint="name the repository that it was published in",
        )
    _install(state, Path(source), again=again, as_json=as_json)


@click.command()
@channel_option
@version_option
@again_option
@as_json
@pass_state
def sync(state: State, channel: str | None, version: str | None, again: bool, as_json: bool) -> None:
    """Look into the configured repository now, and take what is newer; the agent does so every sync_interval_s."""
    from agent.corpus.syncing import Source
    from agent.protocol.targets import Wish

    source = Source.configured(state.config)
    _sync(state, source, Wish(channel=channel, version=version), again=again, as_json=as_json)


def is_repository(source: str) -> bool:
    """Whether this is the address or the folder of a repository, and not a pack."""
    return "://" in source or (Path(source) / "metadata").is_dir()


def _install(state: State, source: Path, *, again: bool, as_json: bool) -> None:
    from agent.corpus.packs import open_pack

    with _installer(state) as (_, installer), _telling(quiet=as_json) as tell, open_pack(source) as pack:
        done = installer.install(pack, tell, lambda: False, again=again)
    if as_json:
        print_json({**done._asdict(), "signed": False})
        return
    click.echo(f"{done.version} (unsigned): {done.papers} papers" + ("" if done.switched else ", in use already"))
    if done.own_changes:
        click.echo(f"{done.own_changes} changes made on this device were carried over")


def _sync(state: State, source: "Source", wish: "Wish", *, again: bool, as_json: bool) -> None:
    from agent.corpus.syncing import Syncing

    with _installer(state) as (database, installer), _telling(quiet=as_json) as tell:
        syncing = Syncing(state.config, database, installer)
        try:
            done = syncing.run(source, wish, tell, again=again)
        finally:
            for problem in syncing.problems:
                click.echo(problem, err=True)
    if as_json:
        print_json({**done._asdict(), "signed": True})
        return
    click.echo(f"{done.version} (signed)" + ("" if done.installed else ", in use already"))
    if done.held_back:
        click.echo(f"not taken: {done.held_back}; --again takes it")
