"""A process that uses agent.db, to be killed, and what may be left of it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from agent.config import OutboxConfig
from agent.store.accepted import Accepted, AcceptedSettings
from agent.store.agent_db import AgentDatabase
from agent.store.outbox import Outbox, look

WORK = """
import sys
from pathlib import Path
from agent.config import OutboxConfig
from agent.store.accepted import AcceptedSettings
from agent.store.agent_db import AgentDatabase
from agent.store.outbox import Kept, Outbox

database = AgentDatabase(Path(sys.argv[1]))
outbox = Outbox(database, OutboxConfig())
outbox.load()
AcceptedSettings(database).load()
AcceptedSettings(database).save({"search": {"max_results": 3}}, 7)
print("saved", flush=True)
for number in range(4):
    two = [Kept("local", "answer", "to", b"%d%d" % (number, part), {}, bytes([number, part]) * 16) for part in (0, 1)]
    outbox.put(two)
    print("put", number, flush=True)
held = outbox.next("local", "answer", 100)
outbox.refuse(held[0], "not allowed")
print("refused", flush=True)
print("removing some", flush=True)
outbox.remove(held[1:4])
print("removed some", flush=True)
outbox.remove(held[4:])
print("removed all", flush=True)
"""


def sound(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def check(path: Path, told: list[str]) -> None:
    """After a kill: whatever was said to be done is there, the rest wholly or not at all."""
    database = AgentDatabase(path)
    outbox = Outbox(database, OutboxConfig())
    outbox.load()
    accepted = AcceptedSettings(database).load()
    assert accepted == Accepted({"search": {"max_results": 3}}, 7) or (accepted is None and "saved" not in told)
    waiting = [one.payload.decode() for one in outbox.next("local", "answer", 100)]
    aside = look(path)["refused"]
    if "removing some" not in told:
        puts = [line.split()[1] for line in told if line.startswith("put")]
        kept = {*waiting, *("00" for _ in aside)}
        assert {number + part for number in puts for part in "01"} <= kept
        assert len(kept) % 2 == 0 or "refused" in told, "two that came together stay so"
        assert ("00" in waiting) + len(aside) == (len(kept) > 0), "waiting or set aside, not both"
    if "refused" in told:
        assert [one["reason"] for one in aside] == ["not allowed"]
    if "removed some" in told:
        assert not {"00", "01", "10", "11"} & set(waiting)
    database.close()
    assert sound(path)
