"""The tables of papers.db and their migrations. The only module that imports sqlite-utils.

sqlite-utils takes 9 MB of memory, so it is loaded only when a file's schema is behind: `PRAGMA user_version` counts
the migrations that were applied (docs/decisions/0003).
"""

import sqlite3
import uuid
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sqlite_utils import Database, Migrations

SCHEMA_VERSION: Final = 1


def ensure_schema(connection: sqlite3.Connection) -> None:
    """Create the tables, or bring those of an older version up to date. Raises sqlite3.Error."""
    if connection.execute("PRAGMA user_version").fetchone()[0] >= SCHEMA_VERSION:
        return
    from sqlite_utils import Database

    _migrations().apply(Database(connection))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


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
