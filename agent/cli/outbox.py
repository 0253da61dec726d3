"""`outbox`: what waits for a link that is down, and what was given up."""

import time

import click

from agent.cli.context import State, as_json, pass_state, print_json


@click.command()
@as_json
@pass_state
def outbox(state: State, as_json: bool) -> None:
    """Show what waits on disk for a link that is down, what was dropped and why, and what was set aside.

    Set aside are messages that a broker refuses, and requests over which the agent ended twice.

    The agent may be running. What waits is delivered by itself once its link stands again.
    """
    from agent.store import agent_db
    from agent.store.outbox import KINDS, look

    found = look(state.config.data_dir / agent_db.NAME)
    if as_json:
        print_json(found)
        return
    for kind in KINDS:
        held = found[f"{kind}s"]
        click.echo(f"{held['messages']} {kind}s wait, {held['bytes']} bytes")
    for reason, count in found["dropped"].items():
        click.echo(f"dropped so far: {count} {reason.replace('_', ' ')}")
    for one in found["refused"]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["timestamp"]))
        way = "from" if one["kind"] == "request" else "to"
        click.echo(f"set aside {when}: {one['kind']} of {one['bytes']} bytes {way} {one['link']}: {one['reason']}")
