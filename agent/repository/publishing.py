"""Write a repository: a folder of files that never change, and one, timestamp.json, that says which of them count.

    DIR/parts/SHA256                                          the parts of all packs, by their contents
    DIR/targets/CHANNEL/VERSION/CONTENTS/SHA256.manifest.json
    DIR/metadata/N.root.json, N.targets.json, N.snapshot.json, timestamp.json

Everything is in place before timestamp.json, by one rename, makes it count; so a reader at any moment, or after the
publisher was killed, finds the former state or the new one. New root metadata comes last: what it makes count has been
signed by the former keys and by the new ones.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec

from agent.crash_points import crash_point
from agent.errors import PackError, RepositoryError
from agent.paths import sync_folder, write_file
from agent.protocol.pack_manifest import MANIFEST, MAX_MANIFEST_BYTES, PackManifest, Part, parse_pack_manifest
from agent.repository.framework import (
    CryptoSigner,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
    tuf_errors,
)
from agent.repository.keys import Clock, expiry, missing_key, read_keys, read_roots
from agent.repository.releases import Release, release_of

ONLINE_DAYS: Final = 180
"""How long snapshot and timestamp hold: so old may a stick be, and so rarely may a publisher sign again. As long may an
old state be passed off as the newest, which for papers is no harm."""
TARGETS_DAYS: Final = 365
"""Signed with each publication; a repository that has published nothing for a year takes the key out for it."""
KEPT_VERSIONS: Final = 32
"""Of targets and snapshot: a slow reader that has an old timestamp still finds what belongs to it."""
BLOCK_BYTES: Final = 1024 * 1024

Signable = TypeVar("Signable", Targets, Snapshot, Timestamp)


class _State(NamedTuple):
    """What a repository holds; the metadata are None in a new one."""

    roots: list[Metadata[Root]]
    targets: Metadata[Targets] | None
    snapshot: Metadata[Snapshot] | None
    timestamp: Metadata[Timestamp] | None

    @property
    def offered(self) -> dict[str, TargetFile]:
        return dict(self.targets.signed.targets) if self.targets else {}


class Expiry(NamedTuple):
    """When devices begin to refuse the repository, by role, if it is not signed again."""

    root: datetime
    targets: datetime
    timestamp: datetime


def publish(
    repository: Path, pack: Path, keys: Path, *, clock: Clock, channel: str = "stable", days: float = ONLINE_DAYS
) -> tuple[Release, Expiry]:
    """Add a pack, the folder that `corpus pack` wrote; one that is there already stays as it is.

    Raises RepositoryError, as for a version that is there with other contents, and PackError. Nothing changes then.
    """
    document, manifest = _read_manifest(pack)
    with _locked(repository):
        state = _read(repository)
        number = state.targets.signed.version + 1 if state.targets else 1
        release = release_of(manifest, channel, number)
        target = TargetFile.from_data(release.target, document)
        target.unrecognized_fields["custom"] = msgspec.to_builtins(release)
        offered = state.offered
        if (there := _same(offered, release, target)) is None:
            for part in manifest.parts:
                _copy_part(pack / part.name, repository / "parts", part)
            sync_folder(repository / "parts")
            crash_point("publishing.publish:parts-alone")
            path = repository / "targets" / target.get_prefixed_paths()[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, document)
            for folder in path.parents[1:4]:
                sync_folder(folder)
            crash_point("publishing.publish:manifest-alone")
            offered[target.path] = target
        expires = _commit(repository, keys, state, None if there else offered, clock, days)
        return there or release, expires


def bring_up_to_date(repository: Path, keys: Path, *, clock: Clock, days: float = ONLINE_DAYS) -> Expiry:
    """Sign timestamp and snapshot again, and let new root metadata take effect. Raises RepositoryError."""
    with _locked(repository):
        state = _read(repository)
        if state.targets is None:
            raise RepositoryError(f"{repository} holds no repository yet", hint="corpus publish DIR --pack PACK")
        return _commit(repository, keys, state, None, clock, days)


def withdraw(
    repository: Path, keys: Path, channel: str, version: str, *, clock: Clock, days: float = ONLINE_DAYS
) -> tuple[int, Expiry]:
    """Offer a version no longer, and remove the parts that no other one has; how many packs that were."""
    with _locked(repository):
        state = _read(repository)
        offered = state.offered
        leaving = [path for path in offered if path.startswith(f"{channel}/{version}/")]
        if not leaving:
            there = sorted({"/".join(path.split("/")[:2]) for path in offered})
            raise RepositoryError(f"no {channel}/{version} in {repository}; it has: {', '.join(there) or 'nothing'}")
        gone = [offered.pop(path) for path in leaving]
        expires = _commit(repository, keys, state, offered, clock, days)
        crash_point("publishing.withdraw:files-left")
        kept = {part.sha256 for target in offered.values() for part in _manifest_of(repository, target).parts}
        for target in gone:
            (repository / "targets" / target.get_prefixed_paths()[0]).unlink(missing_ok=True)
        for path in (repository / "parts").iterdir():
            if path.name not in kept:
                path.unlink()
        return len(gone), expires


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """One publisher at a time."""
    for folder in ("parts", "targets", "metadata"):
        (repository / folder).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise RepositoryError(f"another process is publishing in {repository}") from error
    finally:
        os.close(descriptor)


def _read_manifest(pack: Path) -> tuple[bytes, PackManifest]:
    try:
        with (pack / MANIFEST).open("rb") as file:
            document = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise PackError(
            f"{pack} is no pack: {MANIFEST}: {error.strerror}", hint="arxplorer-agent corpus pack"
        ) from error
    return document, parse_pack_manifest(document, where=str(pack / MANIFEST))


def _manifest_of(repository: Path, target: TargetFile) -> PackManifest:
    path = repository / "targets" / target.get_prefixed_paths()[0]
    try:
        return parse_pack_manifest(path.read_bytes(), where=str(path))
    except OSError as error:
        raise RepositoryError(f"{path} is gone, though it is published: {error.strerror}") from error


def _same(offered: dict[str, TargetFile], release: Release, target: TargetFile) -> Release | None:
    """The release that this pack is already. Raises RepositoryError where it contradicts one that is there."""
    for path, other in offered.items():
        there = msgspec.convert(other.custom, Release)
        alike = (there.channel, there.version, there.model, there.categories) == (
            release.channel,
            release.version,
            release.model,
            release.categories,
        )
        if path == target.path and other.hashes == target.hashes:
            return there
        if path == target.path or (alike and there.contents != release.contents):
            how = "packed in another way" if path == target.path else "with other contents"
            raise RepositoryError(
                f"{release} is published already, {how}",
                hint="give the pack a version of its own, or take the published one back with --withdraw",
            )
    return None


def _copy_part(source: Path, parts: Path, part: Part) -> None:
    """Put a part where its contents say, verified on the way."""
    target = parts / part.sha256
    if target.exists() and _digest(target) == part.sha256:
        return
    beside = parts / f".{part.sha256}.tmp"
    try:
        with source.open("rb") as reading, beside.open("wb") as writing:
            digest, copied = hashlib.sha256(), 0
            while block := reading.read(BLOCK_BYTES):
                digest.update(block)
                copied += writing.write(block)
            writing.flush()
            os.fsync(writing.fileno())
        if (copied, digest.hexdigest()) != (part.bytes, part.sha256):
            raise PackError(
                f"{source} has {copied} bytes and SHA-256 {digest.hexdigest()}, "
                f"but the pack's manifest says {part.bytes} and {part.sha256}"
            )
        crash_point("publishing.copy:before-rename")
        beside.replace(target)
    except OSError as error:
        raise RepositoryError(f"{source} cannot be copied to {target}: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(repository: Path) -> _State:
    """What is there, with its signatures verified: a publisher must not vouch for what somebody else has put there."""
    metadata = repository / "metadata"
    roots = read_roots(metadata)
    if not roots or not (metadata / "timestamp.json").exists():
        return _State(roots, None, None, None)
    root = roots[-1].signed
    try:
        timestamp = Metadata[Timestamp].from_bytes((metadata / "timestamp.json").read_bytes())
        root.verify_delegate("timestamp", timestamp.signed_bytes, timestamp.signatures)
        of_snapshot = timestamp.signed.snapshot_meta
        content = (metadata / f"{of_snapshot.version}.snapshot.json").read_bytes()
        of_snapshot.verify_length_and_hashes(content)
        snapshot = Metadata[Snapshot].from_bytes(content)
        of_targets = snapshot.signed.meta["targets.json"]
        content = (metadata / f"{of_targets.version}.targets.json").read_bytes()
        of_targets.verify_length_and_hashes(content)
        targets = Metadata[Targets].from_bytes(content)
        root.verify_delegate("snapshot", snapshot.signed_bytes, snapshot.signatures)
        root.verify_delegate("targets", targets.signed_bytes, targets.signatures)
    except (OSError, ValueError, KeyError, tuf_errors.RepositoryError) as error:
        raise RepositoryError(f"{metadata} is damaged, or was signed by other keys: {error}") from error
    return _State(roots, targets, snapshot, timestamp)


def _commit(
    repository: Path, keys: Path, state: _State, offered: dict[str, TargetFile] | None, clock: Clock, days: float
) -> Expiry:
    """Sign what is offered now, None: what was offered before; and let it count."""
    roots = _roots(repository, keys, state.roots)
    new_root, old_root = roots[-1].signed, (state.roots or roots)[-1].signed
    signing = _Signing(keys, read_keys(keys), new_root, old_root)
    metadata = repository / "metadata"
    if not state.timestamp:
        _write_roots(metadata, roots, state.roots)
    targets = state.targets
    if targets is None or offered is not None or signing.needed(targets, clock):
        fresh = Targets(
            version=targets.signed.version + 1 if targets else 1,
            expires=expiry(TARGETS_DAYS, clock),
            targets=state.offered if offered is None else offered,
        )
        targets = signing.sign("targets", fresh)
        write_file(metadata / f"{fresh.version}.targets.json", targets.to_bytes())
        crash_point("publishing.commit:targets-alone")
        meta = MetaFile.from_data(fresh.version, targets.to_bytes(), ["sha256"])
    elif state.snapshot is None:
        raise RepositoryError(f"{metadata} has targets and no snapshot")
    else:
        meta = state.snapshot.signed.meta["targets.json"]
    snapshot = signing.sign(
        "snapshot",
        Snapshot(
            version=state.snapshot.signed.version + 1 if state.snapshot else 1,
            expires=expiry(days, clock),
            meta={"targets.json": meta},
        ),
    )
    write_file(metadata / f"{snapshot.signed.version}.snapshot.json", snapshot.to_bytes())
    crash_point("publishing.commit:no-timestamp")
    timestamp = signing.sign(
        "timestamp",
        Timestamp(
            version=state.timestamp.signed.version + 1 if state.timestamp else 1,
            expires=expiry(days, clock),
            snapshot_meta=MetaFile.from_data(snapshot.signed.version, snapshot.to_bytes(), ["sha256"]),
        ),
    )
    write_file(metadata / "timestamp.json", timestamp.to_bytes())
    crash_point("publishing.commit:no-new-root")
    _write_roots(metadata, roots, state.roots)
    _prune(metadata)
    return Expiry(new_root.expires, targets.signed.expires, timestamp.signed.expires)


class _Signing:
    """The keys at hand, and which of them devices expect, be they at the former root metadata or the newest."""

    def __init__(self, folder: Path, held: dict[str, CryptoSigner], new: Root, old: Root) -> None:
        self._folder: Final = folder
        self._held: Final = held
        self._new: Final = new
        self._old: Final = old

    def needed(self, targets: Metadata[Targets], clock: Clock) -> bool:
        """Whether targets must be signed again though nothing else is offered, or may as well, its key being here."""
        try:
            self._new.verify_delegate("targets", targets.signed_bytes, targets.signatures)
        except tuf_errors.UnsignedMetadataError:
            return True
        half_gone = targets.signed.expires < expiry(TARGETS_DAYS / 2, clock)
        return half_gone and any(keyid in self._held for keyid in self._new.roles["targets"].keyids)

    def sign(self, role: str, signed: Signable) -> Metadata[Signable]:
        """Raises RepositoryError where the key is not here."""
        metadata = Metadata(signed)
        for keyid in dict.fromkeys([*self._new.roles[role].keyids, *self._old.roles[role].keyids]):
            if keyid in self._held:
                metadata.sign(self._held[keyid], append=True)
        try:
            self._new.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except tuf_errors.UnsignedMetadataError as error:
            raise missing_key(role, self._new, self._folder) from error
        return metadata


def _roots(repository: Path, keys: Path, there: list[Metadata[Root]]) -> list[Metadata[Root]]:
    """All root metadata: the repository's, and newer ones of the folder of keys."""
    ours = read_roots(keys)
    theirs = {root.signed.version: root for root in there}
    for root in ours:
        if theirs.setdefault(root.signed.version, root).signed_bytes != root.signed_bytes:
            raise RepositoryError(f"the keys in {keys} are not those of the repository {repository}")
    if not theirs:
        raise RepositoryError(f"{keys} holds no keys", hint=f"arxplorer-agent corpus keys {keys}")
    merged = [theirs[version] for version in sorted(theirs)]
    for former, root in pairwise(merged):
        try:
            former.signed.verify_delegate("root", root.signed_bytes, root.signatures)
        except (ValueError, tuf_errors.RepositoryError) as error:
            raise RepositoryError(f"the keys in {keys} are not those of the repository {repository}") from error
    return merged


def _write_roots(metadata: Path, roots: list[Metadata[Root]], there: list[Metadata[Root]]) -> None:
    known = {root.signed.version for root in there}
    for root in roots:
        path = metadata / f"{root.signed.version}.root.json"
        if root.signed.version not in known and not path.exists():
            write_file(path, root.to_bytes())
            crash_point("publishing.roots:between")


def _prune(metadata: Path) -> None:
    for role in ("targets", "snapshot"):
        found = sorted(int(path.name.split(".")[0]) for path in metadata.glob(f"[0-9]*.{role}.json"))
        for version in found[:-KEPT_VERSIONS]:
            (metadata / f"{version}.{role}.json").unlink()
