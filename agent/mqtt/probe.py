"""Whether a connection comes up at all: with these files, as this client, to this endpoint."""

from collections.abc import Callable

from agent.errors import BrokerError
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Broker, Message


class _Probe(Connection):
    def _take(self, _: Message) -> None:
        """Leave it unacknowledged: it is meant for the agent of this name, and comes again to it."""


async def try_connection(broker: Broker, timeout_s: float, *, explain: Callable[[str], str] = str) -> None:
    """Connect once and disconnect; the session of the client stays as it was.

    Where a client of this name is connected already, the broker ends that connection in favour of this one.

    Raises BrokerError with the last failure, as `explain` puts it, when the link does not come up in time.
    """
    probe = _Probe(broker, explain=explain)
    try:
        probe.start()
    except Exception as error:
        raise BrokerError(f"the certificate files cannot be used: {error}") from error
    try:
        await probe.wait_connected(timeout_s)
    finally:
        await probe.stop()
