"""`corpus keys` and `corpus publish`: the publisher's side of a signed repository."""

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.context import as_json, print_json

if TYPE_CHECKING:
    from agent.repository.framework import Root

_folder = click.Path(file_okay=False, path_type=Path)
_existing = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("folder", type=_folder)
@click.option("--root-keys", type=click.IntRange(1, 10), default=1, show_default=True, help="Root keys to make; any one of them suffices, the others are spares.")  # fmt: skip  # noqa: E501
@click.option("--rotate", type=click.Choice(["root", "targets", "snapshot", "timestamp"]), help="Make a new key for a role in place of the one it has.")  # fmt: skip  # noqa: E501
@click.option("--repository", type=_existing, help="With --rotate: let it take effect there at once; else the next publication does.")  # fmt: skip  # noqa: E501
@as_json
def keys(folder: Path, root_keys: int, rotate: str | None, repository: Path | None, as_json: bool) -> None:
    """Make the keys of a signed repository in FOLDER, or rotate one; show what is there. Nothing is written over."""
    if repository and not rotate:
        raise click.UsageError("--repository goes with --rotate")
    from agent.repository.keys import make_keys, rotate_key
    from agent.repository.publishing import bring_up_to_date

    if rotate:
        root = rotate_key(folder, rotate, clock=time.time)  # type: ignore[arg-type]  # click has checked it
        if repository:
            bring_up_to_date(repository, folder, clock=time.time)
    else:
        root = make_keys(folder, clock=time.time, root_keys=root_keys)
    _show_keys(folder, root, as_json=as_json)


def _show_keys(folder: Path, root: "Root", *, as_json: bool) -> None:
    from agent.repository.keys import KEYID_DIGITS

    if as_json:
        ids = {role: list(found.keyids) for role, found in root.roles.items()}
        print_json(
            {"version": root.version, "expires": _day(root.expires), "keys": ids, "root": str(folder / "root.json")}
        )
        return
    for role, found in root.roles.items():
        for keyid in found.keyids:
            click.echo(f"{role:9} {keyid}  {folder / f'{role}-{keyid[:KEYID_DIGITS]}.pem'}")
    click.echo(f"for devices: {folder / 'root.json'}, version {root.version}, which expires on {_day(root.expires)}")
    click.echo(
        "Keep the key of root on a stick in a drawer, that of targets away from the web server, and copies of both."
    )


@click.command()
@click.argument("repository", metavar="DIR", type=_folder)
@click.option("--keys", "keys", required=True, type=_existing, help="Folder of the keys (corpus keys).")
@click.option("--pack", type=_existing, help="Folder that corpus pack wrote.")
@click.option("--channel", default="stable", show_default=True, help="Channel to publish the pack in.")
@click.option("--refresh", is_flag=True, help="Only sign anew what is there, before it expires.")
@click.option("--withdraw", metavar="CHANNEL/VERSION", help="Offer a version no longer, and remove its files.")
@click.option("--expires-days", type=click.FloatRange(0, 3650, min_open=True), help="How long devices take what is signed now. Default: 180; docs/repository.md says why.")  # fmt: skip  # noqa: E501
@as_json
def publish(
    repository: Path,
    keys: Path,
    pack: Path | None,
    channel: str,
    refresh: bool,
    withdraw: str | None,
    expires_days: float | None,
    as_json: bool,
) -> None:
    """Add a pack to the signed repository in DIR, a folder for any web server or stick."""
    if bool(pack) + refresh + bool(withdraw) != 1:
        raise click.UsageError("give one of --pack, --refresh and --withdraw")
    import msgspec

    from agent.repository import publishing

    days = expires_days or publishing.ONLINE_DAYS
    done: dict[str, Any] = {}
    if pack:
        release, expiry = publishing.publish(repository, pack, keys, clock=time.time, channel=channel, days=days)
        done["published"] = msgspec.to_builtins(release)
        said = f"{release} published in {repository}: number {release.number}, {release.bytes} bytes\n"
    elif withdraw:
        name, _, version = withdraw.partition("/")
        gone, expiry = publishing.withdraw(repository, keys, name, version, clock=time.time, days=days)
        done["withdrawn"] = gone
        said = f"{gone} packs withdrawn\n"
    else:
        expiry = publishing.bring_up_to_date(repository, keys, clock=time.time, days=days)
        said = ""
    if as_json:
        print_json({**done, "expires": {role: _day(when) for role, when in expiry._asdict().items()}})
    else:
        click.echo(f"{said}devices take it until {_day(min(expiry))}; sign it anew before, with --refresh")


def _day(when: datetime) -> str:
    return f"{when:%Y-%m-%d}"
