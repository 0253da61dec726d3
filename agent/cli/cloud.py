"""`cloud`: set this device up at AWS IoT Core, and print what it must be allowed there."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agent.cli.context import State, as_json, pass_state, print_json

if TYPE_CHECKING:
    from agent.cloud.setup.calls import Calls
    from agent.cloud.setup.device import Device
    from agent.cloud.setup.device_files import DeviceFiles
    from agent.cloud.setup.provisioning import Outcome

TEST_TIMEOUT_S: Final = 45.0
_THING_NAME: Final = re.compile(r"[a-zA-Z0-9:_-]{1,128}")


def _thing_name(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _THING_NAME.fullmatch(value):
        raise click.BadParameter("letters, digits, ':', '_' and '-', at most 128")
    return value


@click.group()
def cloud() -> None:
    """Set this device up at AWS IoT Core, and show what it must be allowed there."""


@cloud.command()
@click.option("--thing-name", callback=_thing_name, help="Name of this device. Default: the configured one.")
@click.option("--region", help="AWS region. Default: that of the AWS settings (AWS_REGION, profile).")
@click.option(
    "--certs-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of key and certificates. Default: the configured files, certs/ beside config.yaml.",
)
@click.option("--renew", is_flag=True, help="New key and certificate; the old is retired once the new connects.")
@click.option("--no-test", is_flag=True, help="Do not connect at the end. The test takes the name's connection over.")
@click.option(
    "--timeout", type=click.FloatRange(1, 600), default=TEST_TIMEOUT_S, show_default=True, help="Seconds of the test."
)
@click.option("--dry-run", is_flag=True, help="Print each call and file, as for an empty account; make none.")
@as_json
@pass_state
def setup(
    state: State,
    thing_name: str | None,
    region: str | None,
    certs_dir: Path | None,
    renew: bool,
    no_test: bool,
    timeout: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make thing, key, certificate and policy, write config.yaml, and test the connection.

    What is there already is kept: run it again to repair what is missing. An agent that runs under this name is
    disconnected for a moment by the test, and comes back by itself.
    """
    if renew and no_test:
        raise click.UsageError("--renew needs the test: the old certificate is retired only once the new one connects")
    from agent.cloud.setup.calls import Plan
    from agent.cloud.setup.check import check_link
    from agent.cloud.setup.device import Device
    from agent.cloud.setup.device_files import Disk, NoDisk
    from agent.cloud.setup.provisioning import SetUp
    from agent.config import load_config

    device = Device(state.config_file, data_dir=state.data_dir, thing_name=thing_name, certs_dir=certs_dir)
    planned: list[str] = []
    account: Calls = Plan(region, planned.append) if dry_run else _account(region)
    disk = NoDisk(planned.append) if dry_run else Disk()
    set_up = SetUp(
        account, disk, device.thing_name, device.config.aws_iot, _quiet if as_json or dry_run else click.echo
    )

    def write_config(endpoint: str) -> bool:
        return device.write_config(disk, account.region, endpoint)

    def test(files: "DeviceFiles | None" = None) -> None:
        if no_test:
            return
        if dry_run:
            planned.append(f"connect to ENDPOINT as {device.thing_name}")
        else:
            check_link(load_config(device.config_file), timeout, files)

    if renew:
        device.need_certificate()
        outcome = set_up.renew(device.files, write_config, test)
    else:
        outcome = set_up.run(device.files, write_config)
        test()
    if not dry_run:
        _show(outcome, device, tested=not no_test, renewed=renew, as_json=as_json)
    elif as_json:
        print_json({"planned": planned})
    else:
        click.echo("\n".join(planned))


def _account(region: str | None) -> "Calls":
    try:
        from agent.cloud.setup.account import Account
    except ModuleNotFoundError as error:
        from agent.errors import AgentError

        raise AgentError(f"{error.name} is not installed", hint="pip install 'arxplorer-agent[aws]'") from error
    return Account(region)


def _quiet(_: str) -> None:
    """Say nothing: what is printed is the result."""


def _show(outcome: "Outcome", device: "Device", *, tested: bool, renewed: bool, as_json: bool) -> None:
    if as_json:
        files = {name: str(path) for name, path in device.files._asdict().items()}
        shown = {"config_file": str(device.config_file), "certificates": files, "tested": tested}
        print_json(outcome._asdict() | shown)
        return
    if not outcome.changes:
        click.echo("everything was there")
    for other in outcome.others:
        click.echo(f"certificate {other} is attached to the thing too; --renew retires it, if nothing uses it any more")
    state = "connected to" if tested else "set up, not tested:"
    click.echo(f"{outcome.thing_name}: {state} {outcome.endpoint}; configuration in {device.config_file}")
    if renewed:
        click.echo("an agent that runs must be started anew: its old certificate is no longer good")


@cloud.command()
@click.option("--region", help="AWS region. Default: aws_iot.region.")
@click.option("--account", help="Number of the AWS account, twelve digits.")
@click.option("--client", is_flag=True, help="For an application that asks agents, not for an agent.")
@pass_state
def policy(state: State, region: str | None, account: str | None, client: bool) -> None:
    """Print the IoT policy, as JSON, that allows the least an agent needs with the configured topics."""
    import json

    from agent.cloud.policy import ACCOUNT, THING_VARIABLE, agent_policy, client_policy, partition_of, policy_text
    from agent.protocol.topics import AgentTopics

    link = state.config.aws_iot
    region = region or link.region
    if account is not None and not re.fullmatch(r"\d{12}", account):
        raise click.BadParameter("twelve digits", param_hint="--account")
    where: dict[str, Any] = {"region": region, "account": account or ACCOUNT, "partition": partition_of(region)}
    topics = AgentTopics.of(link.topics, THING_VARIABLE)
    document = client_policy(topics, **where) if client else agent_policy(topics, link.share_group, **where)
    policy_text(document)  # refuses one that AWS would not take
    click.echo(json.dumps(document, indent=2))
    if not account:
        click.echo(f"{ACCOUNT} stands for the number of your account: --account puts it in", err=True)
