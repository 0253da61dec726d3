"""Topics and topic filters as AWS IoT Core takes them, where it differs from MQTT. Pure."""

import re
from typing import Final

from agent.local_cloud.limits import Limits
from agent.protocol.topics import is_filter as allowed_by_mqtt
from agent.protocol.topics import topic_matches

_FREE: Final = re.compile(r"\$aws/rules/[^/]*/|\$share/[^/]+/", re.IGNORECASE)
"""What stands in front and does not count."""


def topic_fits(topic: str, limits: Limits, *, is_filter: bool = False) -> bool:
    """Whether a topic, or a filter, is well formed, short enough and not too deep."""
    if not allowed_by_mqtt(topic) or (not is_filter and has_wildcard(topic)):
        return False
    counted = topic[match.end() :] if (match := _FREE.match(topic)) else topic
    return len(topic.encode()) <= limits.topic_bytes and counted.count("/") <= limits.topic_slashes


def has_wildcard(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter


def delivers(topic_filter: str, topic: str) -> bool:
    """Whether a message matches a subscription. Unlike in MQTT, `x/#` does not match `x`."""
    if not topic_matches(topic_filter, topic):
        return False
    own = topic_filter.split("/", 2)[2] if topic_filter.startswith("$share/") else topic_filter
    return not own.endswith("/#") or topic.count("/") >= own.count("/")
