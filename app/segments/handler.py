"""From a queue message to its segments, from each segment to the backend, and what follows when the backend is done.

`MessageHandler` handles messages of the video-worker queue. `InvocationResults` ends asynchronous invocations. Both
share the `Limiter` of segments at the backend, `Attempts` (when a segment has failed for good) and `Completions` (when
a segment, and its job, is complete).
"""

from __future__ import annotations

import enum
import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.limits import Latch, backoff_s
from app.metrics import SEGMENT_MESSAGES, SEGMENT_SECONDS, SEGMENTS, SEGMENTS_IN_FLIGHT
from app.segments import events
from app.segments.keys import SegmentId, SegmentKey, input_key, input_uri, output_uri, parse_input
from app.segments.ports import (
    Accepted,
    BackendLost,
    BackendUnavailable,
    Completion,
    Invocation,
    Message,
    Resources,
    SegmentFailed,
    WorkerResources,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timings:
    """How long a worker waits. Seconds."""

    poll_s: float = 5.0
    """A request for a message is held so long; a worker that stops waits for it."""
    retry_s: float = 5.0
    """Before a segment that failed is tried again; for SageMaker twice as long after each further failure."""
    unavailable_s: float = 30.0
    """Longest wait before a backend that was unavailable is asked again; the first waits are shorter."""
    early_s: float = 2.0
    """Before an answer is looked at again that came before its invocation could be found."""
    reconcile_s: float = 5.0
    """Between two reconciliations."""
    jobs_s: float = 60.0
    """Between two checks of jobs that wait for their segments."""
    lease_s: float = 15.0
    """A process that took a job's trigger and did not send the job for so long has died: another one sends it."""

    def unknown_s(self, deliveries: int) -> float:
        """Before a message that is not understood is delivered again, up to five minutes.

        Its queue moves it to the dead-letter queue; without one the message returns until its retention period ends.
        """
        return backoff_s(max(1, deliveries), self.retry_s, 300.0)


# --- the limit on segments at the backend ---

_PERMIT_POLL_S = 0.5
"""Seconds between two looks at whether the worker stops."""


class Limiter:
    """A semaphore of INFERENCE_MAX_IN_FLIGHT permits, some of which belong to asynchronous invocations.

    A permit is acquired before a message is received, when its segment is not known yet. Its holder then releases it,
    or transfers it to an asynchronous invocation. The end of the invocation releases that permit once, however often
    and by whichever loop the end is reported. Any thread may call any method.
    """

    def __init__(self, max_in_flight: int, backend: str) -> None:
        self._max = max_in_flight
        self._acquired = 0
        self._calls = 0
        self._invocations: set[str] = set()
        self._changed = threading.Condition()
        self._gauge = SEGMENTS_IN_FLIGHT.labels(backend)
        self._gauge.set(0)

    @property
    def in_flight(self) -> int:
        """Segments at the backend."""
        return self._calls + len(self._invocations)

    def acquire(self, timeout_s: float) -> bool:
        """Waits up to `timeout_s` for a permit; False if none became free."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._acquired + len(self._invocations) >= self._max:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            self._acquired += 1
        return True

    def release(self) -> None:
        """Releases a permit that was acquired and not transferred."""
        with self._changed:
            self._acquired -= 1
            self._changed.notify_all()

    def transfer(self, invocation_id: str) -> None:
        """Transfers an acquired permit to an invocation. If the invocation has one already, the permit is released."""
        with self._changed:
            self._acquired -= 1
            self._invocations.add(invocation_id)
            self._report()
            self._changed.notify_all()

    def release_invocation(self, invocation_id: str) -> bool:
        """Releases an invocation's permit; False if it has none, or no longer."""
        with self._changed:
            if invocation_id not in self._invocations:
                return False
            self._invocations.remove(invocation_id)
            self._report()
            self._changed.notify_all()
        return True

    def adopt(self, invocation_ids: Iterable[str]) -> None:
        """Gives permits to invocations that are open in the store, also beyond the limit: they are at the backend."""
        with self._changed:
            self._invocations.update(invocation_ids)
            self._report()

    def invocations(self) -> set[str]:
        """Invocations that have a permit."""
        with self._changed:
            return set(self._invocations)

    def count_call(self, change: int) -> None:
        """Counts blocking calls to the backend, for the gauge: +1 when one begins, -1 when it ends."""
        with self._changed:
            self._calls += change
            self._report()

    def _report(self) -> None:
        self._gauge.set(self._calls + len(self._invocations))


class Lease:
    """One permit of the `Limiter`, from when it is acquired until it is released or transferred. Not thread-safe."""

    def __init__(self, limiter: Limiter, stopping: threading.Event) -> None:
        self._limiter = limiter
        self._stopping = stopping
        self._held = False

    def acquire(self, timeout_s: float) -> bool:
        """Waits up to `timeout_s` for a permit, unless it has one; False if none became free."""
        self._held = self._held or self._limiter.acquire(timeout_s)
        return self._held

    def wait(self) -> bool:
        """Waits for a permit, unless it has one; False if the worker stops first."""
        while not self.acquire(_PERMIT_POLL_S):
            if self._stopping.is_set():
                return False
        return True

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Counts a call to the backend while the block lasts."""
        self._limiter.count_call(+1)
        try:
            yield
        finally:
            self._limiter.count_call(-1)

    def transfer(self, invocation_id: str) -> None:
        """Transfers the permit to an invocation."""
        self._limiter.transfer(invocation_id)
        self._held = False

    def release(self) -> None:
        """Releases the permit, unless it was released or transferred."""
        if self._held:
            self._held = False
            self._limiter.release()


# --- failed and completed segments ---

MAX_DELIVERIES = 20
"""Deliveries of a message after which its segment has failed: it seems to kill every process that works on it.

A dead-letter queue should take the message later than that, so that the job is marked as failed.
"""


class Attempts:
    """A segment may fail SEGMENT_ATTEMPTS times; then its job has failed. Counts in the store.

    A worker that is killed records no failure, so its attempt does not count.
    """

    def __init__(self, resources: WorkerResources, max_attempts: int) -> None:
        self._store = resources.store
        self._max = max_attempts
        self._backend = resources.backend.name

    def failed(self, segment: SegmentId, attempt: str, reason: str) -> bool:
        """Records a failure. True if the segment is to be tried again; else its job was marked as failed.

        Args:
            attempt: identifies the attempt; recorded twice, it counts once.
        """
        count = self._store.fail(segment, attempt, reason)
        if count < self._max:
            SEGMENTS.labels(self._backend, "failed").inc()
            log.warning("segment %s: attempt %d of %d failed: %s", segment, count, self._max, reason)
            return True
        self.give_up(segment, f"tried {count} times, the last time: {reason}")
        return False

    def give_up(self, segment: SegmentId, reason: str) -> None:
        """Marks the segment's job as failed."""
        SEGMENTS.labels(self._backend, "given_up").inc()
        log.error("segment %s: given up, and its job with it: %s", segment, reason)
        self._store.mark(segment.job_id, "failed", f"segment {segment.index}: {reason}")


class Completions:
    """Records completed segments; the last one of a job sends the job to the reassembly queue, once.

    Segments may complete in any order, twice, and before or after the job's total is known.
    """

    def __init__(self, resources: Resources, timings: Timings | None = None) -> None:
        self._store = resources.store
        self._reassembly = resources.reassembly
        self._lease_s = (timings or Timings()).lease_s
        self._checking = threading.Lock()

    def complete(self, segment: SegmentId, output_uri: str) -> bool:
        """Records a completed segment, and sends the job to reassembly if it was the last. True the first time."""
        first = self._store.complete(Completion(segment.id, output_uri, time.time()))
        self.check(segment.job_id)
        return first

    def check(self, job_id: str) -> bool:
        """Sends the job to the reassembly queue if it is complete and was not sent; True if this call sent it.

        `submit` calls it after `chunking_complete`, because all segments may have completed before.
        """
        with self._checking:  # so that threads which complete the last segments together do not all read the store
            return self._check(job_id)

    def _check(self, job_id: str) -> bool:
        job = self._store.job(job_id)
        if job is None or job.status != "chunking_complete" or not job.total:
            return False
        complete = {completion.segment.index for completion in self._store.completions(job_id)}
        if not complete.issuperset(range(job.total)):
            return False
        # Claim the trigger, send the job, then record it as sent. After a crash in between, the claim expires and the
        # next check sends the job.
        if self._store.trigger_once(job_id, self._lease_s) != "taken":
            return False
        self._reassembly.send(job_id, once=f"{job_id}.{job.round}")
        self._store.trigger_sent(job_id)
        log.info("job %s: all %d segments are done; sent to be put together", job_id, job.total)
        return True


# --- asynchronous invocations ---

MAX_REFUSALS = 40
"""Refusals of one segment by a container without capacity before one counts as a failure: about twenty minutes."""
_MAX_RETRY_S = 300.0
_REFUSED = re.compile(r'\\*"code\\*"\s*:\s*\\*"(busy|inference_unavailable|no_room)\\*"')
"""Error codes of our own container, as SageMaker repeats them, perhaps within a string."""


class InvocationResults:
    """Ends invocations: each succeeds, fails, or is never answered. Every step may be repeated.

    The first call that finishes an invocation counts it. What then remains to be done happens at least once: after a
    crash in between, `settle` does it.
    """

    def __init__(
        self,
        resources: WorkerResources,
        limiter: Limiter,
        completions: Completions,
        attempts: Attempts,
        timings: Timings,
    ) -> None:
        self._store = resources.store
        self._segments = resources.segments
        self._input_bucket = resources.input_bucket
        self._backend = resources.backend.name
        self._limiter = limiter
        self._completions = completions
        self._attempts = attempts
        self._timings = timings

    def succeeded(self, invocation: Invocation) -> bool:
        """Completes the segment, also if the answer comes after the invocation was given up. True the first time."""
        # The completion is recorded first, so that a finished invocation cannot lose its segment in a crash.
        completed = self._completions.complete(invocation.segment, invocation.output_uri)
        first = self._store.finish(invocation.id, "succeeded")
        self._store.settle(invocation.id)
        self._limiter.release_invocation(invocation.id)
        if completed:
            SEGMENTS.labels(self._backend, "completed").inc()
            SEGMENT_SECONDS.labels(self._backend).observe(max(0.0, time.time() - invocation.called_at))
        return first

    def failed(self, invocation: Invocation, reason: str) -> bool:
        """Sends the segment to the queue again, or fails its job. True the first time."""
        first = self._store.finish(invocation.id, "failed", reason)
        self._limiter.release_invocation(invocation.id)
        if first or self._unsettled(invocation):
            self._repeat(invocation, reason)
        return first

    def timed_out(self, invocation: Invocation, timeout_s: float) -> bool:
        """Like `failed`, for an invocation without an answer."""
        reason = f"no answer after {timeout_s:g} s (SAGEMAKER_INVOKE_TIMEOUT_SECONDS)"
        first = self._store.finish(invocation.id, "timed_out", reason)
        self._limiter.release_invocation(invocation.id)
        if first:
            SEGMENTS.labels(self._backend, "timed_out").inc()
            self._repeat(invocation, reason)
        return first

    def settle(self, invocation_id: str) -> None:
        """Does what remains for a finished invocation whose worker died before it did so."""
        invocation = self._store.invocation(invocation_id)
        if invocation is None or invocation.settled or invocation.state == "open":
            return
        if invocation.state == "succeeded":
            self._completions.check(invocation.segment.job_id)
            self._store.settle(invocation.id)
        else:
            self._repeat(invocation, invocation.reason or invocation.state)

    def _unsettled(self, invocation: Invocation) -> bool:
        current = self._store.invocation(invocation.id)
        return current is not None and current.state == "failed" and not current.settled

    def _repeat(self, invocation: Invocation, reason: str) -> None:
        segment = invocation.segment
        if self._store.completion(segment) is None:
            delay_s = self._retry_delay_s(invocation, reason)
            if delay_s is not None:
                # The segment's message was deleted when it was invoked. This one has the event that S3 sent.
                body = events.body_of(events.Created(self._input_bucket, input_key(segment)))
                self._segments.send(body, delay_s=delay_s)
        self._store.settle(invocation.id)

    def _retry_delay_s(self, invocation: Invocation, reason: str) -> float | None:
        """Seconds before the segment is tried again; None if it is not.

        An answer that the container has no capacity, or no models, is not a failure of the segment.
        """
        segment = invocation.segment
        if _REFUSED.search(reason) and (refusals := self._store.refuse(segment, invocation.id)) <= MAX_REFUSALS:
            log.warning("segment %s: the container did not begin with it: %s", segment, reason)
            return backoff_s(refusals, self._timings.retry_s, self._timings.unavailable_s)
        if self._attempts.failed(segment, invocation.id, reason):
            return backoff_s(max(1, self._store.failures(segment)), self._timings.retry_s, _MAX_RETRY_S)
        return None


# --- messages ---

_MAX_LOSSES = 8
"""A segment during which the backend went away so often, though it came back each time, has failed."""
_FIRST_WAIT_S = 0.5


class Disposition(enum.Enum):
    """What the worker does with a message that was handled."""

    HANDLED = "deleted"
    RETRY = "delivered again after a while"
    RETURNED = "delivered again at once, because the worker stops"
    UNKNOWN = "not understood: delivered again, later each time, until its queue moves it to the dead-letter queue"


_BY_SEVERITY = (Disposition.HANDLED, Disposition.UNKNOWN, Disposition.RETRY, Disposition.RETURNED)


class MessageHandler:
    """Has the segments of a message analysed. Any thread may call it, each with a message of its own."""

    def __init__(
        self,
        resources: WorkerResources,
        limiter: Limiter,
        completions: Completions,
        attempts: Attempts,
        timings: Timings,
        stopping: threading.Event,
    ) -> None:
        self._backend = resources.backend
        self._store = resources.store
        self._objects = resources.objects
        self._queue_name = resources.segments.name
        self._input_bucket, self._output_bucket = resources.input_bucket, resources.output_bucket
        self._limiter = limiter
        self._completions = completions
        self._attempts = attempts
        self._timings = timings
        self._stopping = stopping
        self._unavailable = True  # until `ready` has asked once
        self._log_latch = Latch()

    def ready(self) -> bool:
        """Whether the backend takes segments. Asks it only while it was unavailable."""
        if self._unavailable:
            self._unavailable = not self._backend.ready()
            if self._unavailable and self._log_latch.begins("unavailable"):
                log.warning("backend %s does not answer; no segment is taken until it does", self._backend.name)
            elif not self._unavailable and self._log_latch.ends():
                log.info("backend %s answers", self._backend.name)
        return not self._unavailable

    def handle(self, message: Message, lease: Lease) -> Disposition:
        """Has all segments of a message analysed, one after the other. It may do so twice without harm."""
        try:
            created = events.read(message.body)
        except events.InvalidEvent as error:
            log.warning("message %s of the video-worker queue is no S3 event (%s); given back", message.id, error)
            self._count("invalid")
            return Disposition.UNKNOWN
        if not created:
            self._count("test")
        worst = Disposition.HANDLED
        for event in created:
            disposition = self._handle_event(event, message, lease)
            if disposition is Disposition.RETURNED:
                return disposition
            worst = max(worst, disposition, key=_BY_SEVERITY.index)
        return worst

    def _handle_event(self, event: events.Created, message: Message, lease: Lease) -> Disposition:
        if event.bucket != self._input_bucket:
            log.warning(
                "message %s of the video-worker queue is of bucket %s, INPUT_BUCKET_NAME is %s; given back",
                message.id,
                event.bucket,
                self._input_bucket,
            )
            self._count("invalid")
            return Disposition.UNKNOWN
        segment = parse_input(event.bucket, event.key)
        if segment is None:
            log.warning("%s in bucket %s is no segment of ours; left out", event.key, event.bucket)
            return self._handled("invalid")
        return self._handle_segment(segment, message, lease)

    def _handle_segment(self, segment: SegmentKey, message: Message, lease: Lease) -> Disposition:
        job = self._store.job(segment.job_id)
        if job is not None and job.status == "failed":
            return self._handled("job_failed")
        if job is None or job.mode != segment.mode or (job.total is not None and segment.index >= job.total):
            log.warning("segment %s (%s) is in no job that is recorded; given back", segment, segment.mode)
            self._count("unknown")
            return Disposition.UNKNOWN
        if self._store.completion(segment) is not None:
            self._completions.check(segment.job_id)  # the worker that completed it may have died before this check
            return self._handled("duplicate")
        exists = self._objects.exists(input_uri(self._input_bucket, segment))
        if not exists and job.total is None:  # not uploaded yet, or never: that must not fail the job
            log.warning("segment %s is not in bucket %s; given back", segment, self._input_bucket)
            self._count("missing")
            return Disposition.UNKNOWN
        if message.deliveries > MAX_DELIVERIES:
            self._attempts.give_up(segment, f"delivered {message.deliveries - 1} times, and no worker finished it")
            return self._handled("given_up")
        if not lease.wait():
            return Disposition.RETURNED
        try:
            if not exists:  # all segments were uploaded, and the job cannot complete without this one
                raise SegmentFailed(f"it is no longer in bucket {self._input_bucket}")
            return self._invoke(segment, lease)
        except SegmentFailed as error:
            if self._store.completion(segment) is not None:
                return self._handled("duplicate")  # another worker has completed it meanwhile
            if self._attempts.failed(segment, f"{message.id}.{message.deliveries}", str(error)):
                self._count("failed")
                return Disposition.RETRY
            return self._handled("given_up")

    def _invoke(self, segment: SegmentKey, lease: Lease) -> Disposition:
        addresses = input_uri(self._input_bucket, segment), output_uri(self._output_bucket, segment)
        losses = tries = 0
        while True:
            started = time.monotonic()
            try:
                with lease.calling():
                    answer = self._backend.invoke(segment, *addresses)
            except BackendUnavailable as error:
                losses += isinstance(error, BackendLost)
                if losses == _MAX_LOSSES:
                    reason = f"the backend went away over it {losses} times, the last time: {error}"
                    raise SegmentFailed(reason) from None
                self._unavailable = True
                self._count("unavailable")
                log.warning("segment %s waits: %s", segment, error)
                tries += 1
                if not self._wait_until_ready(backoff_s(tries, _FIRST_WAIT_S, self._timings.unavailable_s)):
                    return Disposition.RETURNED
                continue
            if isinstance(answer, Accepted):
                return self._accepted(answer, lease)
            self._completed(segment, addresses[1], time.monotonic() - started)
            return Disposition.HANDLED

    def _wait_until_ready(self, pause_s: float) -> bool:
        """Waits for `pause_s`, again and again, until the backend is ready; False if the worker stops first."""
        while not self._stopping.wait(pause_s):
            if self.ready():
                return True
        return False

    def _accepted(self, answer: Accepted, lease: Lease) -> Disposition:
        invocation_id = answer.invocation.id
        lease.transfer(invocation_id)
        # The answer may have been handled before the transfer; then nothing else would release the permit.
        current = self._store.invocation(invocation_id)
        if current is None or current.state != "open":
            self._limiter.release_invocation(invocation_id)
        return self._handled("accepted")

    def _completed(self, segment: SegmentKey, address: str, seconds: float) -> None:
        first = self._completions.complete(segment, address)
        self._count("completed" if first else "duplicate")
        if first:
            SEGMENTS.labels(self._backend.name, "completed").inc()
            SEGMENT_SECONDS.labels(self._backend.name).observe(seconds)

    def _handled(self, outcome: str) -> Disposition:
        self._count(outcome)
        return Disposition.HANDLED

    def _count(self, outcome: str) -> None:
        SEGMENT_MESSAGES.labels(self._queue_name, outcome).inc()
