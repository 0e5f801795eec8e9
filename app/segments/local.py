"""Recorded video without AWS: one folder stands for buckets, queues and tables.

FOLDER/segments/{job}/…    segments to be analysed; removed when the job is done
FOLDER/jobs/{job}/…        final.mp4 and final.jsonl
FOLDER/.sightline.db       jobs and queues; intact after a kill at any moment
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from app import sqlite
from app.errors import MAX_MESSAGE, ConfigurationError, shortened
from app.files import written_atomically
from app.segments import events
from app.segments.keys import SegmentId, SegmentKey, input_key, split_file
from app.segments.ports import (
    Backend,
    Completion,
    Invocation,
    Job,
    JobStatus,
    Message,
    MessageGone,
    ObjectAddressRefused,
    ObjectMissing,
    Outcome,
    Resources,
    Trigger,
    WorkerResources,
)
from app.settings import SegmentSettings

# --- the folder ---

_VISIBILITY_S = 10
"""Default of SEGMENT_VISIBILITY_S in a folder: messages in hand come back so soon after a kill."""
_MAX_IN_FLIGHT = 2
"""Default of INFERENCE_MAX_IN_FLIGHT in a folder: one segment's video is encoded while another segment is analysed."""


class LocalFolder:
    """The resources of `submit`, `work` and `reassemble` in a folder, which other processes may have open as well.

    Raises:
        ConfigurationError: the folder cannot be used.
    """

    def __init__(self, folder: Path, settings: SegmentSettings) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.database = LocalDatabase(folder / ".sightline.db")
        except OSError as error:
            raise ConfigurationError(f"--local {folder}: should be a folder to write to ({error.strerror})") from None
        self.bucket = str(folder.resolve())
        given = settings.model_fields_set
        defaults = {"segment_visibility_s": _VISIBILITY_S, "inference_max_in_flight": _MAX_IN_FLIGHT}
        self.settings = settings.model_copy(
            update={name: value for name, value in defaults.items() if name not in given}
        )
        self.objects = FolderObjects(folder)
        self.segments, self.events, reassembly = (
            LocalQueue(self.database, name, visibility_s=self.settings.segment_visibility_s)
            for name in ("segments", "events", "reassembly")
        )
        self.resources = Resources(
            input_bucket=self.bucket,
            output_bucket=self.bucket,
            objects=self.objects,
            store=LocalStore(self.database),
            reassembly=reassembly,
            announce=self._announce,
            tidy=self._tidy,
        )

    def worker_resources(self, backend: Backend) -> WorkerResources:
        """The same for a worker with this backend."""
        return WorkerResources(**vars(self.resources), segments=self.segments, events=self.events, backend=backend)

    def _announce(self, segment: SegmentKey) -> None:
        """Sends the event that S3 would send, unless it is in the queue: a submission that goes on announces again."""
        body = events.body_of(events.Created(self.bucket, input_key(segment)))
        query = "SELECT 1 FROM messages WHERE queue = ? AND body = ?"
        if not self.database.rows(query, self.segments.name, body):
            self.segments.send(body)

    def _tidy(self, job_id: str) -> None:
        """Removes the job's segments, which the final files contain, and partial files of killed processes."""
        shutil.rmtree(Path(self.bucket, "segments", job_id), ignore_errors=True)
        shutil.rmtree(Path(self.bucket, "jobs", job_id, "segments"), ignore_errors=True)
        for partial in Path(self.bucket, "jobs", job_id).glob(".*.part"):  # of `written_atomically`
            partial.unlink(missing_ok=True)

    def close(self) -> None:
        self.database.close()


# --- objects ---


