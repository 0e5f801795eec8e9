"""What becomes of an asynchronous invocation: it succeeds, fails, or is never heard of again. Once, whoever says so."""

from __future__ import annotations

import logging
import re
import time

from app.limits import backoff_s
from app.metrics import SEGMENT_SECONDS, SEGMENTS
from app.segments import events
from app.segments.attempts import Attempts
from app.segments.completion import Completions
from app.segments.keys import input_key
from app.segments.pace import Pace
from app.segments.ports import Invocation, Queue, Store
from app.segments.slots import Slots

log = logging.getLogger(__name__)

MOST_REFUSALS = 40
"""Times that a container may say so of one segment before it counts as a failure: about twenty minutes."""
_MOST_DELAY_S = 300.0
_NOT_NOW = re.compile(r'\\*"code\\*"\s*:\s*\\*"(busy|inference_unavailable|no_room)\\*"')
"""Our own container's words, as SageMaker repeats them: perhaps within a string."""


class Answers:
    """Ends invocations. Each step may be repeated: who dies in between is followed by whoever looks next.

    The first to finish an invocation counts it. What is left to be done then (`settle`) is done at least once.
    """

    def __init__(
        self,
        store: Store,
        segments: Queue,
        slots: Slots,
        completions: Completions,
        attempts: Attempts,
        *,
        input_bucket: str,
        backend: str,
        pace: Pace,
    ) -> None:
        self._store = store
        self._segments = segments
        self._slots = slots
        self._completions = completions
        self._attempts = attempts
        self._input_bucket = input_bucket
        self._backend = backend
        self._pace = pace

    def succeeded(self, invocation: Invocation) -> bool:
        """Its segment is complete, also when the answer comes after it was given up. True the first time."""
        # The completion comes before the end: what is finished must not be able to lose its segment.
        completed = self._completions.done(invocation.segment, invocation.output_uri)
        first = self._store.finish(invocation.id, "succeeded")
        self._store.settle(invocation.id)
        self._slots.free(invocation.id)
        if completed:
            SEGMENTS.labels(self._backend, "completed").inc()
            SEGMENT_SECONDS.labels(self._backend).observe(max(0.0, time.time() - invocation.called_at))
        return first

    def failed(self, invocation: Invocation, reason: str) -> bool:
        """Its segment goes back to the queue, or its job has failed. True the first time."""
        first = self._store.finish(invocation.id, "failed", reason)
        self._slots.free(invocation.id)
        if first or self._owes(invocation):
            self._repeat(invocation, reason)
        return first

    def timed_out(self, invocation: Invocation, after_s: float) -> bool:
        """As `failed`, for one whose answer never came."""
        reason = f"no answer after {after_s:g} s (SAGEMAKER_INVOKE_TIMEOUT_SECONDS)"
        first = self._store.finish(invocation.id, "timed_out", reason)
        self._slots.free(invocation.id)
        if first:
            SEGMENTS.labels(self._backend, "timed_out").inc()
            self._repeat(invocation, reason)
        return first

    def settle(self, invocation_id: str) -> None:
        """Does what is left to be done for one that is finished, when whoever finished it died before."""
        invocation = self._store.invocation(invocation_id)
        if invocation is None or invocation.settled or invocation.state == "open":
            return
        if invocation.state == "succeeded":
            self._completions.check(invocation.segment.job_id)
            self._store.settle(invocation.id)
        else:
            self._repeat(invocation, invocation.reason or invocation.state)

    def _owes(self, invocation: Invocation) -> bool:
        now = self._store.invocation(invocation.id)
        return now is not None and now.state == "failed" and not now.settled

    def _repeat(self, invocation: Invocation, reason: str) -> None:
        segment = invocation.segment
        if self._store.completion(segment) is None:
            delay_s = self._delay_s(invocation, reason)
            if delay_s is not None:
                # Its message was deleted when it was invoked; this one says what S3 said.
                body = events.body_of(events.Created(self._input_bucket, input_key(segment)))
                self._segments.send(body, delay_s=delay_s)
        self._store.settle(invocation.id)

    def _delay_s(self, invocation: Invocation, reason: str) -> float | None:
        """After how long it is to be tried again; None: not at all.

        A container that says of itself that it has no room, or no models, has not tried.
        """
        segment = invocation.segment
        if _NOT_NOW.search(reason) and (refused := self._store.refuse(segment, invocation.id)) <= MOST_REFUSALS:
            log.warning("segment %s: the container did not begin with it: %s", segment, reason)
            return backoff_s(refused, self._pace.again_s, self._pace.away_s)
        if self._attempts.failed(segment, invocation.id, reason):
            return backoff_s(max(1, self._store.failures(segment)), self._pace.again_s, _MOST_DELAY_S)
        return None
