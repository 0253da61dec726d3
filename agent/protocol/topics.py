"""Which topics the agent listens on, and where an answer may go. Pure rules."""

import re
from typing import Final, NamedTuple

from agent.config import Topics
from agent.errors import RequestError
from agent.protocol.limits import IOT_CORE, Limits

MAX_FILTER_BYTES: Final = 65_535
# What MQTT 5.0 (section 1.5.4) lets a receiver refuse in a topic, and the MQTT library does refuse.
_UNSPEAKABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr((plane << 16) + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)
_UNCOUNTED: Final = re.compile(r"\$aws/rules/[^/]*/|\$share/[^/]+/", re.IGNORECASE)
"""What may stand in front of a topic at AWS IoT Core and does not count."""
_SAFE_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class AgentTopics(NamedTuple):
    """The configured topics with the names filled in."""

    shared_requests: str
    own_requests: str
    results: str
    embeddings: str
    embeddings_response: str
    corpus_updates: str
    status: str
    own_status: str
    response_prefix: str

    @classmethod
    def of(cls, topics: Topics, thing_name: str) -> "AgentTopics":
        def filled(template: str) -> str:
            return template.replace("{thing_name}", thing_name)

        requests, status = filled(topics.search_requests), filled(topics.status)
        return cls(
            shared_requests=requests,
            own_requests=f"{requests}/{thing_name}",
            results=filled(topics.search_results),
            embeddings=filled(topics.embeddings),
            embeddings_response=f"{filled(topics.embeddings)}/response",
            corpus_updates=filled(topics.corpus_updates),
            status=status,
            own_status=f"{status}/{thing_name}",
            response_prefix=filled(topics.response_prefix),
        )

    def taken(self) -> set[str]:
        """Topics that the agent itself listens or reports on; no answer may go there."""
        listens = {self.shared_requests, self.own_requests, self.embeddings, self.corpus_updates}
        return listens | {self.status, self.own_status}

    def answered(self) -> set[str]:
        """Topics of requests that are acknowledged after their answer; updates are, once they are stored."""
        return {self.shared_requests, self.own_requests, self.embeddings}

    def results_for(self, client_id: str | None) -> str:
        """The topic of answers to requests that name none; an id that is no plain name is not filled in."""
        if client_id and _SAFE_CLIENT_ID.fullmatch(client_id):
            topic = self.results.replace("{client_id}", client_id)
            if topic not in self.taken():
                return topic
        return self.results.replace("{client_id}", "unknown")

    def answer_topic(
        self, response_topic: str | None, reply_to: str | None, client_id: str | None, default: str | None = None
    ) -> str:
        """Where the answer goes: by `default` to the results topic.

        Raises RequestError naming `response_topic` or `reply_to` when that is refused.
        """
        if response_topic is not None:
            return self._accepted(response_topic, "response_topic")
        if reply_to is not None:
            return self._accepted(reply_to, "reply_to")
        return default or self.results_for(client_id)

    def _accepted(self, topic: str, field: str) -> str:
        reason = None
        if not topic.startswith(self.response_prefix) or topic == self.response_prefix:
            reason = f"must lie under {self.response_prefix}"
        elif re.search(r"[#+]", topic):
            reason = "must hold no wildcard"
        elif _UNSPEAKABLE.search(topic):
            reason = "must hold no control character, surrogate or noncharacter"
        elif len(topic.encode("utf-8", "surrogatepass")) > IOT_CORE.topic_bytes:
            reason = f"must be at most {IOT_CORE.topic_bytes} bytes long"
        elif topic in self.taken():
            reason = "must not be a topic that the agent itself listens or reports on"
        if reason:
            raise RequestError("invalid_request", f"{field}: {reason}", field=field)
        return topic


def valid_filter(text: str) -> bool:
    """Whether a text may be subscribed to (MQTT 5.0, section 4.7.1): wildcards fill a level, # only the last one."""
    levels = text.split("/")
    return (
        0 < len(text.encode("utf-8", "surrogatepass")) <= MAX_FILTER_BYTES
        and not _UNSPEAKABLE.search(text)
        and all(level in ("+", "#") or not re.search("[+#]", level) for level in levels)
        and "#" not in levels[:-1]
    )


def topic_part(topic_filter: str) -> str:
    """What a filter says of topics: of a shared subscription, what stands behind `$share/GROUP/`."""
    return topic_filter.split("/", 2)[-1] if topic_filter.startswith("$share/") else topic_filter


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic matches a subscription (MQTT 5.0, section 4.7), shared ones included."""
    topic_filter = topic_part(topic_filter)
    if topic_filter == topic:
        return True
    if topic.startswith("$") and topic_filter[:1] in "+#":
        return False
    levels, wanted = topic.split("/"), topic_filter.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        levels = levels[: len(wanted)] if len(levels) >= len(wanted) else []
        if not levels and wanted:
            return False
    return len(levels) == len(wanted) and all(w in ("+", level) for w, level in zip(wanted, levels, strict=True))


def has_wildcard(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter


def topic_fits(topic: str, limits: Limits, *, is_filter: bool = False) -> bool:
    """Whether a topic, or a filter, is well formed and, for AWS IoT Core, short enough and not too deep."""
    if not valid_filter(topic) or (not is_filter and has_wildcard(topic)):
        return False
    counted = topic[match.end() :] if (match := _UNCOUNTED.match(topic)) else topic
    return len(topic.encode()) <= limits.topic_bytes and counted.count("/") <= limits.topic_slashes
