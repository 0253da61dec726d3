"""`corpus rollback`: back to the generation before, and forward again."""

import click

from agent.cli.context import State, as_json, pass_state, print_json


@click.command()
@as_json
@pass_state
def rollback(state: State, as_json: bool) -> None:
    """Go back to the corpus before the last switch, with all that was added and removed here since.

    Once more, and it is the newer one again. An agent that runs goes over within a second or two.
    """
    from agent.corpus.switching import roll_back, sweep_quietly
    from agent.corpus.trials import HeldBackPacks
    from agent.search import SearchAPI
    from agent.store.agent_db import NAME, AgentDatabase
    from agent.store.generations import no_corpus, update_lock
    from agent.store.journal import Journal

    data_dir = state.config.data_dir
    if not (data_dir / "current").is_dir():
        raise no_corpus(data_dir)
    state.warn_of_own_folder()
    database = AgentDatabase(data_dir / NAME)
    with update_lock(data_dir):
        done = roll_back(SearchAPI(state.config), Journal(database), HeldBackPacks(database))
    sweep_quietly(data_dir)
    if as_json:
        counts = dict(done.replayed.counts)
        print_json({"from": done.before, "to": done.after, "own_changes": done.replayed.entries, **counts})
        return
    click.echo(f"from {done.before} to {done.after}; {done.replayed.entries} changes made on this device carried over")
