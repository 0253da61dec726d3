"""The local broker of the configuration."""

from pathlib import Path

from agent.config import LocalBroker
from agent.errors import ConfigError
from agent.mqtt.packets import Broker, Tls
from agent.protocol.topics import AgentTopics


def local_broker(broker: LocalBroker, thing_name: str, *, client_id: str | None = None) -> Broker:
    """Raises ConfigError when its password file cannot be read, or its CA certificate is not there."""
    password = None
    if broker.password_file:
        try:
            password = Path(broker.password_file).read_text("utf-8").strip()
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", path="local_broker.password_file") from error
    if broker.ca_cert and not Path(broker.ca_cert).is_file():
        raise ConfigError(f"no file at {broker.ca_cert}", path="local_broker.ca_cert")
    return Broker(
        host=broker.host,
        port=broker.port,
        client_id=client_id or broker.client_id or thing_name,
        username=broker.username or None,
        password=password,
        tls=Tls(broker.ca_cert) if broker.ca_cert else None,
        keep_alive_s=broker.keep_alive,
        topics=AgentTopics.of(broker.topics, thing_name),
    )
