"""What of a repository's metadata is believed: python-tuf's client with our transport, clock and durability.

TUF's client does the work of the specification's section 5.3. Added here: each refusal is given the name of the attack
that it may be, versions may not leap, and a clock that was never set does not decide.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.errors import RepositoryError
from agent.paths import write_file
from agent.repository.download import ARBITRARY, ENDLESS
from agent.repository.framework import (
    DeserializationError,
    FetcherInterface,
    Metadata,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Timestamp,
    Updater,
    tuf_errors,
)
from agent.repository.transport import MissingError, Transport
from agent.store.moment import PLAUSIBLE_S

MAX_LEAP: Final = 1_000_000
"""Versions rise by one each time something is signed, once a minute for two years. Who has stolen a key and leaps to
the highest number there is would shut out everything that its owner signs later."""
LAST_TRUSTED: Final = "last-trusted"
ROLES: Final = ("root", "timestamp", "snapshot", "targets")

FAST_FORWARD: Final = "fast-forward"
FREEZE: Final = "freeze"
MIX_AND_MATCH: Final = "mix-and-match"
ROLLBACK: Final = "rollback"
WRONG_KEYS: Final = "wrong keys"


class TrustedTime:
    """The time against which metadata expires: the wall clock's, or where that was never set, the last trusted one.

    That is the wall clock's at the last successful refresh. It can be ahead by no more than signatures hold, since
    metadata that seem to have expired are refused; and the next refresh by a clock that was set puts it right.
    """

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._file: Final = folder / LAST_TRUSTED
        self._wall_s: Final = clock()

    @property
    def unset(self) -> bool:
        return self._wall_s < PLAUSIBLE_S

    @property
    def now(self) -> datetime:
        return max(_utc(PLAUSIBLE_S), self._last()) if self.unset else _utc(self._wall_s)

    @property
    def problem(self) -> str | None:
        """What to report of the clock."""
        if not self.unset:
            return None
        wall = f"the clock says {_utc(self._wall_s):%Y-%m-%d}, before this program was built"
        return f"{wall}: the last trusted time counts, {self}"

    def __str__(self) -> str:
        return f"{self.now:%Y-%m-%d %H:%M} UTC"

    def keep(self) -> None:
        """After a refresh that succeeded."""
        if not self.unset:
            write_file(self._file, f"{self._wall_s:.0f}\n".encode())

    def _last(self) -> datetime:
        with suppress(OSError, ValueError, OverflowError):
            return _utc(int(self._file.read_text("ascii")))
        return _utc(0.0)


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class _Fetcher(FetcherInterface):
    def __init__(self, transport: Transport) -> None:
        self._transport: Final = transport

    def _fetch(self, url: str) -> Iterator[bytes]:
        """By path, for the base that the client knows is empty."""
        try:
            with self._transport.open(url) as stream:
                while block := stream.read(1 << 16):
                    yield block
        except MissingError as error:
            raise tuf_errors.DownloadHTTPError(error.message, 404) from error


class _Client(Updater):
    """TUF's client, step by step, so that a refusal says at which one it was."""

    def __init__(self, folder: Path, transport: Transport, now: datetime, root: bytes, given: bytes | None) -> None:
        self._given: Final = Metadata[Root].from_bytes(given) if given else None
        self.step = "root"
        super().__init__(str(folder), "metadata/", fetcher=_Fetcher(transport), bootstrap=root)
        self._trusted_set.reference_time = now

    @property
    def targets(self) -> dict[str, TargetFile]:
        return self._trusted_set.targets.targets

    @property
    def root(self) -> Root:
        return self._trusted_set.root

    def expired(self) -> str | None:
        """Which metadata have expired, and when."""
        for role in ROLES:
            signed = self._trusted_set.get(role)
            if signed and signed.is_expired(self._trusted_set.reference_time):
                return f"{role} metadata, version {signed.version}, expired on {signed.expires:%Y-%m-%d %H:%M} UTC"
        return None

    def download(self, path: str, limit: int) -> bytes:
        """Raises RepositoryError, and tuf's DownloadError."""
        content: bytes = self._fetcher.download_bytes(path, limit)
        return content

    def _load_root(self) -> None:
        self.step = "root"
        super()._load_root()
        if self._given and not self._chains(self._given):
            raise RepositoryError(
                f"the root.json given, version {self._given.signed.version}, is not of the keys that are trusted here "
                f"already, version {self.root.version}",
                attack=WRONG_KEYS,
                hint=f"to trust it from now on, remove {self._dir}",
            )

    def _chains(self, given: Metadata[Root]) -> bool:
        """Whether it is one of those that led to what is trusted, or the next one."""
        with suppress(ValueError, tuf_errors.RepositoryError, tuf_errors.DownloadError):
            if given.signed.version == self.root.version + 1:
                self._trusted_set.update_root(given.to_bytes())
                self._persist_root(given.signed.version, given.to_bytes())
                super()._load_root()
                return True
            while given.signed.version <= self.root.version:
                if kept := self._kept_root(given.signed.version):
                    return kept.signed_bytes == given.signed_bytes
                # Older than the first that was trusted here.
                content = self._download_metadata("root", self.config.root_max_length, given.signed.version + 1)
                following = Metadata[Root].from_bytes(content)
                given.signed.verify_delegate("root", following.signed_bytes, following.signatures)
                given = following
        return False

    def _kept_root(self, version: int) -> Metadata[Root] | None:
        with suppress(OSError, tuf_errors.RepositoryError):
            return Metadata[Root].from_bytes(Path(self._dir, "root_history", f"{version}.root.json").read_bytes())
        return None

    def _load_timestamp(self) -> None:
        self.step = "timestamp"
        super()._load_timestamp()

    def _load_snapshot(self) -> None:
        self.step = "snapshot"
        super()._load_snapshot()

    def _load_targets(self, role: str, parent_role: str) -> Any:
        self.step = "targets"
        return super()._load_targets(role, parent_role)

    def _persist_metadata(self, rolename: str, data: bytes) -> None:
        """Called with what was verified, before it is kept, after which anything lower would be a rollback."""
        former = self._former(rolename)
        for name, version in _versions(Metadata.from_bytes(data).signed).items():
            if version - former.get(name, 0) > MAX_LEAP:
                raise RepositoryError(
                    f"{name} leaps from version {former.get(name, 0)} to {version}, which nobody has published in "
                    f"between; at most {MAX_LEAP} are believed",
                    attack=FAST_FORWARD,
                    hint="the publisher has to rotate the keys of timestamp, snapshot and targets",
                )
        super()._persist_metadata(rolename, data)

    def _former(self, role: str) -> dict[str, int]:
        """Versions that were trusted before, if the keys that signed them still are."""
        with suppress(OSError, ValueError, tuf_errors.RepositoryError):
            former: Metadata[Any] = Metadata.from_bytes(self._load_local_metadata(role))
            self.root.verify_delegate(role, former.signed_bytes, former.signatures)
            return _versions(former.signed)
        return {}

    def _persist_file(self, filename: str, data: bytes) -> None:
        """Durably, as a device loses its power often; and without need not at all, as its card wears."""
        path = Path(filename)
        if not path.is_file() or path.read_bytes() != data:
            write_file(path, data)

    def _update_root_symlink(self) -> None:
        """Of no use here, and for a moment it would not be there: `stored_root` finds the newest."""