class FolderObjects:
    """`Objects` that are files below one folder. A file appears under its name once it is complete, also after a kill.

    Args:
        folder: nothing outside it is read or written, whatever an address or a link in it says.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def download(self, uri: str, path: Path) -> None:
        source = self._existing(uri)
        with written_atomically(path) as partial:
            shutil.copyfile(source, partial)

    def upload(self, path: Path, uri: str) -> None:
        with written_atomically(self._path(uri)) as partial:
            shutil.copyfile(path, partial)

    def read(self, uri: str) -> bytes:
        return self._existing(uri).read_bytes()

    def write(self, uri: str, data: bytes) -> None:
        with written_atomically(self._path(uri)) as partial:
            partial.write_bytes(data)

    def exists(self, uri: str) -> bool:
        return self._path(uri).is_file()

    def _existing(self, uri: str) -> Path:
        path = self._path(uri)
        if not path.is_file():
            raise ObjectMissing(f"{shortened(uri, MAX_MESSAGE)}: there is no such file")
        return path

    def _path(self, uri: str) -> Path:
        try:
            path = Path(split_file(uri)).resolve()
        except ValueError as error:
            raise ObjectAddressRefused(str(error)) from None
        if not path.is_relative_to(self._folder) or path == self._folder:
            raise ObjectAddressRefused(f"{shortened(uri, MAX_MESSAGE)}: outside {self._folder}")
        return path


# --- the SQLite file ---

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    job_id TEXT PRIMARY KEY, mode TEXT NOT NULL, source TEXT NOT NULL, created_at REAL NOT NULL,
    status TEXT NOT NULL, total INTEGER, reason TEXT, round INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS completions (
    job_id TEXT, idx INTEGER, output_uri TEXT NOT NULL, completed_at REAL NOT NULL, PRIMARY KEY (job_id, idx));
CREATE TABLE IF NOT EXISTS failures (
    job_id TEXT, idx INTEGER, attempt TEXT, reason TEXT NOT NULL, PRIMARY KEY (job_id, idx, attempt));
CREATE TABLE IF NOT EXISTS triggers (job_id TEXT PRIMARY KEY, taken_at REAL NOT NULL, sent INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS invocations (
    id TEXT PRIMARY KEY, job_id TEXT NOT NULL, idx INTEGER NOT NULL, mode TEXT NOT NULL, input_uri TEXT NOT NULL,
    output_uri TEXT NOT NULL, called_at REAL NOT NULL, state TEXT NOT NULL, reason TEXT, answer_uri TEXT,
    failure_uri TEXT, settled INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS invocations_open ON invocations (settled) WHERE settled = 0;
CREATE TABLE IF NOT EXISTS messages (
    queue TEXT, id TEXT, body TEXT NOT NULL, receipt TEXT NOT NULL, deliveries INTEGER NOT NULL,
    visible_at REAL NOT NULL, PRIMARY KEY (queue, id));
CREATE TABLE IF NOT EXISTS sent_once (queue TEXT, word TEXT, sent_at REAL NOT NULL, PRIMARY KEY (queue, word));
"""
_BUSY_S = 30.0
"""Seconds that a statement waits for another process's transaction."""


