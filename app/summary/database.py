"""The SQLite file of the summaries: observations that overflow memory, and each session's last summaries.

Everything here blocks; only the writer's thread of `spill` calls it. Several processes share the file. Each touches
only rows of sessions that it owns: a process holds a lock (flock) on an owner file of its own, and the kernel releases
that lock however the process ends, so that the others can find out whose sessions are orphans.
"""

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

from app import sqlite
from app.settings import SummarySettings
from app.sqlite import transaction
from app.summary.observations import DamagedRecord, EncodedObservation, Observation, disjoint, merge_records

log = logging.getLogger(__name__)

NAME = "backlog.sqlite"
VERSION = 1
"""Version of the tables below. A file of another version is set aside like a damaged one."""
BUSY_S = 5.0
"""Seconds that a transaction waits for another process's transaction; each takes milliseconds."""
_WAL_BYTES = 4 * 1024 * 1024
"""Bytes of the write-ahead log that remain after a checkpoint."""
_DAMAGED_FILES = 3
"""Damaged files that are kept for inspection. Older ones are deleted so that they cannot fill the disk."""
_SPARE_PAIRS = 64
"""Pairs merged beyond what is needed, so that not every batch has to merge."""
_BYTE_PASSES = 2
"""Merges that an `append` tries in order to get under the bound of bytes; after these it raises NoRoom."""
_MOST_SUMMARIES = 20_000
"""Summaries that the file keeps, of all sessions together."""

# `items` and `bytes` are stored beside the rows, so that the bounds are checked without counting rows.
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

# The order of `observations.neighbours`. SQLite sorts, and releases the GIL meanwhile.
_PAIRS = """
SELECT seq, next FROM (
    SELECT seq,
        LAG(seq) OVER newest AS next,
        1.0 * (frames + LAG(frames) OVER newest) / SUM(frames) OVER newest AS share
    FROM observations WHERE session = ? WINDOW newest AS (ORDER BY seq DESC)
) WHERE next IS NOT NULL ORDER BY share, seq LIMIT ?
"""


# --- results ---


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The changes of `SpillFile.append` besides the new rows, and the session's totals on disk afterwards."""

    merged: int
    """Rows that were merged into a neighbour."""
    torn: int
    """Rows that could not be decoded when they were merged, and were deleted."""
    items: int
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class ClaimedRows:
    """Rows of an ended process that this process took over."""

    key: int
    items: int
    size: int
    """Bytes."""
    last_seq: int


class NoRoom(Exception):
    """The file is full because of other sessions: SUMMARY_DISK_BYTES covers all, so merging one does not help."""


# --- the file ---


