"""When a segment is done, and when a job is: the last segment triggers the reassembly, once."""

from __future__ import annotations

import logging
import threading
import time

from app.segments.keys import SegmentId
from app.segments.pace import Pace
from app.segments.ports import Completion, Queue, Store

log = logging.getLogger(__name__)


class Completions:
    """Segments may be done in any order, twice, and before or after the job's total is known."""

    def __init__(self, store: Store, reassembly: Queue, pace: Pace | None = None) -> None:
        self._store = store
        self._reassembly = reassembly
        self._lease_s = (pace or Pace()).lease_s
        self._looking = threading.Lock()

    def done(self, segment: SegmentId, output_uri: str) -> bool:
        """Notes a segment that is done, and triggers the reassembly where it was the last. True the first time."""
        first = self._store.complete(Completion(segment.id, output_uri, time.time()))
        self.check(segment.job_id)
        return first

    def check(self, job_id: str) -> bool:
        """Sends the job to the reassembly queue when it is whole and nobody has; True when it did.

        Who cuts a film calls it after `chunking_complete`: all its segments may be done by then.
        """
        with self._looking:  # threads that end the last segments together need not all ask the store
            return self._check(job_id)

    def _check(self, job_id: str) -> bool:
        job = self._store.job(job_id)
        if job is None or job.status != "chunking_complete" or not job.total:
            return False
        if len({one.segment.index for one in self._store.completions(job_id)} & set(range(job.total))) < job.total:
            return False
        # Taken, sent, and only then said to be sent: who dies between them is followed by the next who looks.
        if self._store.trigger_once(job_id, self._lease_s) != "taken":
            return False
        self._reassembly.send(job_id, once=f"{job_id}.{job.round}")
        self._store.trigger_sent(job_id)
        log.info("job %s: all %d segments are done; sent to be put together", job_id, job.total)
        return True
