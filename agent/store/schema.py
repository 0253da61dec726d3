"""The tables of papers.db and of agent.db, and their migrations. The only module that imports sqlite-utils.

sqlite-utils takes 9 MB of memory, so it is loaded only when a file's schema is behind: `PRAGMA user_version` counts
the migrations that were applied (docs/decisions/0003).
"""

import sqlite3
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from agent.crash_points import crash_point

if TYPE_CHECKING:
    from sqlite_utils import Database, Migrations

SCHEMA_VERSION: Final = 1
AGENT_SCHEMA_VERSION: Final = 3
INCREMENTAL: Final = 2
"""`PRAGMA auto_vacuum`: free pages are given back when asked to."""


def ensure_schema(connection: sqlite3.Connection) -> None:
    """Create the tables of papers.db, or bring those of an older version up to date. Raises sqlite3.Error."""
    _ensure(connection, SCHEMA_VERSION, _migrations)


def ensure_agent_schema(connection: sqlite3.Connection) -> None:
    """The same for agent.db: what the agent itself has to remember. Raises sqlite3.Error."""
    _ensure(connection, AGENT_SCHEMA_VERSION, _agent_migrations)
    if connection.execute("PRAGMA auto_vacuum").fetchone()[0] != INCREMENTAL:
        # So that the file shrinks again once its outbox is empty.
        connection.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
        crash_point("schema.agent:before-vacuum")
        connection.execute("VACUUM")


def _ensure(connection: sqlite3.Connection, version: int, migrations: Callable[[], "Migrations"]) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0] >= version:
        return
    from sqlite_utils import Database

    migrations().apply(Database(connection))
    crash_point("schema.ensure:before-version")
    connection.execute(f"PRAGMA user_version = {version}")


def _migrations() -> "Migrations":
    from sqlite_utils import Migrations

    migrations = Migrations("papers")

    @migrations()
    def create_tables(db: "Database") -> None:
        columns = {"key": int, "arxiv_id": str, "title": str, "abstract": str, "authors": str, "categories": str}
        columns |= {"published": str, "updated": str, "version": int, "crc": int}
        papers = db.table("papers")
        papers.create(columns, pk="key", not_null=set(columns) - {"key"})
        papers.create_index(["arxiv_id"], unique=True)
        db.table("removals").create({"change": int, "arxiv_id": str}, pk="change", not_null={"arxiv_id"})
        models = db.table("models")
        models.create({"id": int, "name": str}, pk="id", not_null={"name"})
        models.create_index(["name"], unique=True)
        crash_point("schema.papers:between-tables")
        # By hand for AUTOINCREMENT: a sequence number is never given twice, also after the last row was deleted.
        db.execute(
            """CREATE TABLE vectors (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                key INTEGER NOT NULL UNIQUE,
                model INTEGER NOT NULL REFERENCES models (id),
                vector BLOB NOT NULL,
                crc INTEGER NOT NULL
            )"""
        )
        db.table("vectors").create_index(["model"])  # counting must not page through the vectors
        # Which corpus this is: a cache of another one, or of this one before it was restored, is recognised by it.
        db.table("corpus").create({"id": str}, pk="id")
        db.execute("INSERT INTO corpus VALUES (?)", [uuid.uuid4().hex])

    return migrations


def _agent_migrations() -> "Migrations":
    from sqlite_utils import Migrations

    migrations = Migrations("agent")

    @migrations()
    def create_accepted_settings(db: "Database") -> None:
        columns = {"id": int, "version": int, "document": str, "crc": int}
        # A process killed between this and its note that it was done does it again.
        db.table("accepted_settings").create(columns, pk="id", not_null=set(columns) - {"id"}, if_not_exists=True)

    @migrations()
    def create_outbox(db: "Database") -> None:
        # By hand for AUTOINCREMENT: the order of arrival is kept also after the last row was deleted.
        db.execute(
            """CREATE TABLE IF NOT EXISTS outbox (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                link TEXT NOT NULL,
                kind TEXT NOT NULL,
                key BLOB,
                topic TEXT NOT NULL,
                payload BLOB NOT NULL,
                bytes INTEGER NOT NULL,
                rest TEXT NOT NULL,
                boot TEXT NOT NULL,
                uptime_s REAL NOT NULL,
                wall_s REAL NOT NULL,
                set_aside TEXT,
                crc INTEGER NOT NULL
            )"""
        )
        crash_point("schema.agent:between-tables")
        # What there is of a kind is told without paging through payloads.
        db.table("outbox").create_index(["set_aside", "kind", "link", "bytes", "key"], if_not_exists=True)
        # In the order of arrival, and by key, without sorting or paging through what else waits.
        db.execute("CREATE INDEX IF NOT EXISTS outbox_order ON outbox (kind, link) WHERE set_aside IS NULL")
        db.execute("CREATE INDEX IF NOT EXISTS outbox_kind ON outbox (kind) WHERE set_aside IS NULL")
        db.execute("CREATE INDEX IF NOT EXISTS outbox_key ON outbox (link, key) WHERE set_aside IS NULL")
        columns = {"kind": str, "reason": str, "count": int}
        pk = ("kind", "reason")
        db.table("outbox_drops").create(columns, pk=pk, not_null=set(columns), if_not_exists=True)

    @migrations()
    def create_journal(db: "Database") -> None:
        # By hand for AUTOINCREMENT, as above. `paper` is null where it was removed.
        db.execute(
            """CREATE TABLE IF NOT EXISTS journal (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                arxiv_id TEXT NOT NULL UNIQUE,
                paper TEXT,
                model TEXT,
                vector BLOB,
                crc INTEGER NOT NULL
            )"""
        )
        crash_point("schema.agent:no-remembered")
        columns = {"name": str, "document": str, "crc": int}
        db.table("remembered").create(columns, pk="name", not_null=set(columns), if_not_exists=True)

    return migrations
