"""From a message to its segments, and from each segment to the backend."""

from __future__ import annotations

import enum
import logging
import threading
import time

from app.metrics import SEGMENT_MESSAGES, SEGMENT_SECONDS, SEGMENTS
from app.segments import events
from app.segments.attempts import MOST_DELIVERIES, Attempts
from app.segments.completion import Completions
from app.segments.keys import SegmentKey, input_uri, output_uri, parse_input
from app.segments.pace import Pace
from app.segments.place import Place
from app.segments.ports import (
    Accepted,
    Backend,
    BackendLost,
    BackendUnavailable,
    Message,
    Objects,
    SegmentFailed,
    Store,
)
from app.segments.slots import Slots

log = logging.getLogger(__name__)

_MOST_LOSSES = 8
"""A segment over which the backend went away so often, though it came back each time, has failed."""
_FIRST_WAIT_S = 0.5


class Outcome(enum.Enum):
    """What is to become of a message."""

    HANDLED = "deleted"
    AGAIN = "comes again after a while"
    RETURNED = "comes again at once: the worker stops"
    STRANGE = "comes again, later each time, until the queue hands it to its dead-letter queue: it is not understood"


_WORST = (Outcome.HANDLED, Outcome.STRANGE, Outcome.AGAIN, Outcome.RETURNED)


class Invoking:
    """Any thread may call it, each with a message of its own."""

    def __init__(
        self,
        backend: Backend,
        store: Store,
        objects: Objects,
        slots: Slots,
        completions: Completions,
        attempts: Attempts,
        *,
        queue_name: str,
        buckets: tuple[str, str],
        pace: Pace,
        stopping: threading.Event,
    ) -> None:
        self._backend = backend
        self._store = store
        self._objects = objects
        self._slots = slots
        self._completions = completions
        self._attempts = attempts
        self._queue_name = queue_name
        self._input_bucket, self._output_bucket = buckets
        self._pace = pace
        self._stopping = stopping
        self._away = True  # until it was asked once
        self._said_away = False

    def ready(self) -> bool:
        """Whether the backend takes segments; asked for as long as it did not."""
        if self._away:
            self._away = not self._backend.ready()
            if self._away and not self._said_away:
                log.warning("backend %s does not answer; no segment is taken until it does", self._backend.name)
            elif self._said_away and not self._away:
                log.info("backend %s answers", self._backend.name)
            self._said_away = self._away
        return not self._away

    def message(self, message: Message, place: Place) -> Outcome:
        """Has all segments of a message analysed, one after the other. What it does may be done twice."""
        try:
            created = events.read(message.body)
        except events.InvalidEvent as error:
            log.warning("message %s of the video-worker queue is no S3 event (%s); given back", message.id, error)
            self._count("invalid")
            return Outcome.STRANGE
        if not created:
            self._count("test")
        worst = Outcome.HANDLED
        for one in created:
            outcome = self._created(one, message, place)
            if outcome is Outcome.RETURNED:
                return outcome
            worst = max(worst, outcome, key=_WORST.index)
        return worst

    def _created(self, created: events.Created, message: Message, place: Place) -> Outcome:
        if created.bucket != self._input_bucket:
            log.warning(
                "message %s of the video-worker queue is of bucket %s, INPUT_BUCKET_NAME is %s; given back",
                message.id,
                created.bucket,
                self._input_bucket,
            )
            self._count("invalid")
            return Outcome.STRANGE
        segment = parse_input(created.bucket, created.key)
        if segment is None:
            log.warning("%s in bucket %s is no segment of ours; left out", created.key, created.bucket)
            return self._said("invalid")
        return self._segment(segment, message, place)

    def _segment(self, segment: SegmentKey, message: Message, place: Place) -> Outcome:
        job = self._store.job(segment.job_id)
        if job is not None and job.status == "failed":
            return self._said("job_failed")
        if job is None or job.mode != segment.mode or (job.total is not None and segment.index >= job.total):
            log.warning("segment %s (%s) is in no job that is recorded; given back", segment, segment.mode)
            self._count("unknown")
            return Outcome.STRANGE
        if self._store.completion(segment) is not None:
            self._completions.check(segment.job_id)  # whoever completed it may have died before this
            return self._said("duplicate")
        there = self._objects.exists(input_uri(self._input_bucket, segment))
        if not there and job.total is None:  # not uploaded yet, or never: it harms no job
            log.warning("segment %s is not in bucket %s; given back", segment, self._input_bucket)
            self._count("missing")
            return Outcome.STRANGE
        if message.deliveries > MOST_DELIVERIES:
            self._attempts.give_up(segment, f"delivered {message.deliveries - 1} times, and nobody could end it")
            return self._said("given_up")
        if not place.taken():
            return Outcome.RETURNED
        try:
            if not there:  # all were uploaded, and the job cannot end without this one
                raise SegmentFailed(f"it is no longer in bucket {self._input_bucket}")
            return self._invoke(segment, place)
        except SegmentFailed as error:
            if self._store.completion(segment) is not None:
                return self._said("duplicate")  # somebody else has done it meanwhile
            if self._attempts.failed(segment, f"{message.id}.{message.deliveries}", str(error)):
                self._count("failed")
                return Outcome.AGAIN
            return self._said("given_up")

    def _invoke(self, segment: SegmentKey, place: Place) -> Outcome:
        addresses = input_uri(self._input_bucket, segment), output_uri(self._output_bucket, segment)
        losses, pause_s = 0, min(_FIRST_WAIT_S, self._pace.away_s)
        while True:
            began = time.monotonic()
            try:
                with place.at_work():
                    answer = self._backend.invoke(segment, *addresses)
            except BackendUnavailable as error:
                losses += isinstance(error, BackendLost)
                if losses == _MOST_LOSSES:
                    words = f"the backend went away over it {losses} times, the last time: {error}"
                    raise SegmentFailed(words) from None
                self._away = True
                self._count("unavailable")
                log.warning("segment %s waits: %s", segment, error)
                if not self._waited(pause_s):
                    return Outcome.RETURNED
                pause_s = min(self._pace.away_s, 2 * pause_s)
                continue
            if isinstance(answer, Accepted):
                return self._accepted(answer, place)
            self._completed(segment, addresses[1], time.monotonic() - began)
            return Outcome.HANDLED

    def _waited(self, pause_s: float) -> bool:
        """Waits a while, then until the backend answers; False when the worker stops."""
        while not self._stopping.wait(pause_s):
            if self.ready():
                return True
        return False

    def _accepted(self, answer: Accepted, place: Place) -> Outcome:
        invocation_id = answer.invocation.id
        place.hand_over(invocation_id)
        # The answer may have been quicker than we: then nobody else will free the place.
        now = self._store.invocation(invocation_id)
        if now is None or now.state != "open":
            self._slots.free(invocation_id)
        return self._said("accepted")

    def _completed(self, segment: SegmentKey, address: str, seconds: float) -> None:
        first = self._completions.done(segment, address)
        self._count("completed" if first else "duplicate")
        if first:
            SEGMENTS.labels(self._backend.name, "completed").inc()
            SEGMENT_SECONDS.labels(self._backend.name).observe(seconds)

    def _said(self, outcome: str) -> Outcome:
        self._count(outcome)
        return Outcome.HANDLED

    def _count(self, outcome: str) -> None:
        SEGMENT_MESSAGES.labels(self._queue_name, outcome).inc()
