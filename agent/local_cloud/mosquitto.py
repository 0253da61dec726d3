"""A real mosquitto on a free port of the loopback interface."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Final, Self

from agent.errors import BrokerError

START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 5.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Mosquitto:
    """A broker process that keeps its files in `folder`. Use as a context manager, or `start` and `stop`."""

    def __init__(self, folder: Path, *, port: int | None = None, extra: str = "", verbose: bool = False) -> None:
        """`extra` is added to its configuration as it is; with `verbose` it logs every packet."""
        self.folder: Final = folder
        self.port: Final = port or free_port()
        self._extra = extra
        self._options = ["-v"] if verbose else []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process's id. Raises BrokerError when it does not run."""
        if self._process is None:
            raise BrokerError("mosquitto does not run")
        return self._process.pid

    @property
    def log(self) -> Path:
        return self.folder / "mosquitto.log"

    def start(self) -> Self:
        """Start and wait until it accepts connections. Raises BrokerError with the end of its log."""
        # Debian keeps daemons out of an ordinary user's PATH.
        program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if not program:
            raise BrokerError("mosquitto is not installed", hint="scripts/setup, or: apt install mosquitto")
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n{self._extra}\n", "utf-8"
        )
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([program, *self._options, "-c", str(config)], stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return self
        self.stop()
        raise BrokerError(f"mosquitto did not start: {self.log.read_text('utf-8', 'replace')[-500:]}")

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill(self) -> None:
        """End it without giving it a moment: it forgets what it has not stored, and says goodbye to nobody."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
