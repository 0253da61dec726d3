"""`health`: whether the agent lives."""

import click

from agent.cli.context import State, as_json, pass_state, print_json


@click.command()
@as_json
@pass_state
def health(state: State, as_json: bool) -> None:
    """Say whether the agent of this data folder is alive; exit 1 if not. For a container's health check.

    Reads a file that the agent renews while it answers. No client is started and nothing is asked.
    """
    from agent.device.heartbeat import seconds_since_beat
    from agent.errors import NotReadyError

    try:
        age = seconds_since_beat(state.config.data_dir)
    except NotReadyError as error:
        if as_json:
            print_json({"alive": False, "reason": error.message})
        raise
    if as_json:
        print_json({"alive": True, "seen_s_ago": round(age, 1)})
    else:
        click.echo(f"alive, seen {age:.0f} s ago")
