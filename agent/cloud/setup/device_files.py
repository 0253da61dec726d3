"""The device's files of the link: key, certificate, root CA.

They are written whole or not at all. The key is never readable by others, not even for a moment.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from agent.cloud.setup.keys import PrivateKey, key_to_pem, new_key, read_key
from agent.config import Certificates
from agent.crash_points import crash_point
from agent.errors import AgentError
from agent.paths import sync_folder

SECRET: Final = 0o600
PUBLIC: Final = 0o644
FOLDER: Final = 0o700


class DeviceFiles(NamedTuple):
    """Absolute paths, named as in config.yaml."""

    ca_cert: Path
    cert_file: Path
    private_key: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "DeviceFiles":
        usual = Certificates()
        names = (usual.ca_cert, usual.cert_file, usual.private_key)
        return cls(*(folder.absolute() / Path(name).name for name in names))

    @classmethod
    def configured(cls, certificates: Certificates) -> "DeviceFiles":
        return cls(Path(certificates.ca_cert), Path(certificates.cert_file), Path(certificates.private_key))

    def beside(self, ending: str) -> "DeviceFiles":
        """The same root CA, and key and certificate with another ending."""
        named = [path.with_name(path.name + ending) for path in (self.cert_file, self.private_key)]
        return DeviceFiles(self.ca_cert, *named)


class Disk:
    """The device's own disk."""

    def text(self, path: Path) -> str:
        """What a file holds; empty if there is none, or no text."""
        with _named(path):
            return path.read_text("utf-8", errors="replace") if path.is_file() else ""

    def private_key(self, path: Path) -> tuple[str, PrivateKey | None]:
        """What was done to have a key in the file, empty if it was there; and the key."""
        with _named(path):
            if path.is_file():
                key = read_key(path.read_bytes(), str(path))
                if not stat.S_IMODE(path.stat().st_mode) & 0o077:
                    return "", key
                path.chmod(SECRET)
                return f"private key {path} closed to others", key
            key = new_key()
            _replace(path, key_to_pem(key), SECRET)
            return f"private key {path} made", key

    def write(self, path: Path, content: bytes, mode: int = PUBLIC) -> None:
        """Replace a file; one of other content is kept beside it as `.old`."""
        with _named(path):
            if path.is_file() and path.read_bytes() != content:
                _replace(path.with_name(f"{path.name}.old"), path.read_bytes(), mode)
                crash_point("device_files.write:old-kept")
            _replace(path, content, mode)

    def replace_text(self, path: Path, text: str) -> None:
        """Replace a file that others may link to, keeping its mode."""
        with _named(path):
            real = path.resolve()
            _replace(real, text.encode(), stat.S_IMODE(real.stat().st_mode) if real.is_file() else PUBLIC)

    def move(self, source: Path, target: Path) -> None:
        with _named(target):
            source.replace(target)
            crash_point("device_files.move:before-sync")
            sync_folder(target.parent)

    def remove(self, *paths: Path) -> None:
        for path in paths:
            with _named(path):
                path.unlink(missing_ok=True)


class NoDisk(Disk):
    """Reads, and tells what would be written."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say: Final = say

    def private_key(self, path: Path) -> tuple[str, PrivateKey | None]:
        if not path.is_file():
            self._say(f"write {path} (mode 600): a new P-256 key")
        return "", None

    def write(self, path: Path, content: bytes, mode: int = PUBLIC) -> None:  # noqa: ARG002  as the disk has it
        self._say(f"write {path} (mode {mode:o})")

    def replace_text(self, path: Path, text: str) -> None:  # noqa: ARG002
        self._say(f"write {path}: section aws_iot")

    def move(self, source: Path, target: Path) -> None:
        self._say(f"move {source} to {target}")

    def remove(self, *paths: Path) -> None:
        """Nothing is there to remove."""


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what the system says into an error that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise AgentError(f"{path}: {reason}", hint="may this user write there? --certs-dir names a folder") from error


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Write beside, sync, rename: with its mode from the first moment on, in a folder that is closed if we make it.

    What a killed run left beside it, perhaps half a key, is gone with the next.
    """
    path.parent.mkdir(mode=FOLDER, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            os.fchmod(stream.fileno(), mode)  # whatever the umask
            stream.write(content)
            stream.flush()
            crash_point("device_files.replace:before-sync")
            os.fsync(stream.fileno())
        crash_point("device_files.replace:before-rename")
        beside.replace(path)
        crash_point("device_files.replace:after-rename")
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
