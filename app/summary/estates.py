"""What processes that ended left in the backlog's file. Blocking; for the writer's thread. Raises sqlite3.Error."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from app.summary.schema import transaction

Alive = Callable[[str], bool]
"""Whether the owner of that name still runs."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A session's rows that are ours now."""

    key: int
    items: int
    size: int
    """Bytes."""
    last_seq: int


def orphans(db: sqlite3.Connection, alive: Alive) -> list[str]:
    """Ids of sessions that hold observations and whose process ended, in the order of their beginning."""
    rows = db.execute("SELECT name, owner FROM sessions WHERE items > 0 ORDER BY key").fetchall()
    lives = {owner: alive(owner) for _, owner in rows}
    return list(dict.fromkeys(name for name, owner in rows if not lives[owner]))


def claim(db: sqlite3.Connection, session_id: str, owner: str, alive: Alive) -> Claimed | None:
    """Takes one over; None when there is none of that id, or another process was quicker."""
    with transaction(db):
        rows = db.execute(
            "SELECT key, owner, items, bytes FROM sessions WHERE name = ? AND items > 0 ORDER BY key", (session_id,)
        ).fetchall()
        for key, held_by, items, size in rows:
            if not alive(held_by):
                db.execute("UPDATE sessions SET owner = ? WHERE key = ?", (owner, key))
                (last,) = db.execute("SELECT MAX(seq) FROM observations WHERE session = ?", (key,)).fetchone()
                return Claimed(key, items, size, last or 0)
    return None


def sweep(db: sqlite3.Connection, before: float, alive: Alive) -> int:
    """Removes orphans last written before this epoch second; how many observations that were."""
    dropped = 0
    with transaction(db):
        for key, owner, items, touched in db.execute("SELECT key, owner, items, touched FROM sessions").fetchall():
            if (touched < before or items <= 0) and not alive(owner):
                db.execute("DELETE FROM observations WHERE session = ?", (key,))
                db.execute("DELETE FROM sessions WHERE key = ?", (key,))
                dropped += items
    db.execute("PRAGMA incremental_vacuum(1024)").fetchall()  # gives pages back to the disk
    return dropped
