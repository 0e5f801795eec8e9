"""The tables of the backlog's file, and how it is opened. Blocking."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = 1
"""Of the tables below. A file of another version is set aside like a damaged one."""
_BUSY_S = 5.0
"""How long to wait for another process's transaction; they take milliseconds."""
_WAL_BYTES = 4 * 1024 * 1024
"""Left of the write-ahead log after a checkpoint."""

# `items` and `bytes` are kept beside the rows, so that the bounds are known without counting.
_TABLES = """
CREATE TABLE IF NOT EXISTS sessions (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    touched REAL NOT NULL,
    items INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS observations (
    session INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (session, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS summaries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session TEXT NOT NULL,
    at_ms REAL NOT NULL,
    saved REAL NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS summaries_by_session ON summaries (session, id);
"""


def connect(path: Path) -> sqlite3.Connection:
    """The file, checked and with its tables; made if it is missing. Transactions are ours to begin.

    With synchronous=NORMAL a kill of the process loses nothing that was committed; a power cut may lose the
    last commits, never the file (https://www.sqlite.org/pragma.html#pragma_synchronous).

    Raises:
        sqlite3.DatabaseError: damaged, of another version, or it cannot be had; see `trouble.reason`.
    """
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table, else it has no effect
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise _damaged(found)
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise _damaged(f"its tables are of version {version}, this program's of {VERSION}")
        db.executescript(_TABLES)
        db.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, one writer at a time over all processes."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite itself may have rolled back, as on a full disk
            db.execute("ROLLBACK")
        raise


def _damaged(message: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(message)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
