"""The reassembly queue: a job's segments put together into one film, and their results into one file."""

from __future__ import annotations

import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

from app.limits import backoff_s
from app.metrics import SEGMENT_MESSAGES
from app.segments.attempts import MOST_DELIVERIES
from app.segments.heartbeat import Heartbeat
from app.segments.keys import SegmentId, beside, check_job_id, final_results_uri, final_uri, output_uri
from app.segments.ports import Job, Message, MessageGone, ObjectMissing, Resources
from app.segments.pulse import Pulse
from app.segments.video import VideoError, concat

log = logging.getLogger(__name__)

_POLL_S = 5.0
"""Seconds that a request for a message is held; one that stops waits so long at most."""
_TRIES = 8
"""Deliveries after which an error is no longer hoped to go away by itself: about ten minutes."""
_FIRST_PAUSE_S = 5.0
_MOST_PAUSE_S = 300.0
_FAILED = b',"error":{'
"""In a frame's line in place of its result. A text that was read cannot hold it: its quotes are escaped."""
_PAUSE_S = 5.0
"""After the queue itself could not be asked."""


class Reassembler:
    """Takes one job after the other. Killed at any moment, it loses nothing; a job that comes twice is made once."""

    def __init__(self, resources: Resources, *, visibility_s: float, poll_s: float = _POLL_S) -> None:
        self._resources = resources
        self._visibility_s = visibility_s
        self._poll_s = poll_s
        self._stopping = threading.Event()
        self._pulse = Pulse()

    def stop(self) -> None:
        """Asks it to end, after the job in hand; from any thread, or a signal."""
        self._stopping.set()

    def report(self) -> dict[str, Any]:
        """What /health says."""
        return self._pulse.report()

    def run(self) -> None:
        """Works until `stop`."""
        while not self._stopping.is_set():
            try:
                self.turn(self._poll_s)
            except Exception:  # the queue is away, or says no: the loop must outlive it
                log.exception("the reassembly queue could not be asked; trying again")
                SEGMENT_MESSAGES.labels("reassembly", "error").inc()
                self._pulse.failed()
                self._stopping.wait(_PAUSE_S)
            self._pulse.turned()

    def turn(self, wait_s: float) -> None:
        """Waits for a message, so long at most, and deals with it."""
        queue = self._resources.reassembly
        message = queue.receive(wait_s)
        if message is None:
            return
        with Heartbeat(queue, message, self._visibility_s):
            outcome = self._outcome(message)
        SEGMENT_MESSAGES.labels(queue.name, outcome).inc()
        try:
            if outcome in ("error", "invalid"):
                if outcome == "error":
                    self._pulse.failed()
                queue.release(message, backoff_s(max(1, message.deliveries), _FIRST_PAUSE_S, _MOST_PAUSE_S))
            else:
                queue.delete(message)
        except MessageGone as error:
            log.warning("%s", error)

    def _outcome(self, message: Message) -> str:
        """What became of it: a word for the counter; after `error` and `invalid` it comes again."""
        try:
            job_id = check_job_id(message.body)
        except ValueError as error:
            log.warning("message %s of the reassembly queue is no job (%s); given back", message.id, error)
            return "invalid"
        if message.deliveries > MOST_DELIVERIES:
            return self._given_up(job_id, f"delivered {message.deliveries - 1} times, and nobody could end it")
        try:
            return self.put_together(job_id)
        except (VideoError, ObjectMissing) as error:  # it would be the same the next time
            return self._given_up(job_id, str(error))
        except Exception as error:  # whatever S3, the store or the disk has against this job: it comes again
            if message.deliveries >= _TRIES:
                return self._given_up(job_id, f"{type(error).__name__}: {error}")
            log.exception("job %s could not be put together; trying again", job_id)
            return "error"

    def _given_up(self, job_id: str, reason: str) -> str:
        log.error("job %s cannot be put together: %s", job_id, reason)
        self._resources.store.mark(job_id, "failed", f"its parts cannot be put together: {reason}")
        return "given_up"

    def put_together(self, job_id: str) -> str:
        """Makes the film of a job whose segments are all done; returns what became of it.

        Raises:
            VideoError: the segments do not fit together.
            ObjectMissing: one of them is not there.
        """
        resources = self._resources
        job = resources.store.job(job_id)
        if job is None:
            log.warning("job %s is not recorded; left alone", job_id)
            return "unknown"
        if job.status == "failed":
            return "job_failed"
        if job.status == "done":
            self._tidied(job_id)
            return "duplicate"
        there = {one.segment.index for one in resources.store.completions(job_id)}
        if job.total is None or not there.issuperset(range(job.total)):
            log.warning("job %s: a message of an earlier round; its segments are not all done", job_id)
            return "early"
        with tempfile.TemporaryDirectory(prefix="reassembly-") as folder:
            failed = self._make(job, [SegmentId(job_id, index) for index in range(job.total)], Path(folder))
        wanting = [job.reason] if job.reason else []
        if failed:
            wanting.append(f"{failed} of its frames could not be analysed; the results say why")
        resources.store.mark(job_id, "done", "; ".join(wanting) or None)
        self._tidied(job_id)
        log.info("job %s is done: %s", job_id, final_address(resources.output_bucket, job))
        return "done"

    def _make(self, job: Job, segments: list[SegmentId], folder: Path) -> int:
        """Results first: where there is a film, they are there, too. Returns how many frames have none."""
        bucket, objects = self._resources.output_bucket, self._resources.objects
        results = folder / "final.jsonl"
        failed = self._results(job, segments, results)
        if failed is not None:
            objects.upload(results, final_results_uri(bucket, job.job_id))
        if job.mode == "results_only":
            return failed or 0
        parts = [folder / f"{segment.index:05d}.mp4" for segment in segments]
        for segment, part in zip(segments, parts, strict=True):
            objects.download(output_uri(bucket, segment), part)
        concat(parts, folder / "final.mp4")
        objects.upload(folder / "final.mp4", final_uri(bucket, job.job_id))
        return failed or 0

    def _results(self, job: Job, segments: list[SegmentId], target: Path) -> int | None:
        """Writes all results into one file; returns how many are errors. None where the backend wrote none, as one that
        is not ours may do.
        """
        part = target.with_name("part.jsonl")
        found, failed = False, 0
        with target.open("wb") as out:
            for segment in segments:
                try:
                    self._resources.objects.download(beside(output_uri(self._resources.output_bucket, segment)), part)
                except ObjectMissing:
                    if job.mode == "results_only":
                        raise
                    continue
                found = True
                with part.open("rb") as one:
                    for line in one:
                        failed += _FAILED in line
                        out.write(line)
        return failed if found else None

    def _tidied(self, job_id: str) -> None:
        if self._resources.tidy is not None:
            self._resources.tidy(job_id)


def final_address(bucket: str, job: Job) -> str:
    """Where a job's film is, or its results where no film was asked for."""
    return (final_results_uri if job.mode == "results_only" else final_uri)(bucket, job.job_id)
