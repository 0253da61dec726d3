"""Which message it is over which a broker ends the link, again and again. Pure.

IoT Core answers a publish that it does not take by ending the connection, without saying which one it was. All that
were unacknowledged then are suspects, and a suspect is sent only while nothing else is under way: if the link ends over
it then, it was the one. Where the reason is one of the topic, whatever else goes there is suspect as well: a status, or
an answer that is made anew, is never the same message twice.
"""

from collections import OrderedDict
from typing import Final

from agent.mqtt.packets import Outgoing

REFUSING: Final = frozenset((0x81, 0x82, 0x87, 0x90, 0x95, 0x99, 0x9A))
"""Reason codes of a DISCONNECT that say: not this message (MQTT 5.0, section 3.14.2.1)."""
OF_THE_TOPIC: Final = frozenset((0x87, 0x90))
"""Those that hold for any message on the same topic."""
BLOCKED_S: Final = 600.0
"""How long nothing more is sent on a topic that is not allowed: each attempt would end the link."""
MAX_SUSPECTS: Final = 256
MAX_BLOCKED: Final = 64


class Breaker:
    """Of one connection. Not for several threads at once."""

    def __init__(self) -> None:
        self._under_way: list[Outgoing] = []
        self._suspects: OrderedDict[int, None] = OrderedDict()
        self._blocked: OrderedDict[str, tuple[float, int]] = OrderedDict()  # until when, and the code

    @property
    def under_way(self) -> list[Outgoing]:
        return self._under_way.copy()

    def blocked(self, topic: str, now: float) -> int | None:
        """The code with which the broker refused this topic not long ago."""
        until, code = self._blocked.get(topic, (0.0, 0))
        if now < until:
            return code
        self._blocked.pop(topic, None)
        return None

    @property
    def on_trial(self) -> bool:
        """Whether a suspect is under way: nothing else may be then."""
        return bool(self._suspects) and any(map(self._is_suspect, self._under_way))

    def may_go(self, message: Outgoing, *, others: bool = False) -> bool:
        """Whether this message may be sent now: a suspect only by itself, and nothing beside a suspect.

        `others`: something else than messages of ours is under way.
        """
        if self._is_suspect(message):
            return not (self._under_way or others)
        return not self.on_trial

    def sent(self, message: Outgoing) -> None:
        self._under_way.append(message)

    def settled(self, message: Outgoing, *, taken: bool) -> None:
        """It is no longer under way; with `taken` the broker has acknowledged it."""
        self._under_way.remove(message)
        if taken:
            self._clear(message)

    def ended(self, code: int | None, *, others: bool) -> bool:
        """The broker has ended the link. Returns whether what is under way, one message alone, is to blame for it.

        `others`: something else than messages of ours was under way as well, and may have been the reason.
        """
        if code not in REFUSING or not self._under_way:
            return False
        alone = len(self._under_way) == 1 and not others
        guilty = alone and self._is_suspect(self._under_way[0])
        for message in self._under_way:
            mark = _mark_of_topic(message) if code in OF_THE_TOPIC else _mark(message)
            self._suspects[mark] = None
            self._suspects.move_to_end(mark)
        while len(self._suspects) > MAX_SUSPECTS:
            self._suspects.popitem(last=False)
        return guilty

    def convict(self, message: Outgoing, code: int, now: float) -> None:
        """This was the one: it will not be sent again, nor, where the code is of the topic, another one there."""
        self._clear(message)
        if code in OF_THE_TOPIC:
            self._blocked[message.topic] = (now + BLOCKED_S, code)
            while len(self._blocked) > MAX_BLOCKED:
                self._blocked.popitem(last=False)

    def _is_suspect(self, message: Outgoing) -> bool:
        return bool(self._suspects) and (_mark(message) in self._suspects or _mark_of_topic(message) in self._suspects)

    def _clear(self, message: Outgoing) -> None:
        if self._suspects:
            self._suspects.pop(_mark(message), None)
            self._suspects.pop(_mark_of_topic(message), None)


def _mark(message: Outgoing) -> int:
    """The same for a message that is sent again, whatever is left of its time."""
    return hash((message.topic, message.payload, message.correlation, message.retain))


def _mark_of_topic(message: Outgoing) -> int:
    """The same for all that need the same permission: to retain is one of its own."""
    return hash((message.topic, message.retain))
