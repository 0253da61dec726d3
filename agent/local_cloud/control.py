"""The control socket of a running local cloud: a line of JSON in, a line of JSON out."""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from agent.errors import AgentError

NAME: Final = "control.sock"
TIMEOUT_S: Final = 10.0
MAX_LINE_BYTES: Final = 1024 * 1024

Answer = dict[str, Any]
Handler = Callable[[dict[str, Any]], Awaitable[Answer]]


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """The socket's path by way of its folder's descriptor: a socket's own path may have 107 bytes only."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{NAME}"
    finally:
        os.close(descriptor)


def is_running(folder: Path) -> bool:
    """Whether a local cloud serves in this folder."""
    try:
        with _address(folder) as address, socket.socket(socket.AF_UNIX) as probe:
            probe.connect(address)
    except OSError:
        return False
    return True


async def serve_control(folder: Path, handler: Handler) -> asyncio.Server:
    """Take commands, of this user alone. What `handler` raises as AgentError goes back as `error`."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):  # one that says nothing must not hold up the end
                answer = await handler(json.loads(await reader.readline()))
        except AgentError as error:
            answer = {"error": error.message, "hint": error.hint}
        except (ValueError, TypeError, KeyError, TimeoutError) as error:
            answer = {"error": f"a command that makes no sense: {error!r}"}
        writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()

    (folder / NAME).unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        with _address(folder) as address:
            return await asyncio.start_unix_server(converse, address, limit=MAX_LINE_BYTES)
    finally:
        os.umask(before)


def command(folder: Path, **given: Any) -> Answer:
    """Have the local cloud in `folder` do something. Raises AgentError when none runs, or it refuses."""
    try:
        with _address(folder) as address, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(address)
            connection.sendall(json.dumps(given).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer: Answer = json.loads(lines.readline())
    except (OSError, ValueError) as error:
        raise AgentError(
            f"no local cloud runs in {folder}", hint=f"arxplorer-agent local-cloud --dir {folder} --port 8883"
        ) from error
    if "error" in answer:
        raise AgentError(answer["error"], hint=answer.get("hint"))
    return answer
