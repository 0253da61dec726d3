"""`local-cloud`: a stand-in for AWS IoT Core on this machine, and what can be done to the one that runs in a folder."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from agent.cli.context import as_json, print_json

DEFAULT_PORT: Final = 8883
_FOLDER: Final = "local-cloud folder"


def _remember(context: click.Context, _: click.Parameter, folder: Path | None) -> None:
    if folder:
        context.meta[_FOLDER] = folder


with_dir: Final[Callable[..., Any]] = click.option(
    "--dir",
    type=click.Path(file_okay=False, path_type=Path),
    callback=_remember,
    expose_value=False,
    help="Folder of the local cloud.",
)


def _folder() -> Path:
    folder = click.get_current_context().meta.get(_FOLDER)
    if not isinstance(folder, Path):
        raise click.UsageError("Missing option '--dir'.")
    return folder


def _command(**given: Any) -> dict[str, Any]:
    from agent.local_cloud.control import command

    return command(_folder(), **given)


@click.group(invoke_without_command=True)
@with_dir
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="Port to serve.")
@click.option("--thing", "things", multiple=True, help="A device: its certificate, policy and config.yaml are made.")
@click.option("--client", "clients", multiple=True, help="An application that asks: the same, with its own policy.")
@click.option("--limit-connects", is_flag=True, help="Refuse a client id's second CONNECT within a second.")
@click.option(
    "--audit",
    "audited",
    type=click.Path(file_okay=False, path_type=Path),
    help="Data folder of the agent that connects: watch that it acknowledges no request before its answer.",
)
@click.pass_context
def local_cloud(
    context: click.Context,
    port: int,
    things: tuple[str, ...],
    clients: tuple[str, ...],
    limit_connects: bool,
    audited: Path | None,
) -> None:
    """Serve a stand-in for AWS IoT Core from a folder, until SIGTERM; `ready` is printed once it does."""
    if context.invoked_subcommand:
        return
    folder = _folder()
    import asyncio

    try:
        from agent.local_cloud.service import log_to, run
        from agent.protocol.limits import IOT_CORE
    except ModuleNotFoundError as error:
        from agent.errors import AgentError

        raise AgentError(
            f"{error.name} is not installed",
            hint="pip install 'arxplorer-agent[local-cloud]', and apt install mosquitto",
        ) from error
    log_to(folder)
    limits = IOT_CORE if limit_connects else IOT_CORE._replace(connects_per_s=0)
    asyncio.run(run(folder, port, things, clients, lambda: click.echo("ready"), limits, audited))


@local_cloud.group()
@with_dir
def shadow() -> None:
    """Read and change device shadows."""


thing_argument: Final = click.argument("thing")
name_option: Final = click.option("--name", default="", help="Name of the shadow; default: the classic one.")


def _ask_shadow(operation: str, thing: str, name: str, document: str = "") -> dict[str, Any]:
    from agent.errors import AgentError

    answer = _command(do="shadow", operation=operation, thing=thing, name=name, document=document)["answer"]
    if "code" in answer:
        raise AgentError(f"rejected: {answer['code']} {answer['message']}")
    return dict(answer)


@shadow.command(name="get")
@thing_argument
@name_option
@as_json
@with_dir
def get_shadow(thing: str, name: str, as_json: bool) -> None:  # noqa: ARG001  it prints JSON in any case
    """Print THING's shadow document as JSON; a section that it does not have is shown as empty."""
    answer = _ask_shadow("get", thing, name)
    answer["state"] = {"desired": {}, "reported": {}} | answer["state"]
    print_json(answer)


@shadow.command(name="update")
@thing_argument
@click.argument("document", metavar="JSON")
@name_option
@as_json
@with_dir
def update_shadow(thing: str, document: str, name: str, as_json: bool) -> None:  # noqa: ARG001  as above
    """Update THING's shadow with JSON, such as '{"state": {"desired": {"a": 1}}}'; - reads standard input."""
    print_json(_ask_shadow("update", thing, name, sys.stdin.read() if document == "-" else document))


