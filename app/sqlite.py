"""SQLite files that several processes share: how they are opened, and transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def connect(
    path: Path, *, busy_s: float, pragmas: Iterable[str] = (), check_same_thread: bool = True
) -> sqlite3.Connection:
    """Opens a file, or creates it, in write-ahead mode: a process that is killed leaves it whole.

    The connection is in autocommit mode; `transaction` groups statements.

    Args:
        busy_s: seconds that a statement waits for another process's transaction.
        pragmas: statements before the switch to write-ahead mode; some take effect only in a file without tables.
        check_same_thread: False if several threads share the connection, one at a time.

    Raises:
        sqlite3.DatabaseError: the file is damaged, or cannot be opened.
    """
    db = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=check_same_thread)
    try:
        for pragma in pragmas:
            db.execute(f"PRAGMA {pragma}")
        db.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Commits the block, or rolls it back if it raises. One writer at a time over all processes."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite itself may have rolled back, as on a full disk
            db.execute("ROLLBACK")
        raise
