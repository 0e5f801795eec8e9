"""How often a segment may fail: SEGMENT_ATTEMPTS times; then its job has failed."""

from __future__ import annotations

import logging

from app.metrics import SEGMENTS
from app.segments.keys import SegmentId
from app.segments.ports import Store

log = logging.getLogger(__name__)

MOST_DELIVERIES = 20
"""Deliveries of one message. So many without a failure that was noted: the segment ends whoever works on it.

A dead-letter queue should take a message later than that, so that the job is told.
"""


class Attempts:
    """Counts failures in the store: a worker that is killed has not tried."""

    def __init__(self, store: Store, most: int, backend: str) -> None:
        self._store = store
        self._most = most
        self._backend = backend

    def failed(self, segment: SegmentId, attempt: str, reason: str) -> bool:
        """Notes a failure; True when the segment is to be tried again, else its job is marked as failed.

        Args:
            attempt: what names this attempt; noted twice it counts once.
        """
        count = self._store.fail(segment, attempt, reason)
        if count < self._most:
            SEGMENTS.labels(self._backend, "failed").inc()
            log.warning("segment %s: attempt %d of %d failed: %s", segment, count, self._most, reason)
            return True
        self.give_up(segment, f"tried {count} times, the last time: {reason}")
        return False

    def give_up(self, segment: SegmentId, reason: str) -> None:
        """The job has failed."""
        SEGMENTS.labels(self._backend, "given_up").inc()
        log.error("segment %s: given up, and its job with it: %s", segment, reason)
        self._store.mark(segment.job_id, "failed", f"segment {segment.index}: {reason}")
