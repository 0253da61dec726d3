"""The outbox: messages that a link could not take, in agent.db until the broker has them.

Answers and reports are bounded each by itself, in bytes, in number and in age; what is over a bound goes, the oldest
first, and is counted with the reason, also over restarts. What a broker refuses is set aside, to be looked at.
"""

import json
import logging
import sqlite3
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from agent.config import OutboxConfig
from agent.errors import StateError
from agent.paths import shut_out
from agent.store.agent_db import Action, AgentDatabase, Result, is_busy
from agent.store.connection import ThreadConnections
from agent.store.moment import Moment

log = logging.getLogger(__name__)

Kind = Literal["answer", "report"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Reason = Literal["expired", "too_old", "too_many", "too_large", "damaged"]

MAX_MESSAGES: Final = 10_000
"""Of a kind."""
MAX_SET_ASIDE: Final = 64
REMOVED_AT_ONCE: Final = 256
"""In one transaction: a full disk refuses it only at its end."""
COMPACT_BYTES: Final = 1024 * 1024
"""So much free space is worth giving back to the disk before the outbox is empty."""

_COLUMNS: Final = "seq, link, kind, key, topic, payload, rest, boot, uptime_s, wall_s, crc"


class Kept(NamedTuple):
    """A message in the outbox, or on its way there (`seq` 0). Requests are only ever set aside.

    `rest` is what else belongs to it, as JSON has it. `expires_s` is how long it is worth anything, from now on.
    """

    link: str
    kind: Kind | Literal["request"]
    topic: str
    payload: bytes
    rest: dict[str, Any]
    key: bytes | None = None
    expires_s: float | None = None
    seq: int = 0


class Held(NamedTuple):
    """How much there is of a kind."""

    messages: int = 0
    bytes: int = 0


NOTHING: Final[dict[str, Any]] = {f"{kind}s": Held()._asdict() for kind in KINDS} | {"dropped": {}, "set_aside": 0}

Learned = tuple[dict[tuple[str, Kind], Held], dict[tuple[str, bytes], int]]
"""What there is, and which requests have their answer here, and where."""


class Outbox:
    """Usable from any thread. Methods that write raise StateError where agent.db cannot be written."""

    def __init__(
        self,
        database: AgentDatabase,
        config: OutboxConfig,
        *,
        now: Callable[[], Moment] = Moment.now,
        max_messages: int = MAX_MESSAGES,
    ) -> None:
        self._database: Final = database
        self._config = config
        self._now: Final = now
        self._max_messages: Final = max_messages
        self._guard: Final = threading.Lock()
        # As the file has it, so that nothing is read while there is nothing.
        self._keys: dict[tuple[str, bytes], int] = {}
        self._held: dict[tuple[str, Kind], Held] = {}
        self._delivered: dict[int, Kept] = {}  # what is still to be deleted of it
        self._partial = False  # whether there may be more than could be read
        database.on_open(lambda db: self._take(_learned(db)))

    def configure(self, config: OutboxConfig) -> None:
        """Keep to these bounds from the next message on."""
        self._config = config

    def load(self) -> None:
        """Learn what an earlier run left. Never raises."""
        self._database.read(lambda db: self._take(_learned(db)))

    # -- what there is ------------------------------------------------------------------------------------------------

    def holds(self, link: str, key: bytes) -> bool:
        """Whether the answer to this request waits here for its link. Costs no look at the disk."""
        return (link, key) in self._keys

    def waiting(self, link: str, kind: Kind) -> int:
        return self._held.get((link, kind), Held()).messages

    def counts(self) -> dict[str, Any]:
        """What the status says of the outbox."""
        return self._database.read(_counts) or NOTHING

    def next(self, link: str, kind: Kind, limit: int, *, after: int = 0) -> list[Kept]:
        """The oldest messages of a kind for a link, those beyond number `after`; what has expired goes.

        Where nothing can be written they are read all the same. Raises StateError where they cannot be read either.
        """
        if not self.waiting(link, kind) and not self._partial:
            return []

        def action(db: sqlite3.Connection) -> tuple[list[Kept], dict[int, Reason]]:
            return self._oldest(db, link, kind, limit, after)

        try:
            found, drops = self._database.write(action)
        except StateError as error:
            if is_busy(error):
                raise
            self._partial = True
            alone = self._database.read_only(
                lambda db: (action(db), _learned(db)), then=lambda result: self._take(result[1])
            )
            if alone is None:
                # What cannot be read cannot be delivered: whoever asks again is answered anew.
                self._take((self._held, {}))
                raise
            return alone[0][0]
        self._partial = False
        if drops:
            with suppress(StateError):  # passed over again the next time
                log.warning("dropped from the outbox: %s", self._write(lambda db: _drop(db, kind, drops)))
                self._shrink()
        return found

    # -- what changes it ----------------------------------------------------------------------------------------------

    def put(self, messages: Sequence[Kept]) -> None:
        """Keep messages durably, in one transaction; one with the key of another takes its place."""
        now = self._now()

        def action(db: sqlite3.Connection) -> list[str]:
            for one in messages:
                if one.key is not None:
                    db.execute(
                        "DELETE FROM outbox WHERE link = ? AND key = ? AND set_aside IS NULL", [one.link, one.key]
                    )
                _insert(db, one, now, None)
            return self._bound(db, now)

        for dropped in self._write(action):
            log.warning("dropped from the outbox: %s", dropped)

    def remove(self, messages: Sequence[Kept] = ()) -> None:
        """The broker has them: they go; without any, what earlier calls could not delete.

        Raises StateError where nothing can be deleted; even so they are not given out again by this run.
        """
        with self._guard:
            self._delivered |= {one.seq: one for one in messages}
            for one in messages:
                # Before its row is gone: nothing is acknowledged for the sake of one that is not there.
                if one.key is not None and self._keys.get((one.link, one.key)) == one.seq:
                    del self._keys[one.link, one.key]
            gone = list(messages or self._delivered.values())
        for at in range(0, len(gone), REMOVED_AT_ONCE):
            self._delete(gone[at : at + REMOVED_AT_ONCE])
        if gone:
            self._shrink()

    def refuse(self, message: Kept, reason: str) -> None:
        """Set a message aside with the reason for which it is given up; one that has the key of another only once."""

        def action(db: sqlite3.Connection) -> None:
            if message.seq:
                db.execute("DELETE FROM outbox WHERE seq = ?", [message.seq])
            same = "SELECT 1 FROM outbox WHERE set_aside = ? AND kind = ? AND link = ? AND key = ?"
            if db.execute(same, [reason, message.kind, message.link, message.key]).fetchone():
                return
            _insert(db, message, self._now(), reason)
            db.execute(
                "DELETE FROM outbox WHERE set_aside IS NOT NULL AND seq NOT IN"
                " (SELECT seq FROM outbox WHERE set_aside IS NOT NULL ORDER BY seq DESC LIMIT ?)",
                [MAX_SET_ASIDE],
            )

        self._write(action)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _write(self, action: "Action[Result]") -> Result:
        # Not before: what is not committed must not be taken for kept.
        result, _ = self._database.write(lambda db: (action(db), _learned(db)), then=lambda both: self._take(both[1]))
        return result

    def _delete(self, delivered: Sequence[Kept]) -> None:
        def action(db: sqlite3.Connection) -> list[tuple[str, Kind, int]]:
            # A file that was begun anew has other messages under these numbers.
            query = "DELETE FROM outbox WHERE seq = ? AND topic = ? AND payload = ? RETURNING link, kind, bytes"
            return [row for one in delivered for row in db.execute(query, [one.seq, one.topic, one.payload]).fetchall()]

        def then(removed: list[tuple[str, Kind, int]]) -> None:
            with self._guard:  # without a look at all that is left
                for one in delivered:
                    self._delivered.pop(one.seq, None)
                for link, kind, size in removed:
                    held = self._held.get((link, kind), Held())
                    self._held[link, kind] = Held(held.messages - 1, held.bytes - size)

        self._database.write(action, then)

    def _shrink(self) -> None:
        empty = not any(held.messages for held in self._held.values())
        self._database.compact(0 if empty else COMPACT_BYTES)

    def _take(self, learned: Learned) -> None:
        held, keys = learned
        with self._guard:
            self._held = held
            self._keys = {name: number for name, number in keys.items() if number not in self._delivered}

    def _oldest(
        self, db: sqlite3.Connection, link: str, kind: Kind, limit: int, after: int
    ) -> tuple[list[Kept], dict[int, Reason]]:
        """What is to be delivered next, and what was met on the way that is worth nothing any more."""
        query = (
            f"SELECT {_COLUMNS} FROM outbox"  # noqa: S608  constants
            " WHERE link = ? AND kind = ? AND set_aside IS NULL AND seq > ? ORDER BY seq LIMIT ?"
        )
        found: list[Kept] = []
        drops: dict[int, Reason] = {}
        now, position = self._now(), after
        while len(found) < limit:
            rows = db.execute(query, [link, kind, position, limit - len(found)]).fetchall()
            if not rows:
                break
            position = rows[-1][0]
            for row in rows:
                if self._is_delivered(row):
                    continue
                kept = self._current(row, now)
                if isinstance(kept, Kept):
                    found.append(kept)
                else:
                    drops[row[0]] = kept
        return found, drops

    def _is_delivered(self, row: Sequence[Any]) -> bool:
        number, _, _, _, topic, payload, *_ = row
        one = self._delivered.get(number)
        return one is not None and (one.topic, one.payload) == (topic, payload)

    def _bound(self, db: sqlite3.Connection, now: Moment) -> list[str]:
        """Drop what is over a bound, oldest first. Returns what went, in words."""
        dropped = []
        for kind in KINDS:
            messages, size = _total(_held(db), kind)
            drops: dict[int, Reason] = {}
            oldest = db.execute(
                "SELECT seq, bytes, boot, uptime_s, wall_s FROM outbox"
                " WHERE kind = ? AND set_aside IS NULL ORDER BY seq",
                [kind],
            )
            for number, length, *stored in oldest:
                if [type(one) for one in (length, *stored)] != [int, str, float, float]:
                    drops[number] = "damaged"
                    continue
                if now.since(Moment(*stored)) > self._config.max_age_s:
                    drops[number] = "too_old"
                elif messages > self._max_messages:
                    drops[number] = "too_many"
                elif size > self._config.max_bytes:
                    drops[number] = "too_large"
                else:
                    break
                messages, size = messages - 1, size - length
            oldest.close()
            if drops:
                dropped.append(_drop(db, kind, drops))
        return dropped

    def _current(self, row: Sequence[Any], now: Moment) -> Kept | Reason:
        """A row as it is now, or why it is worth nothing any more."""
        number, link, kind, key, topic, payload, rest, boot, uptime_s, wall_s, crc = row
        if not isinstance(payload, bytes) or crc != _crc(row[1:-1]):
            return "damaged"
        passed = now.since(Moment(boot, uptime_s, wall_s))
        document = json.loads(rest)
        expires_s = document.pop("expires_s", None)
        if expires_s is not None:
            expires_s -= passed
            if expires_s <= 0:
                return "expired"
        if passed > self._config.max_age_s:
            return "too_old"
        return Kept(link, kind, topic, payload, document, key, expires_s, number)


def _learned(db: sqlite3.Connection) -> Learned:
    keys = db.execute("SELECT link, key, seq FROM outbox WHERE set_aside IS NULL AND key IS NOT NULL").fetchall()
    return _held(db), {(link, key): number for link, key, number in keys}


def _held(db: sqlite3.Connection) -> dict[tuple[str, Kind], Held]:
    rows = db.execute("SELECT link, kind, count(*), sum(bytes) FROM outbox WHERE set_aside IS NULL GROUP BY kind, link")
    return {(link, kind): Held(messages, size) for link, kind, messages, size in rows}


def _total(held: dict[tuple[str, Kind], Held], kind: Kind) -> Held:
    """Of a kind, on all links."""
    of_kind = [one for (_, name), one in held.items() if name == kind]
    return Held(sum(one.messages for one in of_kind), sum(one.bytes for one in of_kind))


def _insert(db: sqlite3.Connection, one: Kept, now: Moment, reason: str | None) -> None:
    rest = json.dumps(one.rest | ({} if one.expires_s is None else {"expires_s": one.expires_s}))
    values = [one.link, one.kind, one.key, one.topic, one.payload, rest, *now]
    db.execute(
        "INSERT INTO outbox (link, kind, key, topic, payload, rest, boot, uptime_s, wall_s, bytes, set_aside, crc)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [*values, len(one.topic.encode()) + len(one.payload) + len(rest), reason, _crc(values)],
    )


def _drop(db: sqlite3.Connection, kind: Kind, drops: dict[int, Reason]) -> str:
    """Delete these, and count them by their reasons. Returns that in words."""
    db.executemany("DELETE FROM outbox WHERE seq = ?", [[number] for number in drops])
    counted = Counter(drops.values())
    db.executemany(
        "INSERT INTO outbox_drops (kind, reason, count) VALUES (?, ?, ?)"
        " ON CONFLICT (kind, reason) DO UPDATE SET count = count + excluded.count",
        [[kind, reason, count] for reason, count in counted.items()],
    )
    return ", ".join(f"{n} {kind}s {reason}" for reason, n in counted.items())


def look(path: Path) -> dict[str, Any]:
    """What is in the outbox of an agent that may be running, and what brokers refused, the latest last.

    Raises StateError where the file cannot be read.
    """
    if not path.exists():
        return NOTHING | {"refused": []}
    connections = ThreadConnections(path, read_only=True)
    try:
        db = connections.get()
        return _counts(db) | {"refused": _refused(db)}
    except sqlite3.Error as error:
        raise StateError(f"{path} cannot be read: {error}", hint=shut_out(path.parent)) from error
    finally:
        connections.close()


def _counts(db: sqlite3.Connection) -> dict[str, Any]:
    held = _held(db)
    found: dict[str, Any] = {f"{kind}s": _total(held, kind)._asdict() for kind in KINDS}
    drops = db.execute("SELECT kind || 's_' || reason, count FROM outbox_drops ORDER BY 1").fetchall()
    aside = db.execute("SELECT count(*) FROM outbox WHERE set_aside IS NOT NULL").fetchone()[0]
    return found | {"dropped": dict(drops), "set_aside": aside}


def _refused(db: sqlite3.Connection) -> list[dict[str, Any]]:
    rows = db.execute(
        "SELECT wall_s, link, kind, topic, bytes, set_aside FROM outbox WHERE set_aside IS NOT NULL ORDER BY seq"
    )
    names = ("timestamp", "link", "kind", "topic", "bytes", "reason")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _crc(values: Sequence[Any]) -> int:
    """Of link, kind, key, topic, payload, and the rest."""
    *before, payload, rest, boot, uptime_s, wall_s = values
    return zlib.crc32(payload, zlib.crc32(repr([*before, rest, boot, uptime_s, wall_s]).encode("utf-8", "replace")))