def _versions(signed: Signed) -> dict[str, int]:
    found = {f"{signed.type}.json": signed.version}
    if isinstance(signed, Timestamp):
        found["snapshot.json"] = signed.snapshot_meta.version
    elif isinstance(signed, Snapshot):
        found |= {name: meta.version for name, meta in signed.meta.items()}
    return found


def stored_root(folder: Path) -> bytes | None:
    """The newest root metadata that this device has come to trust."""
    versions = (path.name.split(".")[0] for path in folder.glob("root_history/*.root.json"))
    for version in sorted((int(name) for name in versions if name.isdecimal()), reverse=True):
        with suppress(OSError, ValueError, tuf_errors.RepositoryError):
            content = (folder / "root_history" / f"{version}.root.json").read_bytes()
            root = Metadata[Root].from_bytes(content)
            root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
            return content
    return None


class Trusted:
    """What the repository vouches for, as this device has verified it."""

    def __init__(self, client: _Client) -> None:
        self._client: Final = client
        self.targets: Final = client.targets
        """The files by their paths."""

    def download(self, target: TargetFile, limit: int) -> bytes:
        """A whole file, at most so long. Raises RepositoryError."""
        path = f"targets/{target.get_prefixed_paths()[0]}"
        if target.length > limit:
            raise RepositoryError(f"{path} has {target.length} bytes, expected at most {limit}", attack=ENDLESS)
        try:
            content = self._client.download(path, target.length)
            target.verify_length_and_hashes(content)
        except tuf_errors.DownloadLengthMismatchError as error:
            raise RepositoryError(f"{path} does not end after {target.length} bytes", attack=ENDLESS) from error
        except tuf_errors.LengthOrHashMismatchError as error:
            raise RepositoryError(f"{path} is not the file that was signed: {error}", attack=ARBITRARY) from error
        except tuf_errors.DownloadError as error:
            raise RepositoryError(f"{path} cannot be fetched: {error}") from error
        return content


