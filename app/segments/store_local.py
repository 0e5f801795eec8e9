"""The store in the local database."""

from __future__ import annotations

import time
from typing import Any, cast

from app.segments.keys import SegmentId, SegmentKey
from app.segments.local_database import LocalDatabase
from app.segments.ports import Completion, Invocation, Job, JobStatus, Outcome, Trigger

_JOB = "SELECT job_id, mode, source, created_at, status, total, reason, round FROM jobs"
_COMPLETION = "SELECT job_id, idx, output_uri, completed_at FROM completions"
_INVOCATION = (
    "SELECT id, job_id, idx, mode, input_uri, output_uri, called_at, state, reason, answer_uri, failure_uri, settled "
    "FROM invocations"
)

_REFUSED = "refused:"


class LocalStore:
    """See `Store`."""

    def __init__(self, database: LocalDatabase) -> None:
        self._database = database

    # --- jobs ---

    def put_job(self, job: Job) -> None:
        row = (job.job_id, job.mode, job.source, job.created_at, job.status, job.total, job.reason, job.round)
        with self._database.change() as changes:
            if changes.execute("INSERT OR IGNORE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row).rowcount:
                changes.execute("DELETE FROM triggers WHERE job_id = ?", (job.job_id,))

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
        with self._database.change() as changes:
            reopened = changes.execute(
                "UPDATE jobs SET status = 'chunking', reason = NULL, round = round + 1 "
                "WHERE job_id = ? AND status != 'done'",
                (job_id,),
            )
            if reopened.rowcount:
                changes.execute("DELETE FROM failures WHERE job_id = ?", (job_id,))
                changes.execute("DELETE FROM triggers WHERE job_id = ?", (job_id,))

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
        return next(map(_completion, rows), None)

    def completions(self, job_id: str) -> list[Completion]:
        return [_completion(row) for row in self._database.rows(f"{_COMPLETION} WHERE job_id = ? ORDER BY idx", job_id)]

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
        one, segment = invocation, invocation.segment
        return self._write(
            "INSERT OR IGNORE INTO invocations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(one.id, segment.job_id, segment.index, segment.mode, one.input_uri, one.output_uri, one.called_at),
            *(one.state, one.reason, one.answer_uri, one.failure_uri, one.settled),
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
        return next(map(_invocation, self._database.rows(f"{_INVOCATION} WHERE id = ?", invocation_id)), None)

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
        return [_invocation(row) for row in self._database.rows(f"{_INVOCATION} WHERE settled = 0")]

    def _write(self, statement: str, *values: object) -> bool:
        with self._database.change() as changes:
            return changes.execute(statement, values).rowcount > 0


def _completion(row: tuple[Any, ...]) -> Completion:
    return Completion(SegmentId(row[0], row[1]), row[2], row[3])


def _invocation(row: tuple[Any, ...]) -> Invocation:
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