class SpillFile:
    """The open file. Each method is one transaction: all of it takes effect, or nothing. All may raise sqlite3.Error.

    A session has a `key` in the file: an integer that is never reused. Its name is not enough, because a client may
    open a second session of the same name.
    """

    def __init__(
        self, folder: Path, settings: SummarySettings, owner: OwnerLock, on_trouble: Callable[[sqlite3.Error], None]
    ) -> None:
        """Opens the file, or creates it. A damaged file is set aside and a new one is created.

        Args:
            owner: the lock of this process; acquired here if it is not held yet.
            on_trouble: called with an error that does not fail the call, such as the damage of the former file.

        Raises:
            sqlite3.Error, OSError: the file cannot be opened; see `trouble_reason`.
        """
        self.folder = folder
        self.path = folder / NAME
        self.owner = owner
        self._settings = settings
        self._on_trouble = on_trouble
        self._handed_out: dict[int, int] = {}
        """By key: the last seq that `take` returned, of sessions whose rows could not be deleted then."""
        self._unended: dict[int, bool] = {}
        """By key: sessions whose `end` failed, and whether their rows are to be kept."""
        with exclusive(folder):
            owner.acquire()
            owner.sweep()
            try:
                self.db = connect(self.path)
            except sqlite3.DatabaseError as error:
                if trouble_reason(error) != "damaged":
                    raise
                on_trouble(error)
                _rename_damaged(self.path)
                self.db = connect(self.path)
            self._inode = os.stat(self.path).st_ino

    @property
    def moved(self) -> bool:
        """Whether another program renamed or deleted the file, so that what is written to it would be lost.

        Raises:
            OSError: the folder cannot be read.
        """
        try:
            return os.stat(self.path).st_ino != self._inode
        except FileNotFoundError:
            return True

    def close(self) -> None:
        self.db.close()

    def set_aside(self) -> None:
        """Closes the file and renames it as damaged.

        If another process has renamed it already, the file that replaced it stays.
        """
        self.close()
        with exclusive(self.folder):
            if not self.moved:
                _rename_damaged(self.path)

    # --- observations of this process's sessions ---

    def begin(self, session_id: str) -> int:
        """Inserts a session without rows; returns its key."""
        with transaction(self.db):
            cursor = self.db.execute(
                "INSERT INTO sessions (name, owner, touched) VALUES (?, ?, ?)",
                (session_id, self.owner.name, time.time()),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def append(self, key: int, records: Sequence[EncodedObservation]) -> AppendResult:
        """Adds records whose seq the session does not have yet; merges its own rows where a bound is exceeded.

        Raises:
            NoRoom: merging does not help. Nothing was changed.
        """
        with transaction(self.db):
            self._delete_handed_out(key)
            self.db.executemany(
                "INSERT INTO observations (session, seq, frames, data) VALUES (?, ?, ?, ?)",
                [(key, record.seq, record.frames, record.data) for record in records],
            )
            self._count(key, len(records), sum(len(record.data) for record in records))
            merged, torn = self._make_room(key)
            items, size = self._holds(key)
        self._handed_out.pop(key, None)  # deleted above; a record that came back to memory may have a lower seq
        return AppendResult(merged, torn, items, size)

    def take(self, key: int, items: int, size: int) -> list[EncodedObservation]:
        """Deletes and returns the oldest records: at most `items` of them and `size` bytes, but at least one.

        Rows that cannot be deleted, as on a full disk, are not returned again while this process runs.
        """
        records = self._oldest(key, items, size)
        if records:
            self._handed_out[key] = records[-1].seq
            try:
                with transaction(self.db):
                    self._delete_handed_out(key)
            except sqlite3.OperationalError as error:
                self._on_trouble(error)
            else:
                self._handed_out.pop(key)
        return records

    def end(self, key: int, *, keep: bool) -> None:
        """Ends a session. With `keep` its rows become an orphan's, which any process may claim; else they are deleted.

        `end_again` repeats an end that failed. Otherwise the rows would be summarized twice after a restart, or
        would stay unclaimed until one.
        """
        self._unended[key] = keep
        with transaction(self.db):
            if keep:
                self._delete_handed_out(key)
                self.db.execute("UPDATE sessions SET owner = '', touched = ? WHERE key = ?", (time.time(), key))
                self.db.execute("DELETE FROM sessions WHERE key = ? AND items <= 0", (key,))
            else:
                self.db.execute("DELETE FROM observations WHERE session = ?", (key,))
                self.db.execute("DELETE FROM sessions WHERE key = ?", (key,))
        self._handed_out.pop(key, None)
        del self._unended[key]

    def end_again(self) -> None:
        """Repeats the ends that failed; stops at the first that fails again."""
        for key, keep in [*self._unended.items()]:
            self.end(key, keep=keep)

    # --- recovery: sessions of processes that ended ---

    def orphans(self) -> list[str]:
        """Ids of sessions that hold observations and whose process ended, ordered by when they began."""
        rows = self.db.execute("SELECT name, owner FROM sessions WHERE items > 0 ORDER BY key").fetchall()
        alive = {owner: self.owner.alive(owner) for _, owner in rows}
        return list(dict.fromkeys(name for name, owner in rows if not alive[owner]))

    def claim(self, session_id: str) -> ClaimedRows | None:
        """Makes this process the owner of an orphan; None if there is none of that id, or another process has it."""
        with transaction(self.db):
            rows = self.db.execute(
                "SELECT key, owner, items, bytes FROM sessions WHERE name = ? AND items > 0 ORDER BY key", (session_id,)
            ).fetchall()
            for key, owner, items, size in rows:
                if not self.owner.alive(owner):
                    self.db.execute("UPDATE sessions SET owner = ? WHERE key = ?", (self.owner.name, key))
                    (last,) = self.db.execute("SELECT MAX(seq) FROM observations WHERE session = ?", (key,)).fetchone()
                    return ClaimedRows(key, items, size, last or 0)
        return None

    def sweep_orphans(self, before: float) -> int:
        """Deletes orphans last written before this epoch second; returns the number of observations deleted."""
        dropped = 0
        with transaction(self.db):
            rows = self.db.execute("SELECT key, owner, items, touched FROM sessions").fetchall()
            for key, owner, items, touched in rows:
                if (touched < before or items <= 0) and not self.owner.alive(owner):
                    self.db.execute("DELETE FROM observations WHERE session = ?", (key,))
                    self.db.execute("DELETE FROM sessions WHERE key = ?", (key,))
                    dropped += items
        self.db.execute("PRAGMA incremental_vacuum(1024)").fetchall()  # returns free pages to the file system
        return dropped

    # --- the summary store: any worker can read every session's last summaries, also after a restart ---

    def save_summaries(self, session_id: str, summaries: Iterable[tuple[float, bytes]], keep: int) -> None:
        """Adds summaries, each with its epoch milliseconds; keeps the session's last `keep`."""
        with transaction(self.db):
            self.db.executemany(
                "INSERT INTO summaries (session, at_ms, saved, data) VALUES (?, ?, ?, ?)",
                [(session_id, at_ms, time.time(), data) for at_ms, data in summaries],
            )
            self.db.execute(
                "DELETE FROM summaries WHERE session = ? AND id <= "
                "(SELECT id FROM summaries WHERE session = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (session_id, session_id, keep),
            )
            self.db.execute("DELETE FROM summaries WHERE id <= (SELECT MAX(id) FROM summaries) - ?", (_MOST_SUMMARIES,))

    def summaries(self, session_id: str, count: int) -> list[bytes]:
        """The session's last `count` summaries, oldest first."""
        rows = self.db.execute(
            "SELECT data FROM summaries WHERE session = ? ORDER BY id DESC LIMIT ?", (session_id, count)
        )
        return [data for (data,) in rows.fetchall()[::-1]]

    def touch_summaries(self, sessions: Iterable[str], before: float, now: float) -> None:
        """Marks the summaries of open sessions as saved at `now` if they were saved before the epoch second `before`.

        Other workers sweep the same file and do not know which sessions are open here.
        """
        old = [
            (now, session_id)
            for session_id in sessions
            for (saved,) in self.db.execute("SELECT MAX(saved) FROM summaries WHERE session = ?", (session_id,))
            if saved is not None and saved < before
        ]
        if old:
            with transaction(self.db):
                self.db.executemany("UPDATE summaries SET saved = ? WHERE session = ?", old)

    def sweep_summaries(self, before: float) -> None:
        """Deletes the summaries of sessions whose newest summary was saved before this epoch second."""
        with transaction(self.db):
            self.db.execute(
                "DELETE FROM summaries WHERE session IN "
                "(SELECT session FROM summaries GROUP BY session HAVING MAX(saved) < ?)",
                (before,),
            )

    # --- inside a transaction ---

    def _oldest(self, key: int, items: int, size: int) -> list[EncodedObservation]:
        records: list[EncodedObservation] = []
        cursor = self.db.execute(
            "SELECT seq, frames, data FROM observations WHERE session = ? AND seq > ? ORDER BY seq LIMIT ?",
            (key, self._handed_out.get(key, -1), items),
        )
        for record in map(EncodedObservation._make, cursor):
            size -= len(record.data)
            if records and size < 0:
                break
            records.append(record)
        cursor.close()  # an open cursor would keep the write-ahead log from being checkpointed
        return records

    def _delete_handed_out(self, key: int) -> None:
        upto = self._handed_out.get(key)
        if upto is None:
            return
        where = (key, upto)
        items, size = self.db.execute(
            "SELECT COUNT(*), TOTAL(LENGTH(data)) FROM observations WHERE session = ? AND seq <= ?", where
        ).fetchone()
        self.db.execute("DELETE FROM observations WHERE session = ? AND seq <= ?", where)
        self._count(key, -items, -int(size))

    def _count(self, key: int, items: int, size: int) -> None:
        self.db.execute(
            "UPDATE sessions SET items = items + ?, bytes = bytes + ?, touched = ? WHERE key = ?",
            (items, size, time.time(), key),
        )

    def _holds(self, key: int) -> tuple[int, int]:
        items, size = self.db.execute("SELECT items, bytes FROM sessions WHERE key = ?", (key,)).fetchone()
        return items, size

    def _excess(self, key: int) -> tuple[int, bool]:
        """Items over the session's bound, and whether the bytes of all sessions are over theirs."""
        items, _ = self._holds(key)
        (size,) = self.db.execute("SELECT SUM(bytes) FROM sessions").fetchone()
        return items - self._settings.summary_disk_items, size > self._settings.summary_disk_bytes

    def _make_room(self, key: int) -> tuple[int, int]:
        """Merges until the bounds are kept; returns the numbers of rows merged and torn."""
        merged = torn = passes = 0
        while True:
            excess, too_large = self._excess(key)
            if excess <= 0 and not too_large:
                return merged, torn
            if excess <= 0:
                passes += 1  # merging all of this session cannot free the bytes that other sessions hold
            items, _ = self._holds(key)
            merged_now, torn_now = self._merge(key, max(excess, 0) + min(_SPARE_PAIRS, items // 8) or 1)
            merged, torn = merged + merged_now, torn + torn_now
            if passes > _BYTE_PASSES or not (merged_now or torn_now):
                raise NoRoom

    def _merge(self, key: int, wanted: int) -> tuple[int, int]:
        """Merges at most `wanted` pairs of neighbours; returns the numbers of rows merged and torn."""
        pairs = self.db.execute(_PAIRS, (key, 3 * wanted)).fetchall()
        merged = torn = 0
        for seq, following in disjoint(pairs, wanted):
            a, b = self._record(key, seq), self._record(key, following)
            try:
                both = merge_records(a, b)
            except DamagedRecord:
                torn += sum(self._delete_torn(key, record) for record in (a, b))
            else:
                self._replace(key, a, b, both)
                merged += 1
        return merged, torn

    def _record(self, key: int, seq: int) -> EncodedObservation:
        where = (key, seq)
        row = self.db.execute("SELECT seq, frames, data FROM observations WHERE session = ? AND seq = ?", where)
        return EncodedObservation._make(row.fetchone())

    def _replace(self, key: int, a: EncodedObservation, b: EncodedObservation, both: EncodedObservation) -> None:
        self.db.execute("DELETE FROM observations WHERE session = ? AND seq = ?", (key, b.seq))
        self.db.execute(
            "UPDATE observations SET frames = ?, data = ? WHERE session = ? AND seq = ?",
            (both.frames, both.data, key, a.seq),
        )
        self._count(key, -1, len(both.data) - len(a.data) - len(b.data))

    def _delete_torn(self, key: int, record: EncodedObservation) -> bool:
        """Deletes the record if it cannot be decoded; returns whether it did."""
        try:
            Observation.decode(record.data)
        except DamagedRecord:
            self.db.execute("DELETE FROM observations WHERE session = ? AND seq = ?", (key, record.seq))
            self._count(key, -1, -len(record.data))
            return True
        return False


# --- opening the file ---


def connect(path: Path) -> sqlite3.Connection:
    """Opens the file, checks it and creates missing tables. The caller begins transactions, see `sqlite.transaction`.

    With synchronous=NORMAL a killed process loses nothing that was committed; a power cut may lose the last commits,
    but never damages the file (https://www.sqlite.org/pragma.html#pragma_synchronous).

    Raises:
        sqlite3.DatabaseError: damaged, of another version, or not to be opened; see `trouble_reason`.
    """
    db = sqlite.connect(path, busy_s=BUSY_S, pragmas=["auto_vacuum = INCREMENTAL"])
    try:
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


def _damaged(message: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(message)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _rename_damaged(path: Path) -> None:
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}")
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    log.error(
        "summaries: %s is damaged; it was renamed to %s, and the observations in it will not be summarized",
        path,
        aside.name,
    )
    damaged = sorted(
        found for found in path.parent.glob(f"{path.name}.damaged-*") if not found.name.endswith(("-wal", "-shm"))
    )
    for old in damaged[:-_DAMAGED_FILES]:
        for suffix in ("-wal", "-shm", ""):
            old.with_name(old.name + suffix).unlink(missing_ok=True)


# --- the lock that shows which processes live ---

_OWNER_PREFIX = "owner-"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Runs the block in one process at a time: opening, setting aside and sweeping. Creates the folder if need be.

    Raises:
        OSError: the folder cannot be created or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class OwnerLock:
    """A lock that this process holds while it lives; its `name` is the owner of rows. All methods may raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = f"{_OWNER_PREFIX}{uuid.uuid4().hex}"
        self._file: int | None = None

    def acquire(self) -> None:
        """Locks a file of this name. Call it inside `exclusive`, so that no process sweeps the file before the lock."""
        if self._file is not None and (self._folder / self.name).exists():
            return
        self.close()
        self._file = os.open(self._folder / self.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self._file, f"{os.getpid()}\n".encode())

    def close(self) -> None:
        """Deletes the file and releases the lock."""
        if self._file is not None:
            try:
                (self._folder / self.name).unlink(missing_ok=True)
            finally:  # release the lock in any case: while it is held, other processes take this one for alive
                os.close(self._file)
                self._file = None

    def alive(self, name: str) -> bool:
        """Whether the process with the lock of that name still runs. False for '', the owner of released sessions."""
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
        """Deletes the files of processes that ended. Call it inside `exclusive`."""
        for path in self._folder.glob(f"{_OWNER_PREFIX}*"):
            if not self.alive(path.name):
                path.unlink(missing_ok=True)


# --- errors of the disk, as the counter and the log name them ---

_REASON_BY_CODE = {
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
    "full": "free space on the disk of STATE_DIR, or lower SUMMARY_DISK_BYTES",
    "io": "the disk of STATE_DIR is over a quota or failing: look at the kernel's log",
    "busy": "another process holds the file: look for one that hangs",
    "unavailable": "STATE_DIR must be a folder on a local disk that the service may write",
}
"""By reason: what the operator can do."""


def trouble_reason(error: sqlite3.Error | OSError) -> str:
    """`full`, `io`, `damaged`, `busy`, `unavailable` or `other`."""
    if isinstance(error, OSError):
        return "full" if error.errno in _FULL else "unavailable"
    code = getattr(error, "sqlite_errorcode", None)
    # Extended codes add to the low byte.
    return "other" if code is None else _REASON_BY_CODE.get(code & 0xFF, "other")
