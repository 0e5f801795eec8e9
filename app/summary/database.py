"""The tables of the backlog's file, and how it is opened. Blocking."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.settings import SummarySettings
from app.summary.observations import DamagedRecord, Observation, Row, disjoint, merge_records

# --- the tables ---

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


# --- what can be wrong with the disk ---

_BY_CODE = {
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_IOERR: "io",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_READONLY: "unavailable",
    sqlite3.SQLITE_CANTOPEN: "unavailable",
    sqlite3.SQLITE_PERM: "unavailable",
    sqlite3.SQLITE_AUTH: "unavailable",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

ADVICE = {
    "full": "make room on the disk of STATE_DIR, or lower SUMMARY_DISK_BYTES",
    "io": "the disk of STATE_DIR is full over a quota, or failing: look at the kernel's log",
    "busy": "another process holds the file: look for one that hangs",
    "unavailable": "STATE_DIR must be a folder on a local disk that the service may write",
}


class NoRoom(Exception):
    """Folding the session's own rows does not help: SUMMARY_DISK_BYTES is for all sessions, and others hold them."""


def reason(error: sqlite3.Error | OSError) -> str:
    """`full`, `io`, `damaged`, `busy`, `unavailable` or `other`."""
    if isinstance(error, OSError):
        return "full" if error.errno in _FULL else "unavailable"
    code = getattr(error, "sqlite_errorcode", None)
    return "other" if code is None else _BY_CODE.get(code & 0xFF, "other")  # the low byte; extended codes add to it


# --- whose sessions are whose ---

_PREFIX = "owner-"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one process at a time is inside: for opening, setting aside and sweeping. The folder is made if need be.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Owner:
    """This process, as the other ones see it. All methods may raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = f"{_PREFIX}{uuid.uuid4().hex}"
        self._file: int | None = None

    def hold(self) -> None:
        """Says that this process lives. Call inside `alone`, so that nobody sweeps the file before it is locked."""
        if self._file is not None and (self._folder / self.name).exists():
            return
        self.close()
        self._file = os.open(self._folder / self.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self._file, f"{os.getpid()}\n".encode())

    def close(self) -> None:
        if self._file is not None:
            try:
                (self._folder / self.name).unlink(missing_ok=True)
            finally:  # the lock above all: with it, the process would live for ever in the eyes of the others
                os.close(self._file)
                self._file = None

    def alive(self, name: str) -> bool:
        """Whether the process of that name still runs. A session that was let go has the name ''."""
        if name == self.name:
            return True
        if not name:
            return False
        try:
            with (self._folder / name).open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def sweep(self) -> None:
        """Removes the files of processes that ended. Call inside `alone`."""
        for path in self._folder.glob(f"{_PREFIX}*"):
            if not self.alive(path.name):
                path.unlink(missing_ok=True)


# --- the file ---

log = logging.getLogger(__name__)

NAME = "backlog.sqlite"
_ASIDE_KEPT = 3
"""Damaged files kept for whoever wants to look; they must not fill the disk."""


class SpillFile:
    """Open from its making to `close`."""

    def __init__(
        self, folder: Path, settings: SummarySettings, owner: Owner, on_trouble: Callable[[sqlite3.Error], None]
    ) -> None:
        """A damaged file is set aside, and a new one begun; `on_trouble` hears of it.

        Raises:
            sqlite3.Error, OSError: it cannot be had; see `trouble.reason`.
        """
        self.folder = folder
        self.path = folder / NAME
        self.owner = owner
        with alone(folder):
            owner.hold()
            owner.sweep()
            try:
                self.db = connect(self.path)
            except sqlite3.DatabaseError as error:
                if reason(error) != "damaged":
                    raise
                on_trouble(error)
                _rename(self.path)
                self.db = connect(self.path)
            self._inode = os.stat(self.path).st_ino
        self.rows = Rows(self.db, settings, on_trouble)

    @property
    def moved(self) -> bool:
        """Whether somebody else renamed or removed the file: nobody would find what is written to it.

        Raises:
            OSError: that cannot be told.
        """
        try:
            return os.stat(self.path).st_ino != self._inode
        except FileNotFoundError:
            return True

    def close(self) -> None:
        self.db.close()

    def set_aside(self) -> None:
        """Closes it as damaged. Another process may have set it aside before: its successor stays."""
        self.close()
        with alone(self.folder):
            if not self.moved:
                _rename(self.path)


def _rename(path: Path) -> None:
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}")
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    log.error(
        "summaries: %s is damaged; it was set aside as %s, and the observations in it are lost to the summaries",
        path,
        aside.name,
    )
    whole = sorted(one for one in path.parent.glob(f"{path.name}.damaged-*") if not one.name.endswith(("-wal", "-shm")))
    for old in whole[:-_ASIDE_KEPT]:
        for suffix in ("-wal", "-shm", ""):
            old.with_name(old.name + suffix).unlink(missing_ok=True)


# --- observations of sessions that this process owns ---

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


# --- what ended processes left ---

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


def sweep_observations(db: sqlite3.Connection, before: float, alive: Alive) -> int:
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


# --- the last summaries ---

_MOST_SUMMARIES = 20_000
"""Of all sessions together."""


def save_summaries(
    db: sqlite3.Connection, session_id: str, summaries: Iterable[tuple[float, bytes]], keep: int
) -> None:
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
        db.execute("DELETE FROM summaries WHERE id <= (SELECT MAX(id) FROM summaries) - ?", (_MOST_SUMMARIES,))


def last_summaries(db: sqlite3.Connection, session_id: str, count: int) -> list[bytes]:
    """The newest, the oldest of them first."""
    rows = db.execute("SELECT data FROM summaries WHERE session = ? ORDER BY id DESC LIMIT ?", (session_id, count))
    return [data for (data,) in rows.fetchall()[::-1]]


def touch_summaries(db: sqlite3.Connection, sessions: Iterable[str], before: float, now: float) -> None:
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


def sweep_summaries(db: sqlite3.Connection, before: float) -> None:
    """Removes those of sessions whose newest is older than this epoch second."""
    with transaction(db):
        db.execute(
            "DELETE FROM summaries WHERE session IN "
            "(SELECT session FROM summaries GROUP BY session HAVING MAX(saved) < ?)",
            (before,),
        )
