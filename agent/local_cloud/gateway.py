"""The door of the local cloud: ends mutual TLS, and lets each client through to the broker as IoT Core would.

Every client has a connection to the broker of its own, so that sessions, takeover, keep-alive and last will are the
broker's real ones. What is let through is decided in `session`; here are sockets and faults.
"""

import asyncio
import logging
import socket
import time
from typing import Final

import mqtt5

from agent.errors import BrokerError
from agent.local_cloud.faults import Faults
from agent.local_cloud.folder import CloudFolder
from agent.local_cloud.packets import PacketError, Received
from agent.local_cloud.policy import Policy, PolicyError
from agent.local_cloud.relay import Link, Relay
from agent.local_cloud.session import Client, Connects, Session, Subscriptions
from agent.protocol.limits import IOT_CORE, Limits

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
BACKLOG: Final = 64
HANDSHAKE_TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 10.0


class Gateway:
    def __init__(
        self, folder: CloudFolder, port: int, broker_port: int, faults: Faults, limits: Limits = IOT_CORE
    ) -> None:
        self.port: Final = port
        self._folder: Final = folder
        self._broker_port: Final = broker_port
        self._faults: Final = faults
        self._limits: Final = limits
        self._tls: Final = folder.authority.server_context()
        self._subscriptions: Subscriptions = {}
        self._connects: Connects = {}
        self._links: set[Link] = set()
        self._relays: dict[str, Relay] = {}
        self._clients: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._door: asyncio.Task[None] | None = None

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
            lambda: Link(self._limits), accepted.dup(), ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
        )
        return link

    async def _converse(self, link: Link, address: str) -> None:
        first, *rest = await self._first_packets(link)
        client = self._client_of(link, address)
        session = Session(client, self._subscriptions, self._connects, self._limits, self._faults)
        step = session.connect(first.packet, time.monotonic())
        name = f"{client.thing or 'a certificate of no thing'} as {session.client_id!r}"
        if step.note:
            log.info("%s: %s", name, step.note)
        if step.end:
            link.writer.write(step.to_client)
            return
        _, broker = await asyncio.get_running_loop().create_connection(
            lambda: Link(self._limits), HOST, self._broker_port
        )
        relay = Relay(name, session, link, broker, self._faults)
        earlier, self._relays[session.client_id] = self._relays.get(session.client_id), relay
        if earlier:
            earlier.take_over()
        try:
            log.info("%s: connected", name)
            broker.writer.write(step.to_broker)
            await relay.run(rest)
        finally:
            if self._relays[session.client_id] is relay:
                del self._relays[session.client_id]
            # Where the client sent no DISCONNECT, none is sent for it, and so the broker publishes its last will.
            broker.writer.close()
            log.info("%s: gone", name)

    async def _first_packets(self, link: Link) -> list[Received]:
        """What the client says first. Raises OSError when that is nothing, or no MQTT 5."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                packets = await link.packets.read()
        except PacketError as error:
            code = mqtt5.ConnAckReasonCode.MALFORMED_PACKET
            if error.other_version:
                code = mqtt5.ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION
            link.writer.write(mqtt5.ConnAckPacket(reason_code=code).write())
            await link.hang_up()
            raise ConnectionError(f"no CONNECT of MQTT 5: {error}") from error
        if not packets:
            raise ConnectionError("hung up before CONNECT")
        await self._faults.hold()
        return packets

    def _client_of(self, link: Link, address: str) -> Client:
        thing = self._folder.thing_of(link.writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        try:
            policy = self._folder.policy_of(thing) if thing else Policy([])
        except PolicyError as error:
            log.error("%s: nothing is allowed", error.message)  # noqa: TRY400  the message says it all
            policy = Policy([])
        return Client(thing, policy, address)
