"""Which device is set up: its configuration file, its name, and where its key and certificates lie."""

from pathlib import Path
from typing import Any, Final

import msgspec

from agent.cloud.setup.config_file import edited
from agent.cloud.setup.device_files import DeviceFiles, Disk
from agent.config import find_config_file, load_config
from agent.errors import AgentError


class Device:
    def __init__(
        self,
        config_file: Path | None,
        *,
        data_dir: Path | None = None,
        thing_name: str | None = None,
        certs_dir: Path | None = None,
    ) -> None:
        """Read the configuration; a file that is named and not there yet will be made.

        Raises ConfigError for a file with a mistake in it, and AgentError for one that cannot be changed: before
        anything is made.
        """
        file = config_file if config_file and not config_file.exists() else find_config_file(config_file)
        self.config_file: Final = (file or Path("config.yaml")).absolute()
        there = self.config_file if self.config_file.is_file() else None
        self.config: Final = load_config(there, data_dir=data_dir)
        # What an environment variable says for one run is not what is written down.
        own = load_config(there, environment={})
        self.thing_name: Final = thing_name or own.thing_name
        if certs_dir or not there or not all(msgspec.structs.astuple(own.aws_iot.certificates)):
            self.files = DeviceFiles.in_folder(certs_dir or self.config_file.parent / "certs")
        else:
            self.files = DeviceFiles.configured(own.aws_iot.certificates)
        self._edited("REGION", "ENDPOINT")

    def write_config(self, disk: Disk, region: str, endpoint: str) -> bool:
        """Say in config.yaml how to connect; all else in it stays. Whether there was anything to change."""
        old, new = self._edited(region, endpoint)
        if new != old:
            disk.replace_text(self.config_file, new)
        return new != old

    def need_certificate(self) -> None:
        """Raise AgentError unless there is a certificate to renew."""
        if not (self.files.cert_file.is_file() and self.files.private_key.is_file()):
            raise AgentError(f"no certificate to renew in {self.files.cert_file.parent}", hint="run without --renew")

    def _edited(self, region: str, endpoint: str) -> tuple[str, str]:
        """The text of the file as it is, and as it must be."""
        link: dict[str, Any] = {
            "enabled": True,
            "region": region,
            "endpoint": endpoint,
            "thing_name": self.thing_name,
            "certificates": {name: str(path) for name, path in self.files._asdict().items()},
        }
        old = self.config_file.read_bytes().decode() if self.config_file.is_file() else ""
        return old, edited(old, {"aws_iot": link}, str(self.config_file))