class LocalDatabase:
    """The SQLite file that stands for DynamoDB and SQS. Intact after a kill at any moment.

    The threads of a process share one connection, one thread at a time; other processes may have the file open as well.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite.connect(path, busy_s=_BUSY_S, check_same_thread=False)
        self._connection.executescript(_TABLES)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commits the block, or rolls it back if it raises. No other transaction runs at the same time."""
        with self._lock, sqlite.transaction(self._connection):
            yield self._connection

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """The rows of a query."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()


# --- queues ---

_ONCE_S = 300.0
"""Seconds in which messages with the same `once` word are sent once, as in a FIFO queue of SQS."""
_POLL_S = 0.2
"""Seconds between two looks for messages of other processes; those of this process wake the receiver at once."""


class LocalQueue:
    """`Queue` in the SQLite file.

    Args:
        visibility_s: seconds that a received message stays hidden.
    """

    def __init__(self, database: LocalDatabase, name: str, *, visibility_s: float) -> None:
        self.name = name
        self._database = database
        self._visibility_s = visibility_s
        self._sent = threading.Condition()

    def receive(self, wait_s: float) -> Message | None:
        deadline = time.monotonic() + wait_s
        while True:
            message = self._take()
            left = deadline - time.monotonic()
            if message is not None or left <= 0:
                return message
            with self._sent:
                self._sent.wait(min(_POLL_S, left))

    def _take(self) -> Message | None:
        now = time.time()
        with self._database.transaction() as db:
            found = db.execute(
                "SELECT id, body, deliveries FROM messages WHERE queue = ? AND visible_at <= ? ORDER BY rowid LIMIT 1",
                (self.name, now),
            ).fetchone()
            if found is None:
                return None
            message = Message(found[0], found[1], uuid.uuid4().hex, found[2] + 1)
            db.execute(
                "UPDATE messages SET receipt = ?, deliveries = ?, visible_at = ? WHERE queue = ? AND id = ?",
                (message.receipt, message.deliveries, now + self._visibility_s, self.name, message.id),
            )
        return message

    def delete(self, message: Message) -> None:
        self._change("DELETE FROM messages WHERE queue = ? AND id = ? AND receipt = ?", message)

    def extend(self, message: Message, seconds: float) -> None:
        self._hide(message, seconds)

    def release(self, message: Message, delay_s: float = 0.0) -> None:
        self._hide(message, delay_s)
        self._wake()

    def _hide(self, message: Message, seconds: float) -> None:
        # As in SQS: a message that is visible again may have another receiver, so its last one cannot hide it.
        self._change(
            "UPDATE messages SET visible_at = ? WHERE queue = ? AND id = ? AND receipt = ? AND visible_at > ?",
            message,
            before=(time.time() + seconds,),
            after=(time.time(),),
        )

    def _change(
        self, statement: str, message: Message, *, before: tuple[float, ...] = (), after: tuple[float, ...] = ()
    ) -> None:
        with self._database.transaction() as db:
            done = db.execute(statement, (*before, self.name, message.id, message.receipt, *after))
        if not done.rowcount:
            raise MessageGone(f"message {message.id}: deleted, or visible again")

    def send(self, body: str, *, once: str | None = None, delay_s: float = 0.0) -> None:
        now = time.time()
        with self._database.transaction() as db:
            if once is not None:
                db.execute("DELETE FROM sent_once WHERE sent_at < ?", (now - _ONCE_S,))
                fresh = db.execute("INSERT OR IGNORE INTO sent_once VALUES (?, ?, ?)", (self.name, once, now))
                if not fresh.rowcount:
                    return
            row = (self.name, uuid.uuid4().hex, body, now + delay_s if delay_s else 0.0)
            db.execute("INSERT INTO messages VALUES (?, ?, ?, '', 0, ?)", row)
        self._wake()

    def _wake(self) -> None:
        with self._sent:
            self._sent.notify_all()


# --- the store ---

_JOB = "SELECT job_id, mode, source, created_at, status, total, reason, round FROM jobs"
_COMPLETION = "SELECT job_id, idx, output_uri, completed_at FROM completions"
_INVOCATION = (
    "SELECT id, job_id, idx, mode, input_uri, output_uri, called_at, state, reason, answer_uri, failure_uri, settled "
    "FROM invocations"
)

_REFUSED = "refused:"
"""Prefix of the attempts in the table `failures` that the backend did not begin."""


class LocalStore:
    """`Store` in the SQLite file."""

    def __init__(self, database: LocalDatabase) -> None:
        self._database = database

    # --- jobs ---

    def put_job(self, job: Job) -> None:
        row = (job.job_id, job.mode, job.source, job.created_at, job.status, job.total, job.reason, job.round)
        with self._database.transaction() as db:
            if db.execute("INSERT OR IGNORE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row).rowcount:
                db.execute("DELETE FROM triggers WHERE job_id = ?", (job.job_id,))

    def job(self, job_id: str) -> Job | None:
        return next((Job(*cast(Any, row)) for row in self._database.rows(f"{_JOB} WHERE job_id = ?", job_id)), None)

    def chunking_complete(self, job_id: str, total: int) -> None:
        self._write(
            "UPDATE jobs SET total = ?, status = CASE status WHEN 'chunking' THEN 'chunking_complete' ELSE status END "
            "WHERE job_id = ?",
            total,
            job_id,
        )

    def mark(self, job_id: str, status: JobStatus, reason: str | None = None) -> None:
        self._write(
            "UPDATE jobs SET status = ?, reason = ? WHERE job_id = ? AND status != 'done'", status, reason, job_id
        )

    def reopen(self, job_id: str) -> None:
        with self._database.transaction() as db:
            reopened = db.execute(
                "UPDATE jobs SET status = 'chunking', reason = NULL, round = round + 1 "
                "WHERE job_id = ? AND status != 'done'",
                (job_id,),
            )
            if reopened.rowcount:
                db.execute("DELETE FROM failures WHERE job_id = ?", (job_id,))
                db.execute("DELETE FROM triggers WHERE job_id = ?", (job_id,))

    def waiting_jobs(self) -> list[str]:
        return [
            str(row[0]) for row in self._database.rows("SELECT job_id FROM jobs WHERE status = 'chunking_complete'")
        ]

    # --- segments ---

    def complete(self, completion: Completion) -> bool:
        segment = completion.segment
        row = (segment.job_id, segment.index, completion.output_uri, completion.completed_at)
        return self._write("INSERT OR IGNORE INTO completions VALUES (?, ?, ?, ?)", *row)

    def completion(self, segment: SegmentId) -> Completion | None:
        rows = self._database.rows(f"{_COMPLETION} WHERE job_id = ? AND idx = ?", segment.job_id, segment.index)
        return next(map(_read_completion, rows), None)

    def completions(self, job_id: str) -> list[Completion]:
        return [
            _read_completion(row) for row in self._database.rows(f"{_COMPLETION} WHERE job_id = ? ORDER BY idx", job_id)
        ]

    def fail(self, segment: SegmentId, attempt: str, reason: str) -> int:
        row = (segment.job_id, segment.index, attempt, reason)
        self._write("INSERT OR IGNORE INTO failures VALUES (?, ?, ?, ?)", *row)
        return self.failures(segment)

    def failures(self, segment: SegmentId) -> int:
        return self._count(segment, "NOT LIKE")

    def refuse(self, segment: SegmentId, attempt: str) -> int:
        row = (segment.job_id, segment.index, _REFUSED + attempt, "")
        self._write("INSERT OR IGNORE INTO failures VALUES (?, ?, ?, ?)", *row)
        return self.refusals(segment)

    def refusals(self, segment: SegmentId) -> int:
        return self._count(segment, "LIKE")

    def _count(self, segment: SegmentId, like: str) -> int:
        query = f"SELECT COUNT(*) FROM failures WHERE job_id = ? AND idx = ? AND attempt {like} ?"
        return cast(int, self._database.rows(query, segment.job_id, segment.index, f"{_REFUSED}%")[0][0])

    # --- triggers ---

    def trigger_once(self, job_id: str, lease_s: float) -> Trigger:
        now = time.time()
        taken = self._write(
            "INSERT INTO triggers VALUES (?, ?, 0) ON CONFLICT (job_id) "
            "DO UPDATE SET taken_at = excluded.taken_at WHERE sent = 0 AND taken_at < ?",
            job_id,
            now,
            now - lease_s,
        )
        if taken:
            return "taken"
        sent = self._database.rows("SELECT sent FROM triggers WHERE job_id = ?", job_id)
        return "sent" if sent and sent[0][0] else "held"

    def trigger_sent(self, job_id: str) -> None:
        self._write("UPDATE triggers SET sent = 1 WHERE job_id = ?", job_id)

    # --- invocations ---

    def record(self, invocation: Invocation) -> bool:
        segment = invocation.segment
        return self._write(
            "INSERT OR IGNORE INTO invocations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            invocation.id,
            segment.job_id,
            segment.index,
            segment.mode,
            invocation.input_uri,
            invocation.output_uri,
            invocation.called_at,
            invocation.state,
            invocation.reason,
            invocation.answer_uri,
            invocation.failure_uri,
            invocation.settled,
        )

    def accepted(self, invocation_id: str, answer_uri: str, failure_uri: str | None, at: float) -> None:
        self._write(
            "UPDATE invocations SET answer_uri = ?, failure_uri = ?, called_at = ? WHERE id = ?",
            answer_uri,
            failure_uri,
            at,
            invocation_id,
        )

    def invocation(self, invocation_id: str) -> Invocation | None:
        return next(map(_read_invocation, self._database.rows(f"{_INVOCATION} WHERE id = ?", invocation_id)), None)

    def finish(self, invocation_id: str, outcome: Outcome, reason: str | None = None) -> bool:
        return self._write(
            "UPDATE invocations SET state = ?, reason = ? WHERE id = ? AND state = 'open'",
            outcome,
            reason,
            invocation_id,
        )

    def settle(self, invocation_id: str) -> None:
        self._write("UPDATE invocations SET settled = 1 WHERE id = ?", invocation_id)

    def open_invocations(self) -> list[Invocation]:
        return [_read_invocation(row) for row in self._database.rows(f"{_INVOCATION} WHERE settled = 0")]

    def _write(self, statement: str, *values: object) -> bool:
        with self._database.transaction() as db:
            return db.execute(statement, values).rowcount > 0


def _read_completion(row: tuple[Any, ...]) -> Completion:
    return Completion(SegmentId(row[0], row[1]), row[2], row[3])


def _read_invocation(row: tuple[Any, ...]) -> Invocation:
    identity, job_id, index, mode, input_uri, output_uri, called_at, state, reason, answer_uri, failure_uri, settled = (
        row
    )
    return Invocation(
        id=identity,
        segment=SegmentKey(job_id, index, mode),
        input_uri=input_uri,
        output_uri=output_uri,
        called_at=called_at,
        state=state,
        reason=reason,
        answer_uri=answer_uri,
        failure_uri=failure_uri,
        settled=bool(settled),
    )
