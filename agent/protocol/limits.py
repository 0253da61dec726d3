"""What AWS IoT Core allows: one table of named constants, each with where it comes from.

Sources, all of them AWS documents: [Q] "AWS IoT Core endpoints and quotas" in the General Reference; [M] "MQTT" and [S]
"Device Shadow error messages" in the IoT Core developer guide; [J] "JobExecution" and "CancelJobExecution" in the API
reference. A figure marked (check) is from an undated copy.
"""

from typing import Final, NamedTuple


class Limits(NamedTuple):
    """Named so that a test may tighten one; `IOT_CORE` is what holds."""

    # One packet
    payload_bytes: int = 128 * 1024
    """[Q] of a PUBLISH; a larger one ends the connection with 0x95."""
    packet_bytes: int = 146 * 1024
    """[M] The maximum packet size in CONNACK: the payload, and room for what MQTT 5 puts around it. (check)"""
    topic_bytes: int = 256
    """[Q] of a topic or a topic filter, in UTF-8."""
    topic_slashes: int = 7
    """[Q] in a topic or a topic filter; those of `$aws/rules/RULE/` and `$share/GROUP/` are free."""
    filters_per_subscribe: int = 8
    """[Q]"""
    client_id_bytes: int = 128
    """[Q]"""

    # One connection
    connects_per_s: int = 1
    """[Q] a client id; 0 is no limit. The answer to more is 0x97."""
    subscriptions: int = 50
    """[Q] a connection."""
    publishes_per_s: int = 100
    """[Q] a connection, in and out together; the excess is discarded without a PUBACK. (check)"""
    bytes_per_s: int = 512 * 1024
    """[Q] a connection, in and out together; what exceeds it is delayed, not lost. (check)"""
    receive_maximum: int = 100
    """[Q] unacknowledged QoS 1 messages each way. (check)"""
    topic_aliases: int = 8
    """[M]"""
    min_keep_alive_s: int = 30
    """[M] A shorter one is raised to this, as Server Keep Alive in CONNACK says."""
    max_keep_alive_s: int = 1200
    """[M] A longer one, or none, is lowered to this. The connection is dropped at one and a half times it."""
    session_expiry_s: int = 7 * 24 * 3600
    """[Q] A longer wish is cut to this; CONNACK says what was granted."""

    # Policies
    policy_characters: int = 2048
    """[Q] of a policy document, white space not counted."""

    # Device Shadow
    shadow_bytes: int = 8 * 1024
    """[Q] of the state document, metadata not counted."""
    shadow_levels: int = 5
    """[Q] of fields in `desired` or `reported`; the service's message counts the section too and says 6."""
    shadow_name_bytes: int = 64
    """[Q]"""
    client_token_bytes: int = 64
    """[S]"""

    # Jobs
    job_document_bytes: int = 32 * 1024
    """[J]"""
    job_id_characters: int = 64
    """[J]"""
    status_details: int = 10
    """[J] pairs of a name and a value."""
    status_detail_name_characters: int = 128
    """[J]"""
    status_detail_characters: int = 1024
    """[J] of a value."""
    job_timeout_minutes: int = 7 * 24 * 60
    """[J] of a step, or of a job in progress."""
    jobs_listed: int = 15
    """In a notification, or an answer to `get`: "Jobs notifications" in the developer guide."""


IOT_CORE: Final = Limits()

ALPN: Final = "x-amzn-mqtt-ca"
"""[M] What a client says on port 443 to get MQTT with a client certificate."""

MAX_MESSAGE_BYTES: Final = IOT_CORE.payload_bytes
"""The local link keeps to it as well, so that an answer never depends on the link."""
