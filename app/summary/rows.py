"""The observations of sessions that this process owns, in the backlog's file. Blocking; for the writer's thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.settings import SummarySettings
from app.summary.observations import DamagedRecord, Observation, Row, disjoint, merge_records
from app.summary.schema import transaction
from app.summary.trouble import NoRoom

_SPARE = 64
"""Pairs folded beyond what is needed, so that not every batch folds."""
_PASSES = 2
"""Of folding, for bytes; then there is no room."""

# The order of `folding.neighbours`. SQLite sorts, and frees the GIL meanwhile.
_PAIRS = """
SELECT seq, next FROM (
    SELECT seq,
        LAG(seq) OVER newest AS next,
        1.0 * (frames + LAG(frames) OVER newest) / SUM(frames) OVER newest AS share
    FROM observations WHERE session = ? WINDOW newest AS (ORDER BY seq DESC)
) WHERE next IS NOT NULL ORDER BY share, seq LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class Appended:
    """What an `append` did beside it, and what the session holds on disk now."""

    merged: int
    torn: int
    """Rows met while folding that could not be read, and were removed."""
    items: int
    size: int
    """Bytes."""


class Rows:
    """Every method is a transaction of its own: all or nothing. Raises sqlite3.Error."""

    def __init__(
        self, db: sqlite3.Connection, settings: SummarySettings, on_trouble: Callable[[sqlite3.Error], None]
    ) -> None:
        """`on_trouble` hears of a failure that need not fail the call."""
        self._db = db
        self._settings = settings
        self._on_trouble = on_trouble
        self._given: dict[int, int] = {}
        """Last seq handed out, of sessions whose rows could not be deleted then."""
        self._unended: dict[int, bool] = {}
        """Sessions whose end failed, and whether their rows are to be kept."""

    def begin(self, session_id: str, owner: str) -> int:
        """The key of a session that holds nothing yet."""
        with transaction(self._db):
            cursor = self._db.execute(
                "INSERT INTO sessions (name, owner, touched) VALUES (?, ?, ?)", (session_id, owner, time.time())
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def append(self, key: int, rows: Sequence[Row]) -> Appended:
        """Adds rows of any seq that is not there; folds the session's own where the bounds are passed.

        Raises:
            NoRoom: that does not help. Nothing was changed.
        """
        with transaction(self._db):
            self._delete_given(key)
            self._db.executemany(
                "INSERT INTO observations (session, seq, frames, data) VALUES (?, ?, ?, ?)",
                [(key, row.seq, row.frames, row.data) for row in rows],
            )
            self._count(key, len(rows), sum(len(row.data) for row in rows))
            merged, torn = self._make_room(key)
            items, size = self._holds(key)
        self._given.pop(key, None)  # they are deleted now; a row that was given back may have a lower seq
        return Appended(merged, torn, items, size)

    def take(self, key: int, items: int, size: int) -> list[Row]:
        """The oldest, at most so many items and bytes but at least one; they are gone from the file.

        Where they cannot be deleted, as on a full disk, they are not handed out again in this process's life.
        """
        rows = self._oldest(key, items, size)
        if rows:
            self._given[key] = rows[-1].seq
            try:
                with transaction(self._db):
                    self._delete_given(key)
            except sqlite3.OperationalError as error:
                self._on_trouble(error)
            else:
                self._given.pop(key)
        return rows

    def end(self, key: int, *, keep: bool) -> None:
        """The session is over. `keep`: its rows are an orphan's now, for whoever looks for one.

        What fails is repeated by `end_again`: else the rows would be told twice after a restart, or not before one.
        """
        self._unended[key] = keep
        with transaction(self._db):
            if keep:
                self._delete_given(key)
                self._db.execute("UPDATE sessions SET owner = '', touched = ? WHERE key = ?", (time.time(), key))
                self._db.execute("DELETE FROM sessions WHERE key = ? AND items <= 0", (key,))
            else:
                self._db.execute("DELETE FROM observations WHERE session = ?", (key,))
                self._db.execute("DELETE FROM sessions WHERE key = ?", (key,))
        self._given.pop(key, None)
        del self._unended[key]

    def end_again(self) -> None:
        """Repeats the ends that failed, as far as the disk takes them now."""
        for key, keep in [*self._unended.items()]:
            self.end(key, keep=keep)

    def _oldest(self, key: int, items: int, size: int) -> list[Row]:
        rows: list[Row] = []
        cursor = self._db.execute(
            "SELECT seq, frames, data FROM observations WHERE session = ? AND seq > ? ORDER BY seq LIMIT ?",
            (key, self._given.get(key, -1), items),
        )
        for row in map(Row._make, cursor):
            size -= len(row.data)
            if rows and size < 0:
                break
            rows.append(row)
        cursor.close()  # an open one would hold the write-ahead log back
        return rows

    def _delete_given(self, key: int) -> None:
        upto = self._given.get(key)
        if upto is None:
            return
        where = (key, upto)
        items, size = self._db.execute(
            "SELECT COUNT(*), TOTAL(LENGTH(data)) FROM observations WHERE session = ? AND seq <= ?", where
        ).fetchone()
        self._db.execute("DELETE FROM observations WHERE session = ? AND seq <= ?", where)
        self._count(key, -items, -int(size))

    def _count(self, key: int, items: int, size: int) -> None:
        self._db.execute(
            "UPDATE sessions SET items = items + ?, bytes = bytes + ?, touched = ? WHERE key = ?",
            (items, size, time.time(), key),
        )

    def _holds(self, key: int) -> tuple[int, int]:
        items, size = self._db.execute("SELECT items, bytes FROM sessions WHERE key = ?", (key,)).fetchone()
        return items, size

    def _over(self, key: int) -> tuple[int, bool]:
        """Items over the session's bound, and whether the bytes of all sessions are over theirs."""
        items, _ = self._holds(key)
        (size,) = self._db.execute("SELECT SUM(bytes) FROM sessions").fetchone()
        return items - self._settings.summary_disk_items, size > self._settings.summary_disk_bytes

    def _make_room(self, key: int) -> tuple[int, int]:
        merged = torn = passes = 0
        while True:
            over, too_large = self._over(key)
            if over <= 0 and not too_large:
                return merged, torn
            if over <= 0:
                passes += 1  # bytes that other sessions hold cannot be had by folding this one to nothing
            items, _ = self._holds(key)
            folded, broken = self._fold(key, max(over, 0) + min(_SPARE, items // 8) or 1)
            merged, torn = merged + folded, torn + broken
            if passes > _PASSES or not (folded or broken):
                raise NoRoom

    def _fold(self, key: int, wanted: int) -> tuple[int, int]:
        """Folds so many pairs of neighbours; how many were, and how many rows could not be read."""
        pairs = self._db.execute(_PAIRS, (key, 3 * wanted)).fetchall()
        folded = torn = 0
        for seq, following in disjoint(pairs, wanted):
            a, b = self._row(key, seq), self._row(key, following)
            try:
                both = merge_records(a, b)
            except DamagedRecord:
                torn += sum(self._remove_torn(key, one) for one in (a, b))
            else:
                self._replace(key, a, b, both)
                folded += 1
        return folded, torn

    def _row(self, key: int, seq: int) -> Row:
        where = (key, seq)
        row = self._db.execute("SELECT seq, frames, data FROM observations WHERE session = ? AND seq = ?", where)
        return Row._make(row.fetchone())

    def _replace(self, key: int, a: Row, b: Row, both: Row) -> None:
        self._db.execute("DELETE FROM observations WHERE session = ? AND seq = ?", (key, b.seq))
        self._db.execute(
            "UPDATE observations SET frames = ?, data = ? WHERE session = ? AND seq = ?",
            (both.frames, both.data, key, a.seq),
        )
        self._count(key, -1, len(both.data) - len(a.data) - len(b.data))

    def _remove_torn(self, key: int, row: Row) -> bool:
        try:
            Observation.decode(row.data)
        except DamagedRecord:
            self._db.execute("DELETE FROM observations WHERE session = ? AND seq = ?", (key, row.seq))
            self._count(key, -1, -len(row.data))
            return True
        return False
