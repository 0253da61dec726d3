"""`config`: what the agent would run with."""

import click

from agent.cli.context import State, as_json, pass_state, print_json


@click.group()
def config() -> None:
    """Show and check the configuration."""


@config.command()
@as_json
@pass_state
def show(state: State, as_json: bool) -> None:
    """Print every setting in effect."""
    import msgspec
    import yaml

    document = msgspec.to_builtins(state.config)
    print_json(document) if as_json else click.echo(yaml.safe_dump(document, sort_keys=False), nl=False)


@config.command()
@pass_state
def validate(state: State) -> None:
    """Check the configuration file, and the certificates that it names; exit 1 with the key's name if one is wrong."""
    from agent.config import find_config_file

    found = find_config_file(state.config_file)
    aws_iot = state.config.aws_iot
    if aws_iot.enabled:
        import datetime as dt

        from agent.cloud.identity import check_identity
        from agent.cloud.link import cloud_brokers

        cloud_brokers(aws_iot, state.config.thing_name)
        check_identity(aws_iot.certificates, dt.datetime.now(dt.UTC))
    click.echo(f"{found or 'built-in values'}: valid")
