"""Consumes the reassembly queue: joins a job's segments into one video, and their results into one file."""

from __future__ import annotations

import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

from app.limits import backoff_s
from app.metrics import SEGMENT_MESSAGES
from app.segments.handler import MAX_DELIVERIES
from app.segments.keys import SegmentId, beside, check_job_id, final_results_uri, final_uri, output_uri
from app.segments.ports import Job, Message, MessageGone, ObjectMissing, Resources
from app.segments.video import VideoError, concat
from app.segments.worker import LoopHealth, VisibilityHeartbeat

log = logging.getLogger(__name__)

_POLL_S = 5.0
"""Seconds that one request for a message waits. A reassembler that stops waits for its end."""
_MAX_TRIES = 8
"""Deliveries after which an error counts as permanent: about ten minutes."""
_FIRST_PAUSE_S = 5.0
_MAX_PAUSE_S = 300.0
"""The first and the longest pause before a failing job is delivered again, seconds."""
_FAILED = b',"error":{'
"""Found only in the result line of a frame with an error. Recognized text cannot contain it, because JSON escapes
quotes."""
_QUEUE_PAUSE_S = 5.0
"""Seconds of the pause after the queue itself failed."""


class Reassembler:
    """Reassembles job after job. A reassembler that is killed loses no job, because the queue delivers the message
    again; a job whose message arrives twice is reassembled once.

    Args:
        visibility_s: the queue's visibility timeout, which a heartbeat extends, seconds.
        poll_s: seconds that one request for a message waits.
        pause_s: seconds between the first delivery of a failing job and the second. The pause doubles with each
            delivery.
    """

    def __init__(
        self, resources: Resources, *, visibility_s: float, poll_s: float = _POLL_S, pause_s: float = _FIRST_PAUSE_S
    ) -> None:
        self._resources = resources
        self._visibility_s = visibility_s
        self._poll_s = poll_s
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._health = LoopHealth()

    def stop(self) -> None:
        """Makes `run` return after the current job. Any thread or a signal handler may call it."""
        self._stopping.set()

    def report(self) -> dict[str, Any]:
        """The JSON of /health."""
        return self._health.report()

    def run(self) -> None:
        """Handles messages until `stop` is called. Errors of the queue are logged and counted, not raised."""
        while not self._stopping.is_set():
            try:
                self.turn(self._poll_s)
            except Exception:  # the queue cannot be reached or refuses: the loop must continue
                log.exception("the reassembly queue failed; trying again")
                SEGMENT_MESSAGES.labels("reassembly", "error").inc()
                self._health.failed()
                self._stopping.wait(_QUEUE_PAUSE_S)
            self._health.turned()

    def turn(self, wait_s: float) -> None:
        """Waits up to `wait_s` seconds for a message, and handles it."""
        queue = self._resources.reassembly
        message = queue.receive(wait_s)
        if message is None:
            return
        with VisibilityHeartbeat(queue, message, self._visibility_s):
            outcome = self._handle(message)
        SEGMENT_MESSAGES.labels(queue.name, outcome).inc()
        try:
            if outcome in ("error", "invalid"):
                if outcome == "error":
                    self._health.failed()
                queue.release(message, backoff_s(max(1, message.deliveries), self._pause_s, _MAX_PAUSE_S))
            else:
                queue.delete(message)
        except MessageGone as error:
            log.warning("%s", error)

    def _handle(self, message: Message) -> str:
        """Handles a message; returns its outcome, the counter's label. After `error` or `invalid` the message is
        delivered again."""
        try:
            job_id = check_job_id(message.body)
        except ValueError as error:
            log.warning("message %s of the reassembly queue is not a job id (%s); released", message.id, error)
            return "invalid"
        if message.deliveries > MAX_DELIVERIES:
            return self._give_up(job_id, f"delivered {message.deliveries - 1} times, and no process finished it")
        try:
            return self.reassemble(job_id)
        except (VideoError, ObjectMissing) as error:  # the next try would fail in the same way
            return self._give_up(job_id, str(error))
        except Exception as error:  # any error of S3, the store or the disk: the job is delivered again
            if message.deliveries >= _MAX_TRIES:
                return self._give_up(job_id, f"{type(error).__name__}: {error}")
            log.exception("job %s could not be reassembled; trying again", job_id)
            return "error"

    def _give_up(self, job_id: str, reason: str) -> str:
        log.error("job %s cannot be reassembled: %s", job_id, reason)
        self._resources.store.mark(job_id, "failed", f"its parts cannot be put together: {reason}")
        return "given_up"

    def reassemble(self, job_id: str) -> str:
        """Makes the final files of a job whose segments are all complete; returns the outcome, the counter's label.

        Raises:
            VideoError: the segments do not fit together.
            ObjectMissing: the video or, in mode `results_only`, the results of a segment do not exist.
        """
        resources = self._resources
        job = resources.store.job(job_id)
        if job is None:
            log.warning("job %s is not in the store; its message is ignored", job_id)
            return "unknown"
        if job.status == "failed":
            return "job_failed"
        if job.status == "done":
            self._tidy(job_id)
            return "duplicate"
        complete = {completion.segment.index for completion in resources.store.completions(job_id)}
        if job.total is None or not complete.issuperset(range(job.total)):
            log.warning("job %s: its segments are not all complete; the message of an earlier round is ignored", job_id)
            return "early"
        with tempfile.TemporaryDirectory(prefix="reassembly-") as folder:
            failed = self._make(job, [SegmentId(job_id, index) for index in range(job.total)], Path(folder))
        lacks = [job.reason] if job.reason else []
        if failed:
            lacks.append(f"{failed} of its frames could not be analysed; the results say why")
        resources.store.mark(job_id, "done", "; ".join(lacks) or None)
        self._tidy(job_id)
        log.info("job %s is done: %s", job_id, final_address(resources.output_bucket, job))
        return "done"

    def _make(self, job: Job, segments: list[SegmentId], folder: Path) -> int:
        """Makes and uploads the final files; returns the number of frames without a result.

        The results are uploaded before the video, because clients wait for the video.
        """
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
        """Writes all results into one file.

        Returns:
            The number of lines that are errors; None if the backend wrote no results, which a foreign backend need not
            do.
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
                with part.open("rb") as lines:
                    for line in lines:
                        failed += _FAILED in line
                        out.write(line)
        return failed if found else None

    def _tidy(self, job_id: str) -> None:
        if self._resources.tidy is not None:
            self._resources.tidy(job_id)


def final_address(bucket: str, job: Job) -> str:
    """Address of a job's final video, or of its results in mode `results_only`."""
    return (final_results_uri if job.mode == "results_only" else final_uri)(bucket, job.job_id)
