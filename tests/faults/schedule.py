"""What fails, when, where and for how long: drawn from a seed, and the same for the same seed. Pure."""

import random
from typing import Final, Literal, NamedTuple

Where = Literal["local", "cloud", "both", "broker", "agent", "disk", "clock"]

LINK_FAULTS: Final = ("cut", "freeze", "refuse", "delay", "drop-puback", "duplicate", "reorder")
FAULTS: Final[tuple[tuple[str, Where, int], ...]] = (
    *((name, where, 2) for name in LINK_FAULTS for where in ("local", "cloud")),
    ("cut", "both", 2),
    ("refuse", "both", 3),
    ("throttle", "cloud", 3),
    ("terminate", "broker", 3),
    ("kill", "broker", 3),
    ("full", "disk", 4),
    ("jump", "clock", 4),
)
"""Name, place, weight. The agent's own kills are drawn apart: there have to be enough of them."""
KILL: Final = "kill"
KILLS: Final = 0.3
"""Share of the faults that kill the agent."""
DURATION_S: Final = (0.2, 1.8)
DELAY_MS: Final = (20.0, 300.0)
JUMP_S: Final = 400 * 24 * 3600
"""A clock without a battery is off by a year or so, in either direction."""


class Fault(NamedTuple):
    """`at` is the share of its portion of requests that has been asked when it begins; `amount` in ms or s."""

    name: str
    where: Where
    at: float
    duration_s: float
    amount: float = 0.0

    @property
    def kind(self) -> str:
        return f"{self.where} {self.name}"


def schedule(seed: int, count: int, *, kills: float = KILLS, without: frozenset[str] = frozenset()) -> list[Fault]:
    """So many faults in a random order, a share of them kills of the agent; `without` are places to spare."""
    random_ = random.Random(seed)
    killed = round(count * kills)
    possible = [one for one in FAULTS if one[1] not in without]
    weights = [weight for *_, weight in possible]
    drawn = [one[:2] for one in random_.choices(possible, weights, k=count - killed)]
    drawn += [(KILL, "agent")] * killed
    random_.shuffle(drawn)
    return [_fault(random_, name, where) for name, where in drawn]


def _fault(random_: random.Random, name: str, where: Where) -> Fault:
    amount = 0.0
    if name == "delay":
        amount = random_.uniform(*DELAY_MS)
    elif name == "jump":
        amount = random_.uniform(-JUMP_S, JUMP_S)
    return Fault(name, where, random_.uniform(0.1, 0.9), random_.uniform(*DURATION_S), amount)