@local_cloud.group()
@with_dir
def job() -> None:
    """Give devices jobs, as AWS IoT Jobs does, and see what became of them."""


job_argument: Final = click.argument("job_id", metavar="ID")
force_option: Final = click.option("--force", is_flag=True, help="Also one that the device is at.")


def _ask_job(operation: str, thing: str, **given: Any) -> dict[str, Any]:
    return dict(_command(do="job", operation=operation, thing=thing, **given)["answer"])


@job.command(name="create")
@thing_argument
@click.argument("document", metavar="JSON")
@click.option("--id", "job_id", help="Id of the job; default: one that nobody has.")
@click.option(
    "--timeout-minutes",
    type=click.FloatRange(0, 10080, min_open=True),
    help="Time the device has once it began; fractions, which IoT Core does not take, are for trying it out.",
)
@with_dir
def create_job(thing: str, document: str, job_id: str | None, timeout_minutes: float | None) -> None:
    """Give THING the job JSON, such as '{"operation": "agent.restart"}', and print its id; - reads standard input."""
    import json
    import uuid

    from agent.errors import AgentError

    try:
        asked = json.loads(sys.stdin.read() if document == "-" else document)
    except ValueError as error:
        raise AgentError(f"the job document is not valid JSON: {error}") from error
    job_id = job_id or f"job-{uuid.uuid4().hex[:12]}"
    click.echo(_ask_job("create", thing, id=job_id, document=asked, timeout_minutes=timeout_minutes)["jobId"])


@job.command(name="cancel")
@thing_argument
@job_argument
@force_option
@with_dir
def cancel_job(thing: str, job_id: str, force: bool) -> None:
    """Cancel job ID of THING."""
    _ask_job("cancel", thing, id=job_id, force=force)


@job.command(name="delete")
@thing_argument
@job_argument
@click.option("--force", is_flag=True, help="Also one that has not ended.")
@with_dir
def delete_job(thing: str, job_id: str, force: bool) -> None:
    """Delete job ID of THING."""
    _ask_job("delete", thing, id=job_id, force=force)


@job.command(name="get")
@thing_argument
@job_argument
@as_json
@with_dir
def get_job(thing: str, job_id: str, as_json: bool) -> None:  # noqa: ARG001  it prints JSON in any case
    """Print as JSON how job ID of THING stands."""
    print_json(_ask_job("get", thing, id=job_id))


@job.command(name="list")
@thing_argument
@as_json
@with_dir
def list_jobs(thing: str, as_json: bool) -> None:  # noqa: ARG001  as above
    """Print as JSON all jobs of THING, the oldest first."""
    print_json(_ask_job("list", thing))


@local_cloud.command()
@with_dir
def audit() -> None:
    """Print as JSON what --audit has found; `early` are requests that were acknowledged before their answers."""
    print_json(_command(do="audit"))


@local_cloud.group()
@with_dir
def fault() -> None:
    """Do to the clients' connections what a bad network or a busy service does."""


def _add_fault(name: str, text: str) -> None:
    @fault.command(name=name, help=text)
    @with_dir
    def put() -> None:
        _command(do="fault", fault=name)


for _name, _text in (
    ("cut", "End all connections at once; clients may come back."),
    ("freeze", "Let nothing through any more, on old connections or new ones, which stay open."),
    ("refuse", "End all connections and refuse new ones."),
    ("throttle", "Answer connects, publishes and subscriptions with 0x97, quota exceeded."),
    ("drop-puback", "Let publishes through, and their PUBACKs not."),
    ("deaf", "Deliver no message; let everything else go well."),
    ("duplicate", "Deliver every message of QoS 1 twice, as two messages."),
    ("reorder", "Of every two messages of QoS 1 deliver the second one first."),
    ("clear", "End every fault."),
):
    _add_fault(_name, _text)


@fault.command()
@click.argument("milliseconds", type=click.FloatRange(0, 60_000))
@with_dir
def delay(milliseconds: float) -> None:
    """Let everything wait for MILLISECONDS, in both directions."""
    _command(do="fault", fault="delay", milliseconds=milliseconds)
