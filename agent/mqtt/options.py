"""How the MQTT library's client is set up for a broker."""

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

from awscrt import io, mqtt5

from agent.mqtt.packets import Broker, publish_packet, tls_context

MAX_PACKET_BYTES: Final = 256 * 1024
CONNACK_TIMEOUT_MS: Final = 10_000
PING_TIMEOUT_MS: Final = 10_000
ACK_TIMEOUT_S: Final = 30


class Callbacks(NamedTuple):
    """What the library calls, on its own thread, with its own events."""

    publish: Callable[[Any], None]
    connected: Callable[[Any], None]
    failed: Callable[[Any], None]
    disconnected: Callable[[Any], None]
    stopped: Callable[[Any], None]


@cache
def _bootstrap() -> Any:
    """One thread of the library for all connections of the process."""
    group = io.EventLoopGroup(1)
    return io.ClientBootstrap(group, io.DefaultHostResolver(group))


def new_client(broker: Broker, callbacks: Callbacks) -> Any:
    """The library's client, not started yet. Raises AwsCrtError when a file of the TLS settings cannot be used."""
    connect = mqtt5.ConnectPacket(
        client_id=broker.client_id,
        keep_alive_interval_sec=broker.keep_alive_s,
        username=broker.username,
        password=broker.password,
        session_expiry_interval_sec=broker.session_expiry_s,
        receive_maximum=broker.receive_maximum,
        maximum_packet_size=MAX_PACKET_BYTES,
        will=publish_packet(broker.will, broker.qos) if broker.will else None,
    )
    session = mqtt5.ClientSessionBehaviorType
    flow = mqtt5.ExtendedValidationAndFlowControlOptions
    options = mqtt5.ClientOptions(
        host_name=broker.host,
        port=broker.port,
        bootstrap=_bootstrap(),
        tls_ctx=tls_context(broker.tls) if broker.tls else None,
        socket_options=io.SocketOptions(),
        connect_options=connect,
        session_behavior=session.REJOIN_ALWAYS if broker.session_expiry_s else session.CLEAN,
        # The library's own queue is unbounded memory and is dropped by stop().
        offline_queue_behavior=mqtt5.ClientOperationQueueBehaviorType.FAIL_ALL_ON_DISCONNECT,
        extended_validation_and_flow_control_options=flow.AWS_IOT_CORE_DEFAULTS if broker.limits else flow.NONE,
        retry_jitter_mode=mqtt5.ExponentialBackoffJitterMode.FULL,
        min_reconnect_delay_ms=broker.reconnect_ms[0],
        max_reconnect_delay_ms=broker.reconnect_ms[1],
        # Not min_connected_time_to_reset_reconnect_delay_ms: awscrt 0.36.1 takes it for the least wait. Without it, one
        # that stood for 30 s begins again with the shortest.
        ping_timeout_ms=min(PING_TIMEOUT_MS, broker.keep_alive_s * 500),
        connack_timeout_ms=CONNACK_TIMEOUT_MS,
        ack_timeout_sec=ACK_TIMEOUT_S,
        on_publish_callback_fn=callbacks.publish,
        on_lifecycle_event_connection_success_fn=callbacks.connected,
        on_lifecycle_event_connection_failure_fn=callbacks.failed,
        on_lifecycle_event_disconnection_fn=callbacks.disconnected,
        on_lifecycle_event_stopped_fn=callbacks.stopped,
        # A metrics user name would make a local broker apply its access rules to it.
        disable_metrics=True,
    )
    return mqtt5.Client(options)
