"""Try the link that config.yaml describes, with the certificate that it names or with another."""

import asyncio
import datetime as dt
from typing import Final

import msgspec

from agent.cloud.identity import check_identity
from agent.cloud.link import ALPN_PORT, cloud_brokers, explainer
from agent.cloud.setup.device_files import DeviceFiles
from agent.config import Certificates, Config
from agent.errors import AgentError, BrokerError
from agent.mqtt.probe import try_connection

RECONNECT_MS: Final = (1_000, 2_000)
"""Oftener than an agent, which has all the time: a new certificate or policy takes some seconds to count."""


def check_link(config: Config, timeout_s: float, files: DeviceFiles | None = None) -> None:
    """Connect as the agent would, or with key and certificate of `files`.

    Raises AgentError that says what to look at when it does not come up in time, at once if these files cannot work.
    """
    link = config.aws_iot
    if files:
        certificates = Certificates(
            ca_cert=link.certificates.ca_cert, cert_file=str(files.cert_file), private_key=str(files.private_key)
        )
        link = msgspec.structs.replace(link, certificates=certificates)
    check_identity(link.certificates, dt.datetime.now(dt.UTC))
    broker = cloud_brokers(link, config.thing_name)[0]._replace(reconnect_ms=RECONNECT_MS)
    try:
        asyncio.run(try_connection(broker, timeout_s, explain=explainer(link)))
    except BrokerError as error:
        port = "port 8883 (else set aws_iot.port to 443)" if broker.port != ALPN_PORT else "port 443"
        raise AgentError(
            f"{broker.client_id} did not get a connection within {timeout_s:g} s: {error.message}",
            hint=f"check the clock of this device and outgoing TCP {port}; docs/aws.md says more. Then run it again",
        ) from error
