"""The keys that sign a repository, and the root metadata that says which they are.

    FOLDER/ROLE-KEYID.pem     a private key (Ed25519, PKCS#8); KEYID are the first digits of its id
    FOLDER/1.root.json ..     which keys sign what, each version signed by the former one's keys as well
    FOLDER/root.json          the newest of them: what devices are given to begin with

Nothing is ever written over but root.json, which is a copy. A private key may be taken away while it is not needed: the
one of root after each use, that of targets between publications.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agent.crash_points import crash_point
from agent.errors import RepositoryError
from agent.paths import sync_file, sync_folder, write_file
from agent.repository.framework import CryptoSigner, Metadata, Root, tuf_errors
from agent.store.moment import PLAUSIBLE_S

Role = Literal["root", "targets", "snapshot", "timestamp"]
ROLES: Final[tuple[Role, ...]] = ("root", "targets", "snapshot", "timestamp")
ROOT_DAYS: Final = 5 * 365
"""The key of root lies in a drawer; when root expires, every device refuses until it was taken out again."""
KEYID_DIGITS: Final = 8

Clock = Callable[[], float]


def expiry(days: float, clock: Clock) -> datetime:
    """So many days from now. Raises RepositoryError where the clock was never set: nobody would take what it signs."""
    now = clock()
    if now < PLAUSIBLE_S:
        raise RepositoryError(f"the clock says {datetime.fromtimestamp(now, UTC):%Y-%m-%d}: set it before signing")
    return (datetime.fromtimestamp(now, UTC) + timedelta(days=days)).replace(microsecond=0)


def make_keys(folder: Path, *, clock: Clock, root_keys: int = 1) -> Root:
    """A key for each role and the first root metadata; or what is there already.

    Any one of several `root_keys` suffices to sign: the others are spares, to be kept in other places. Raises
    RepositoryError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if found := read_roots(folder):
        return found[-1].signed
    signers: dict[Role, list[CryptoSigner]] = {}
    for role in ROLES:
        # Those of a run that did not come to its end, and what is missing.
        signers[role] = [_read_key(path) for path in sorted(folder.glob(f"{role}-*.pem"))]
        while len(signers[role]) < (root_keys if role == "root" else 1):
            signers[role].append(_new_key(folder, role))
    root = Root(expires=expiry(ROOT_DAYS, clock), consistent_snapshot=True)
    for role, those in signers.items():
        for signer in those:
            root.add_key(signer.public_key, role)
    _write_root(folder, root, signers["root"])
    return root


def rotate_key(folder: Path, role: Role, *, clock: Clock) -> Root:
    """A new key in place of the role's own, and the next root metadata, signed by the keys of the former one as well.

    Devices hear of it from the repository: publishing.bring_up_to_date. Raises RepositoryError.
    """
    roots = read_roots(folder)
    if not roots:
        raise RepositoryError(f"{folder} holds no root.json, so there is nothing to rotate")
    held = read_keys(folder)
    root = roots[-1].signed
    old = [held[keyid] for keyid in root.roles["root"].keyids if keyid in held]
    if not old:
        raise missing_key("root", root, folder)
    new = _new_key(folder, role)
    crash_point("keys.rotate:key-alone")
    replaced = [keyid for keyid in root.roles[role].keyids if keyid in held] or list(root.roles[role].keyids)
    root.revoke_key(replaced[0], role)
    root.add_key(new.public_key, role)
    root.version += 1
    root.expires = expiry(ROOT_DAYS, clock)
    _write_root(folder, root, [*old, new] if role == "root" else old)
    return root


def read_keys(folder: Path) -> dict[str, CryptoSigner]:
    """The private keys of a folder, by their ids. Raises RepositoryError."""
    signers = [_read_key(path) for path in sorted(folder.glob("*.pem"))]
    return {signer.public_key.keyid: signer for signer in signers}


def read_roots(folder: Path) -> list[Metadata[Root]]:
    """The root metadata of a folder, by version; each is vouched for by the one before. Raises RepositoryError."""
    versions = sorted(int(name) for path in folder.glob("*.root.json") if (name := path.name.split(".")[0]).isdecimal())
    found: list[Metadata[Root]] = []
    for version in versions:
        path = folder / f"{version}.root.json"
        try:
            root = Metadata[Root].from_bytes(path.read_bytes())
            for vouching in [root, *found[-1:]]:
                vouching.signed.verify_delegate("root", root.signed_bytes, root.signatures)
            if root.signed.version != version or (found and version != found[-1].signed.version + 1):
                raise RepositoryError(f"{path} is version {root.signed.version}, or one before it is missing")
        except (OSError, ValueError, tuf_errors.RepositoryError) as error:
            raise RepositoryError(f"{path} is no root metadata that can be trusted: {error}") from error
        found.append(root)
    return found


def missing_key(role: str, root: Root, folder: Path) -> RepositoryError:
    wanted = " or ".join(f"{role}-{keyid[:KEYID_DIGITS]}.pem" for keyid in root.roles[role].keyids)
    return RepositoryError(f"{folder} does not hold the private key of {role}, {wanted}", hint="put it there meanwhile")


def _write_root(folder: Path, root: Root, signers: list[CryptoSigner]) -> None:
    metadata = Metadata(root)
    for signer in signers:
        metadata.sign(signer, append=True)
    content = metadata.to_bytes()
    path = folder / f"{root.version}.root.json"
    if path.exists():
        raise RepositoryError(f"{path} is there already")
    write_file(path, content)
    crash_point("keys.root:no-copy")
    write_file(folder / "root.json", content)


def _new_key(folder: Path, role: Role) -> CryptoSigner:
    for left in folder.glob(".*.pem.tmp"):  # by a run that was killed
        left.unlink()
    signer = CryptoSigner.generate_ed25519()
    path = folder / f"{role}-{signer.public_key.keyid[:KEYID_DIGITS]}.pem"
    beside = folder / f".{path.name}.tmp"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(signer.private_bytes)
    sync_file(beside)
    crash_point("keys.new:before-rename")
    os.link(beside, path)  # where a rename would write over
    beside.unlink()
    sync_folder(folder)
    return signer


def _read_key(path: Path) -> CryptoSigner:
    with suppress(OSError, ValueError, TypeError):
        key = load_pem_private_key(path.read_bytes(), None)
        if isinstance(key, Ed25519PrivateKey):
            return CryptoSigner(key)
    raise RepositoryError(f"{path} is not the private key of a repository: expected Ed25519, PEM, without a password")
