"""What follows from the reason code with which a broker refuses a connection or ends it. Pure.

The codes are of MQTT 5.0, section 2.4; what they mean at AWS IoT Core is in its developer guide, "MQTT 5 reason codes".
Every other code is answered by the ordinary back-off alone.
"""

from typing import Final, NamedTuple


class Advice(NamedTuple):
    """What a code means; how long to stay away beyond the back-off; whether a person should hear of it."""

    meaning: str
    pause_s: float = 0.0
    alarm: bool = False


REFUSED_PAUSE_S: Final = 60.0
TAKEN_OVER_PAUSE_S: Final = 30.0
QUOTA_PAUSE_S: Final = 10.0
BUSY_PAUSE_S: Final = 5.0

ADVICE: Final = {
    0x81: Advice("the broker takes a packet of ours for malformed", BUSY_PAUSE_S, alarm=True),
    0x82: Advice("the broker takes a packet of ours for a protocol error", BUSY_PAUSE_S, alarm=True),
    0x84: Advice("the broker does not speak MQTT 5", REFUSED_PAUSE_S, alarm=True),
    0x85: Advice("the broker does not take this client id", REFUSED_PAUSE_S, alarm=True),
    0x86: Advice("the broker does not take this user name and password", REFUSED_PAUSE_S, alarm=True),
    0x87: Advice(
        "not authorized: the certificate is inactive or of another thing, or the policy does not allow it",
        REFUSED_PAUSE_S,
        alarm=True,
    ),
    0x88: Advice("the broker is unavailable", BUSY_PAUSE_S),
    0x89: Advice("the broker is busy", BUSY_PAUSE_S),
    0x8B: Advice("the broker shuts down"),
    0x8D: Advice("the broker had heard nothing for too long"),
    0x8E: Advice("another client connected with the same client id", TAKEN_OVER_PAUSE_S, alarm=True),
    0x90: Advice("the broker does not take a topic of ours", BUSY_PAUSE_S, alarm=True),
    0x93: Advice("more messages were unacknowledged than the broker allows"),
    0x94: Advice("the broker does not know a topic alias", BUSY_PAUSE_S, alarm=True),
    0x95: Advice("a packet was larger than the broker allows", BUSY_PAUSE_S, alarm=True),
    0x96: Advice("messages were sent faster than the broker allows", QUOTA_PAUSE_S),
    0x97: Advice("a quota of the broker is used up", QUOTA_PAUSE_S),
    0x98: Advice("an administrator ended the connection", BUSY_PAUSE_S),
    0x9B: Advice("the broker does not support this quality of service", REFUSED_PAUSE_S, alarm=True),
    0x9F: Advice("connections came faster than the broker allows", QUOTA_PAUSE_S),
    0xA1: Advice("the broker does not support subscription identifiers", REFUSED_PAUSE_S, alarm=True),
}


def advice(code: int) -> Advice:
    return ADVICE.get(code, Advice("the broker gives no reason that we know"))
