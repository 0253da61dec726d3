"""Telling systemd how the service does: its notification protocol, which is a datagram of `NAME=value` lines.

The libraries for it are no longer kept (sdnotify, 2017) or need a compiler and libsystemd (cysystemd).
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

SEND_TIMEOUT_S: Final = 1.0


def notify(*lines: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send lines such as `READY=1` and `STATUS=answering`; False where nobody listens. Never raises."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(SEND_TIMEOUT_S)
        sender.connect(address)
        sender.sendall("\n".join(line.replace("\n", " ") for line in lines).encode())
        return True
    return False


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds without `WATCHDOG=1` after which systemd restarts this process; None where it does not watch it."""
    usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or not int(usec) or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6
