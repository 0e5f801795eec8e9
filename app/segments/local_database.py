"""The SQLite file that stands for DynamoDB and SQS where there is no AWS. Whole after a kill at any moment."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCHEMA = """
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


class LocalDatabase:
    """One connection, used by one thread at a time; other processes may have the file open as well."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.executescript(_SCHEMA)

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other change runs beside: all of it is kept, or nothing."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """What a query finds."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()