def refreshed(folder: Path, transport: Transport, *, given: bytes | None, time: TrustedTime) -> Trusted:
    """Take over what the repository has signed meanwhile. `folder` keeps what is trusted. Raises RepositoryError."""
    folder.mkdir(parents=True, exist_ok=True)
    root = stored_root(folder) or given
    if root is None:
        raise RepositoryError(
            f"no keys are trusted yet, so nothing from {transport.url} can be",
            hint="give the publisher's root.json: corpus install --trust FILE, or corpus.trust in config.yaml",
        )
    try:
        client = _Client(folder, transport, time.now, root, given)
    except (ValueError, tuf_errors.RepositoryError) as error:
        raise RepositoryError(
            f"the root.json given is none: {error}", hint="the publisher has it from corpus keys"
        ) from error
    try:
        client.refresh()
    except (ValueError, tuf_errors.RepositoryError, tuf_errors.DownloadError) as error:
        raise _refusal(client, error, transport.url, time) from error
    time.keep()
    return Trusted(client)


class _Refusal(NamedTuple):
    found: type[Exception]
    attack: str | None
    says: str
    hint: str | None


_REFUSALS: Final = (
    _Refusal(tuf_errors.DownloadLengthMismatchError, ENDLESS, "does not end where it should", None),
    _Refusal(tuf_errors.DownloadError, None, "cannot be fetched", "is this what corpus publish wrote, and all of it?"),
    _Refusal(tuf_errors.ExpiredMetadataError, FREEZE, "has expired", "corpus publish --refresh; is the clock right?"),
    _Refusal(
        tuf_errors.UnsignedMetadataError,
        WRONG_KEYS,
        "is not signed by the keys trusted here",
        "another repository, or its keys were lost: then trust its new root.json",
    ),
    _Refusal(tuf_errors.LengthOrHashMismatchError, MIX_AND_MATCH, "does not belong to the rest", None),
    _Refusal(
        tuf_errors.BadVersionNumberError, ROLLBACK, "is older than what was trusted before", "find a newer copy of it"
    ),
    _Refusal(DeserializationError, ARBITRARY, "is none", "does the network want a log-in first?"),
    _Refusal(Exception, MIX_AND_MATCH, "is not what belongs here", None),
)
"""What tuf may find, the more special first; the name that it gets here, and what to do."""


def _refusal(client: _Client, error: Exception, url: str, time: TrustedTime) -> RepositoryError:
    """Name what was refused."""
    refusal = next(refusal for refusal in _REFUSALS if isinstance(error, refusal.found))
    details = f"{client.expired() or error}, and it is {time}" if refusal.attack == FREEZE else str(error)
    return RepositoryError(
        f"{url}: {client.step} metadata {refusal.says}: {details}", attack=refusal.attack, hint=refusal.hint
    )
