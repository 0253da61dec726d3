"""The door of the local cloud: ends mutual TLS, and lets each client through to the broker as IoT Core would.

Every client has a connection to the broker of its own, so that sessions, takeover, keep-alive and last will are the
broker's real ones. What is let through is decided in `session`; here are its connections.
"""

import asyncio
import logging
import time
from collections import defaultdict
from typing import Final

import mqtt5

from agent.config import AwsIot
from agent.local_cloud.audit import Audit, Findings, IsStored
from agent.local_cloud.door import Door
from agent.local_cloud.faults import Faults
from agent.local_cloud.folder import CloudFolder
from agent.local_cloud.packets import PacketError, Received
from agent.local_cloud.policy import Policy, PolicyError
from agent.local_cloud.relay import Link, Relay
from agent.local_cloud.session import Client, Connects, Session, Subscriptions
from agent.protocol.limits import IOT_CORE, Limits
from agent.protocol.topics import AgentTopics

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 10.0


class Gateway(Door):
    def __init__(
        self,
        folder: CloudFolder,
        port: int,
        broker_port: int,
        faults: Faults,
        limits: Limits = IOT_CORE,
        is_stored: IsStored | None = None,
    ) -> None:
        """With `is_stored`, which tells whether an answer is stored at the agent, agents are audited."""
        super().__init__(port, broker_port, faults, limits, folder.authority.server_context())
        self.findings: Final[defaultdict[str, Findings]] = defaultdict(Findings)  # by thing
        self._is_stored: Final = is_stored
        self._folder: Final = folder
        self._subscriptions: Subscriptions = {}
        self._connects: Connects = {}
        self._relays: dict[str, Relay] = {}

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
        broker = await self._to_broker()
        relay = Relay(name, session, link, broker, self._faults, self._audit_of(client))
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

    def _audit_of(self, client: Client) -> Audit | None:
        if self._is_stored is None or client.thing is None:
            return None
        topics = AgentTopics.of(AwsIot().topics, client.thing)
        return Audit(self.findings[client.thing], topics.answered().__contains__, self._is_stored)

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
