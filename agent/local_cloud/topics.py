"""Which messages AWS IoT Core delivers to a subscription, where that differs from MQTT. Pure."""

from agent.protocol.topics import topic_matches, topic_part


def delivers(topic_filter: str, topic: str) -> bool:
    """Whether a message matches a subscription. Unlike in MQTT, `x/#` does not match `x`."""
    if not topic_matches(topic_filter, topic):
        return False
    own = topic_part(topic_filter)
    return not own.endswith("/#") or topic.count("/") >= own.count("/")
