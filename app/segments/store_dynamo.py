"""The store in DynamoDB: four tables, every write conditional or repeatable.

    JOBS_TABLE_NAME                   job_id (S); index `by-status`: status (S), keys only
    SEGMENT_COMPLETIONS_TABLE_NAME    job_id (S), segment_index (N)
    REASSEMBLY_TRIGGERED_TABLE_NAME   job_id (S)
    INVOCATIONS_TABLE_NAME            invocation_id (S); index `by-open`: open (S), all attributes

All have `expires_at` (N, epoch seconds) for DynamoDB's time to live.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from app.segments.clients import required
from app.segments.dynamo import Table
from app.segments.keys import SegmentId, SegmentKey
from app.segments.ports import Completion, Invocation, Job, JobStatus, Outcome, Trigger
from app.settings import SegmentSettings

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

BY_STATUS = "by-status"
BY_OPEN = "by-open"
_KEPT_S = 90 * 86_400
_OPEN = "open"
"""The index holds only items that have this attribute: those that are not settled."""
_WORDS = 1000
"""Letters of a reason that are kept."""
_AT_ONCE = 100
"""Attributes that one expression names."""


class DynamoStore:
    """See `Store`.

    Raises:
        ConfigurationError: a table's name is unset.
    """

    def __init__(self, client: DynamoDBClient, settings: SegmentSettings) -> None:
        def table(value: str | None, name: str) -> Table:
            return Table(client, required(value, name, "the name of the DynamoDB table (infra/segments.yaml makes it)"))

        self._jobs = table(settings.jobs_table_name, "JOBS_TABLE_NAME")
        self._completions = table(settings.segment_completions_table_name, "SEGMENT_COMPLETIONS_TABLE_NAME")
        self._triggers = table(settings.reassembly_triggered_table_name, "REASSEMBLY_TRIGGERED_TABLE_NAME")
        self._invocations = table(settings.invocations_table_name, "INVOCATIONS_TABLE_NAME")

    # --- jobs ---

    def put_job(self, job: Job) -> None:
        item = {
            "job_id": job.job_id,
            "mode": job.mode,
            "source": job.source,
            "created_at": job.created_at,
            "status": job.status,
            "total": job.total,
            "reason": job.reason,
            "round": job.round,
        }
        if self.job(job.job_id) is None:
            self._triggers.delete({"job_id": job.job_id})  # of a job that has expired, and its trigger has not yet
        self._jobs.put_new(item | _expiry(), "status")

    def job(self, job_id: str) -> Job | None:
        item = self._jobs.get({"job_id": job_id})
        if item is None or "status" not in item:  # a failure may be noted of a job that nobody recorded
            return None
        total = item.get("total")
        return Job(
            job_id=item["job_id"],
            mode=item["mode"],
            source=item["source"],
            created_at=item["created_at"],
            status=item["status"],
            total=None if total is None else int(total),
            reason=item.get("reason"),
            round=int(item["round"]),
        )

    def chunking_complete(self, job_id: str, total: int) -> None:
        key, names = {"job_id": job_id}, {"#s": "status", "#t": "total"}
        values = {":total": total, ":from": "chunking", ":to": "chunking_complete"}
        if not self._jobs.update(key, "SET #t = :total, #s = :to", "#s = :from", names, values):
            self._jobs.update(key, "SET #t = :total", "attribute_exists(#s)", names, {":total": total})

    def mark(self, job_id: str, status: JobStatus, reason: str | None = None) -> None:
        names, values = {"#s": "status", "#r": "reason"}, {":s": str(status), ":done": "done"}
        expression = "SET #s = :s REMOVE #r"
        if reason is not None:
            expression = "SET #s = :s, #r = :r"
            values[":r"] = reason[:_WORDS]
        self._jobs.update({"job_id": job_id}, expression, "attribute_exists(#s) AND #s <> :done", names, values)

    def reopen(self, job_id: str) -> None:
        item = self._jobs.get({"job_id": job_id})
        if item is None or item.get("status") in (None, "done"):
            return
        self._triggers.delete({"job_id": job_id})
        # As many as there are segments that failed, and an expression holds 4 KiB. The status comes last: who dies
        # in between leaves a job that has failed, to be reopened again.
        gone = [name for name in item if name.startswith("failures_")]
        for start in range(0, len(gone), _AT_ONCE):
            some = {f"#g{place}": name for place, name in enumerate(gone[start : start + _AT_ONCE])}
            self._jobs.update({"job_id": job_id}, f"REMOVE {', '.join(some)}", None, some, {})
        names = {"#s": "status", "#o": "round", "#r": "reason"}
        values = {":s": "chunking", ":o": int(item["round"]) + 1, ":done": "done"}
        condition = "attribute_exists(#s) AND #s <> :done"
        self._jobs.update({"job_id": job_id}, "SET #s = :s, #o = :o REMOVE #r", condition, names, values)

    def waiting_jobs(self) -> list[str]:
        return [item["job_id"] for item in self._jobs.query("status", "chunking_complete", index=BY_STATUS)]

    # --- segments ---

    def complete(self, completion: Completion) -> bool:
        item = _segment_key(completion.segment) | {
            "output_s3_uri": completion.output_uri,
            "completed_at": completion.completed_at,
        }
        return self._completions.put_new(item | _expiry(), "job_id")

    def completion(self, segment: SegmentId) -> Completion | None:
        item = self._completions.get(_segment_key(segment))
        return _completion(item) if item else None

    def completions(self, job_id: str) -> list[Completion]:
        return [_completion(item) for item in self._completions.query("job_id", job_id)]

    def fail(self, segment: SegmentId, attempt: str, reason: str) -> int:
        return self._jobs.add_word({"job_id": segment.job_id}, f"failures_{segment.index:05d}", attempt)

    def failures(self, segment: SegmentId) -> int:
        return self._words(segment, f"failures_{segment.index:05d}")

    def refuse(self, segment: SegmentId, attempt: str) -> int:
        return self._jobs.add_word({"job_id": segment.job_id}, f"failures_refused_{segment.index:05d}", attempt)

    def refusals(self, segment: SegmentId) -> int:
        return self._words(segment, f"failures_refused_{segment.index:05d}")

    def _words(self, segment: SegmentId, name: str) -> int:
        item = self._jobs.get({"job_id": segment.job_id}, name)
        return len(item.get(name, ())) if item else 0

    # --- triggers ---

    def trigger_once(self, job_id: str, lease_s: float) -> Trigger:
        now, key = time.time(), {"job_id": job_id}
        taken = self._triggers.update(
            key,
            "SET #sent = :no, #taken = :now, #expires = :expires",
            "attribute_not_exists(#sent) OR (#sent = :no AND #taken < :before)",
            {"#sent": "sent", "#taken": "taken_at", "#expires": "expires_at"},
            {":no": False, ":now": now, ":before": now - lease_s, ":expires": int(now + _KEPT_S)},
        )
        if taken:
            return "taken"
        item = self._triggers.get(key)
        return "sent" if item and item["sent"] else "held"

    def trigger_sent(self, job_id: str) -> None:
        names = {"#sent": "sent"}
        self._triggers.update({"job_id": job_id}, "SET #sent = :yes", "attribute_exists(#sent)", names, {":yes": True})

    # --- invocations ---

    def record(self, invocation: Invocation) -> bool:
        one, segment = invocation, invocation.segment
        item = {
            "invocation_id": one.id,
            "job_id": segment.job_id,
            "segment_index": segment.index,
            "mode": segment.mode,
            "input_s3_uri": one.input_uri,
            "output_s3_uri": one.output_uri,
            "called_at": one.called_at,
            "state": one.state,
            "reason": one.reason,
            "answer_uri": one.answer_uri,
            "failure_uri": one.failure_uri,
            "open": None if one.settled else _OPEN,
        }
        return self._invocations.put_new(item | _expiry(), "invocation_id")

    def accepted(self, invocation_id: str, answer_uri: str, failure_uri: str | None, at: float) -> None:
        said = {"answer_uri": answer_uri, "failure_uri": failure_uri, "called_at": at}
        given = {name: value for name, value in said.items() if value is not None}
        sets = ", ".join(f"#{name} = :{name}" for name in given)
        names = {f"#{name}": name for name in given} | {"#state": "state"}
        values = {f":{name}": value for name, value in given.items()}
        self._change(invocation_id, f"SET {sets}", "attribute_exists(#state)", names, values)

    def invocation(self, invocation_id: str) -> Invocation | None:
        item = self._invocations.get({"invocation_id": invocation_id})
        return _invocation(item) if item else None

    def finish(self, invocation_id: str, outcome: Outcome, reason: str | None = None) -> bool:
        names, values = {"#state": "state"}, {":open": "open", ":outcome": outcome}
        expression = "SET #state = :outcome"
        if reason is not None:
            names["#reason"], values[":reason"] = "reason", reason[:_WORDS]
            expression += ", #reason = :reason"
        return self._change(invocation_id, expression, "#state = :open", names, values)

    def settle(self, invocation_id: str) -> None:
        self._change(
            invocation_id, "REMOVE #open", "attribute_exists(#state)", {"#open": "open", "#state": "state"}, {}
        )

    def open_invocations(self) -> list[Invocation]:
        return [_invocation(item) for item in self._invocations.query("open", _OPEN, index=BY_OPEN)]

    def _change(
        self, invocation_id: str, expression: str, condition: str, names: dict[str, str], values: dict[str, Any]
    ) -> bool:
        return self._invocations.update({"invocation_id": invocation_id}, expression, condition, names, values)


def _expiry() -> dict[str, int]:
    return {"expires_at": int(time.time() + _KEPT_S)}


def _segment_key(segment: SegmentId) -> dict[str, Any]:
    return {"job_id": segment.job_id, "segment_index": segment.index}


def _completion(item: dict[str, Any]) -> Completion:
    segment = SegmentId(item["job_id"], int(item["segment_index"]))
    return Completion(segment, item["output_s3_uri"], item["completed_at"])


def _invocation(item: dict[str, Any]) -> Invocation:
    return Invocation(
        id=item["invocation_id"],
        segment=SegmentKey(item["job_id"], int(item["segment_index"]), item["mode"]),
        input_uri=item["input_s3_uri"],
        output_uri=item["output_s3_uri"],
        called_at=item["called_at"],
        state=item["state"],
        reason=item.get("reason"),
        answer_uri=item.get("answer_uri"),
        failure_uri=item.get("failure_uri"),
        settled="open" not in item,
    )
