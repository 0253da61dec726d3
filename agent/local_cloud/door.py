"""A door in front of a broker: takes clients, holds their connections, and does to them what faults ask for.

What is done with a client that has come in is the business of whose door it is.
"""

import asyncio
import logging
import socket
import ssl
from abc import ABC, abstractmethod
from typing import Final

import mqtt5

from agent.errors import BrokerError
from agent.local_cloud.faults import Faults
from agent.local_cloud.relay import Link
from agent.protocol.limits import Limits

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
BACKLOG: Final = 64
HANDSHAKE_TIMEOUT_S: Final = 10.0


class Door(ABC):
    def __init__(self, port: int, broker_port: int, faults: Faults, limits: Limits, tls: ssl.SSLContext | None) -> None:
        self.port: Final = port
        self._broker_port: Final = broker_port
        self._faults: Final = faults
        self._limits: Final = limits
        self._tls: Final = tls
        self._links: set[Link] = set()
        self._clients: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._door: asyncio.Task[None] | None = None

    @abstractmethod
    async def _converse(self, link: Link, address: str) -> None:
        """Serve a client until it or the broker is through. Raises OSError when the connection is lost."""

    def open(self) -> None:
        """Take clients. Raises BrokerError when the port is not to be had."""
        # With the protocol named, asyncio sets TCP_NODELAY on what is accepted: otherwise an answer may wait for 40 ms.
        self._listener = listener = socket.socket(proto=socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, self.port))
            listener.listen(BACKLOG)
            listener.setblocking(False)  # noqa: FBT003  the name of this flag is the method's
        except OSError as error:
            listener.close()
            raise BrokerError(f"port {self.port} cannot be used: {error.strerror}", hint="choose another") from error
        self._door = asyncio.create_task(self._accept(listener), name="accept")

    async def close(self) -> None:
        """Tell every client that the server shuts down, and end."""
        await self._shut_door()
        goodbye = mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SERVER_SHUTTING_DOWN).write()
        for link in self._links:
            link.writer.write(goodbye)
        await self._end_all()

    async def put(self, fault: str, milliseconds: float = 0.0) -> None:
        """Carry out a fault. Raises AgentError for one that does not exist."""
        self._faults.put(fault, milliseconds)
        log.info("fault: %s%s", fault, f" {milliseconds:g} ms" if milliseconds else "")
        if self._faults.refusing:
            await self._shut_door()
        if fault in ("cut", "refuse"):
            for link in self._links:
                link.abort()
            await self._end_all()
        if not self._faults.refusing and self._door is None:
            self.open()

    async def _shut_door(self) -> None:
        door, self._door = self._door, None
        if door:
            door.cancel()
            await asyncio.wait([door])
        if self._listener:
            self._listener.close()

    async def _end_all(self) -> None:
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(set(self._clients))

    # -- one client -----------------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            accepted, address = await loop.sock_accept(listener)
            task = asyncio.create_task(self._serve(accepted, address[0]), name=f"client {address[1]}")
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def _serve(self, accepted: socket.socket, address: str) -> None:
        """From the handshake to the end of a connection, whatever that is."""
        try:
            with accepted:
                await self._faults.hold()
                link = await self._handshake(accepted)
        except (OSError, TimeoutError) as error:  # of TLS too
            log.info("%s: no connection: %s", address, error or type(error).__name__)
            return
        self._links.add(link)
        try:
            await self._converse(link, address)
            await link.hang_up()
        except OSError as error:
            log.info("%s: connection lost: %s", address, error)
        except Exception:
            log.exception("%s: connection ended", address)
        finally:
            self._links.discard(link)
            link.writer.close()

    async def _handshake(self, accepted: socket.socket) -> Link:
        loop = asyncio.get_running_loop()
        _, link = await loop.connect_accepted_socket(
            lambda: Link(self._limits),
            accepted.dup(),
            ssl=self._tls,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if self._tls else None,
        )
        return link

    async def _to_broker(self) -> Link:
        """A connection to the broker, for one client."""
        _, broker = await asyncio.get_running_loop().create_connection(
            lambda: Link(self._limits), HOST, self._broker_port
        )
        return broker
