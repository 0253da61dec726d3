"""A socket option that the MQTT library does not offer."""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path


def disable_nagle(peer_port: int) -> int:
    """Set TCP_NODELAY on this process's connections to `peer_port`; returns how many there were.

    Without it an acknowledgement that follows an answer can wait 40 ms for the peer's delayed ACK. The library
    never sets the option and does not show its sockets, so on Linux they are found through /proc.
    """
    found = 0
    for entry in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").is_dir() else ():
        with suppress(OSError, ValueError):
            descriptor = int(entry.name)
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            # A duplicate shares the connection, so closing it leaves the library's own alone.
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.type == socket.SOCK_STREAM and connection.getpeername()[1:2] == (peer_port,):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    found += 1
    return found
