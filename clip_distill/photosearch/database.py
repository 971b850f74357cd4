"""An index's SQLite file: its tables, a connection that is one transaction, and what its errors mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from clip_distill.system.errors import NotWritten

COLUMNS = (
    "id, path, size, modified, digest, taken, width, height, vector FROM photos",
    "path, size, modified, reason FROM unread",
    "photo, image FROM thumbs",
)
UNWRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS photos (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, modified INTEGER NOT NULL,
    digest INTEGER NOT NULL, taken INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    vector BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS unread (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS thumbs (photo INTEGER PRIMARY KEY, image BLOB NOT NULL);
"""


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose block is one transaction.

    Raises:
        NotWritten: The disk is full, or the folder read-only.
    """
    try:
        with closing(sqlite3.connect(path, timeout=60)) as database, database:
            # a path that is damaged is one that is gone: its photo is indexed anew
            database.text_factory = lambda content: content.decode(errors="replace")
            database.execute("PRAGMA synchronous = NORMAL")  # in WAL mode a crash may undo the last batch, no more
            yield database
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in UNWRITABLE:
            raise
        raise not_kept(path.parent, error) from error


def not_kept(folder: Path, error: Exception) -> NotWritten:
    """The error of an index that can't be kept where it should."""
    return NotWritten(
        f"{folder}: the index can't be kept there: {error}. What it has is kept; make room and run the same command "
        "again, or name another folder with --index, or another cache folder by CLIP_DISTILL_CACHE (or XDG_CACHE_HOME)"
    )
