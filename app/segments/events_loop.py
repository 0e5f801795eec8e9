"""The output-events queue: what appears in the output bucket, and for SageMaker, how an invocation ended."""

from __future__ import annotations

import logging

from app.metrics import SEGMENT_MESSAGES
from app.segments import events
from app.segments.answers import Answers
from app.segments.attempts import MOST_DELIVERIES
from app.segments.keys import parse_answer, parse_output, uri
from app.segments.pace import Pace
from app.segments.ports import Invocation, Message, MessageGone, ObjectMissing, Objects, Queue, Store
from app.segments.pulse import Pulse

log = logging.getLogger(__name__)

_WORDS = 500
_NO_REASON = "SageMaker gives no reason"


class EventsLoop:
    """One message after the other; nothing in it takes long."""

    def __init__(
        self,
        queue: Queue,
        objects: Objects,
        store: Store,
        answers: Answers,
        *,
        output_bucket: str,
        pace: Pace,
        pulse: Pulse,
    ) -> None:
        self._queue = queue
        self._objects = objects
        self._store = store
        self._answers = answers
        self._output_bucket = output_bucket
        self._pace = pace
        self._pulse = pulse

    def turn(self) -> None:
        """Waits for a message, and deals with it."""
        message = self._queue.receive(self._pace.poll_s)
        if message is None:
            return
        try:
            again_s = self._read(message)
        except Exception:  # whatever S3 or the store has against this message: it comes again
            log.exception("message %s of the output-events queue", message.id)
            self._count("error")
            self._pulse.failed()
            again_s = self._pace.early_s
        try:
            if again_s is not None:
                self._queue.release(message, again_s)
            else:
                self._queue.delete(message)
        except MessageGone as error:
            log.warning("%s", error)

    def _read(self, message: Message) -> float | None:
        """After how long the message should come again; None: it is dealt with."""
        try:
            created = events.read(message.body)
        except events.InvalidEvent as error:
            log.warning("message %s of the output-events queue is no S3 event (%s); given back", message.id, error)
            self._count("invalid")
            return self._pace.strange_s(message.deliveries)
        outcomes = [self._object(one, message) for one in created] or ["test"]
        for outcome in outcomes:
            self._count(outcome)
        if "early" in outcomes:
            return self._pace.early_s
        return self._pace.strange_s(message.deliveries) if "invalid" in outcomes else None

    def _object(self, created: events.Created, message: Message) -> str:
        """What became of it: a word for the counter."""
        ours = created.bucket == self._output_bucket
        if ours and parse_output(created.bucket, created.key) is not None:
            return "segment_file"  # acknowledged: the backend's word counts, not the file's
        if ours and created.key.startswith("jobs/"):
            return "other"  # results, final films: nobody waits for them here
        answer = parse_answer(created.bucket, created.key)
        address = uri(created.bucket, created.key)
        invocation = self._invocation(answer.invocation_id if answer else None, address)
        if invocation is None:
            return self._nobodys(created, message, ours)
        if address == invocation.failure_uri or (answer is not None and answer.failed):
            return "failed" if self._answers.failed(invocation, self._reason(address)) else "late"
        return "succeeded" if self._answers.succeeded(invocation) else "late"

    def _nobodys(self, created: events.Created, message: Message, ours: bool) -> str:
        if not ours:
            log.warning(
                "an event of bucket %s, OUTPUT_BUCKET_NAME is %s; given back", created.bucket, self._output_bucket
            )
            return "invalid"
        if message.deliveries < MOST_DELIVERIES:
            return "early"
        log.warning("%s answers no invocation that we know; deleted", created.key)
        return "unknown"

    def _invocation(self, invocation_id: str | None, address: str) -> Invocation | None:
        """By its id in the file's name; or by the address, which is known from when the call has returned."""
        if invocation_id is not None and (found := self._store.invocation(invocation_id)) is not None:
            return found
        return next(
            (one for one in self._store.open_invocations() if address in (one.answer_uri, one.failure_uri)), None
        )

    def _reason(self, address: str) -> str:
        try:
            return self._objects.read(address)[:_WORDS].decode(errors="replace") or _NO_REASON
        except ObjectMissing:  # removed since: by a rule of the bucket's, perhaps
            return _NO_REASON

    def _count(self, outcome: str) -> None:
        SEGMENT_MESSAGES.labels(self._queue.name, outcome).inc()
