"""The last summaries of sessions, beside the backlog: any worker can answer for them, also after a restart.

Blocking; for the writer's thread. Raises sqlite3.Error.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable

from app.summary.schema import transaction

MOST = 20_000
"""Of all sessions together."""


def save(db: sqlite3.Connection, session_id: str, summaries: Iterable[tuple[float, bytes]], keep: int) -> None:
    """Adds some, each with its epoch milliseconds; keeps the session's last `keep`."""
    with transaction(db):
        db.executemany(
            "INSERT INTO summaries (session, at_ms, saved, data) VALUES (?, ?, ?, ?)",
            [(session_id, at_ms, time.time(), data) for at_ms, data in summaries],
        )
        db.execute(
            "DELETE FROM summaries WHERE session = ? AND id <= "
            "(SELECT id FROM summaries WHERE session = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (session_id, session_id, keep),
        )
        db.execute("DELETE FROM summaries WHERE id <= (SELECT MAX(id) FROM summaries) - ?", (MOST,))


def last(db: sqlite3.Connection, session_id: str, count: int) -> list[bytes]:
    """The newest, the oldest of them first."""
    rows = db.execute("SELECT data FROM summaries WHERE session = ? ORDER BY id DESC LIMIT ?", (session_id, count))
    return [data for (data,) in rows.fetchall()[::-1]]


def touch(db: sqlite3.Connection, sessions: Iterable[str], before: float, now: float) -> None:
    """Makes those of these sessions, saved before one epoch second, as new as `now`: the sessions are open still.

    Other workers sweep the same file, and do not know of them otherwise.
    """
    old = [
        (now, session_id)
        for session_id in sessions
        for (saved,) in db.execute("SELECT MAX(saved) FROM summaries WHERE session = ?", (session_id,))
        if saved is not None and saved < before
    ]
    if old:
        with transaction(db):
            db.executemany("UPDATE summaries SET saved = ? WHERE session = ?", old)


def sweep(db: sqlite3.Connection, before: float) -> None:
    """Removes those of sessions whose newest is older than this epoch second."""
    with transaction(db):
        db.execute(
            "DELETE FROM summaries WHERE session IN "
            "(SELECT session FROM summaries GROUP BY session HAVING MAX(saved) < ?)",
            (before,),
        )
