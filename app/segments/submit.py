"""Submits a video: cuts it into segments, uploads them one by one, and follows the job to its end.

If the same video is submitted again, the job continues where it was interrupted, because its id is derived from the
video.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.logging import RichHandler
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.errors import SightlineError
from app.segments.handler import Completions
from app.segments.keys import Mode, SegmentKey, input_uri
from app.segments.ports import Job, Resources
from app.segments.reassemble import final_address
from app.segments.video import TruncatedVideo, cut, dropped_audio, probe
from app.sources.truncation import truncation

log = logging.getLogger(__name__)

_CHUNK = 4 << 20
"""Bytes of a video that are hashed between two checks for an interrupt; hashing them takes some milliseconds."""
_MAX_NAME = 40
"""Characters of the video's name in its job's id, at most."""


class Interrupted(SightlineError):
    """Ctrl-C or SIGTERM. The work done so far is kept."""


class JobFailed(SightlineError):
    """A segment or the reassembly failed permanently, or the job was deleted. The message has the reason."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A video and how to analyse it."""

    video: Path
    mode: Mode = "annotate"
    seconds: float = 10.0
    """A segment's minimum length, seconds."""
    again: bool = False
    """Start a new job if the last one is done or failed; for any other job, upload and announce its incomplete segments
    once more."""
    allow_truncated: bool = False
    """Accept a video whose file was cut off, and analyse the part that exists."""


# --- the three steps ---


def record(
    resources: Resources,
    submission: Submission,
    display: ProgressDisplay | None = None,
    stopping: threading.Event | None = None,
) -> Job:
    """Returns the video's job: the existing one, or a new one if there is none or it is to be started anew.

    A done job is started anew also if its final file was deleted.

    Raises:
        VideoError: the video cannot be read.
        TruncatedVideo: its file was cut off. A new job is failed until the video is submitted with `allow_truncated`.
        Interrupted: `stopping` was set meanwhile.
    """
    display, stopping = display or ProgressDisplay(), stopping or threading.Event()
    video, store = submission.video, resources.store
    probe(video)
    display.status(f"{video.name} is being read")
    base = _job_id(submission, stopping)
    lacks = None if submission.allow_truncated else truncation(video, check=lambda: _check_interrupt(stopping))
    display.status("")
    last: Job | None = None
    for job_id in _numbered(base):
        existing = store.job(job_id)
        if existing is None:
            break
        last = existing
    if lacks is not None:
        if last is None:
            store.put_job(Job(base, submission.mode, video.name, time.time()))
            store.mark(base, "failed", lacks)
        raise TruncatedVideo(f"{lacks}; nothing was analysed. With --allow-truncated the part that exists is analysed")
    if last is not None:
        ended = last.status in ("done", "failed")
        deleted = last.status == "done" and not resources.objects.exists(final_address(resources.output_bucket, last))
        if not (ended and submission.again) and not deleted:
            return last
    store.put_job(Job(job_id, submission.mode, video.name, time.time()))
    return _existing(resources, job_id)


def upload(
    resources: Resources, submission: Submission, job: Job, display: ProgressDisplay, stopping: threading.Event
) -> Job:
    """Cuts the video and uploads the segments that are missing in the input bucket; returns the job as it is then.

    Raises:
        VideoError: the video cannot be cut.
        Interrupted: `stopping` was set meanwhile.
    """
    display.start(job)
    if job.status == "failed":
        log.warning("job %s had failed (%s); its missing segments are tried again", job.job_id, job.reason)
        resources.store.reopen(job.job_id)
    elif submission.again and job.status == "chunking_complete":
        # All segments may be complete and the reassembly message lost. Only a new round sends the message again.
        resources.store.reopen(job.job_id)
    # The segments of a failed job are in the bucket already. They are uploaded again so that the bucket sends their
    # events to the workers again. The same holds for a later round that was interrupted.
    again = job.status == "failed" or submission.again or (job.status == "chunking" and job.round > 0)
    announced = job.status == "chunking_complete" and resources.announce is None  # the bucket has sent all events
    if job.status == "done" or (announced and not again):
        display.all_uploaded(job.total or 0)
        return job
    lacks = _output_lacks(submission, stopping)
    total = _cut_and_upload(resources, submission, job.job_id, display, stopping, again=again)
    if lacks:
        resources.store.mark(job.job_id, "chunking", lacks)
    resources.store.chunking_complete(job.job_id, total)
    display.all_uploaded(total)
    # Check here, because if all segments are complete by now, no later completion makes a worker check the job.
    Completions(resources).check(job.job_id)
    return _existing(resources, job.job_id)


def follow(
    resources: Resources, job_id: str, display: ProgressDisplay, stopping: threading.Event, *, every_s: float
) -> Job:
    """Shows a job's progress until it is done; returns the job.

    Args:
        every_s: seconds between two looks at the store.

    Raises:
        JobFailed: the job has failed, or the store no longer has it.
        Interrupted: `stopping` was set meanwhile.
    """
    while True:
        job = _existing(resources, job_id)
        display.completed({completion.segment.index for completion in resources.store.completions(job_id)})
        if job.status == "done":
            return job
        if job.status == "failed":
            raise JobFailed(
                f"job {job_id} failed: {job.reason}. Submit the video again to try what is missing, "
                "or with --again to start anew"
            )
        if stopping.wait(every_s):
            raise Interrupted(f"job {job_id} is not done. Submit the video again to go on")


def _job_id(submission: Submission, stopping: threading.Event) -> str:
    """The job id that is derived from the video's bytes, the mode and the segments' length, so that the same submission
    finds its job.

    Raises:
        Interrupted: `stopping` was set meanwhile.
    """
    digest = hashlib.sha256()
    with submission.video.open("rb") as video:
        while chunk := video.read(_CHUNK):
            _check_interrupt(stopping)
            digest.update(chunk)
    digest.update(f"{submission.mode} {submission.seconds!r}".encode())
    name = re.sub(r"[^A-Za-z0-9]+", "-", submission.video.stem).strip("-")[:_MAX_NAME].rstrip("-")
    return f"{name or 'film'}-{digest.hexdigest()[:12]}"


def _numbered(base: str) -> Iterator[str]:
    """The ids of a video's jobs in the order in which they are started anew: `base`, `base-2`, …"""
    yield base
    for number in itertools.count(2):
        yield f"{base}-{number}"


def _output_lacks(submission: Submission, stopping: threading.Event) -> str | None:
    """For the user: the parts of the video that the output will lack; None if it will lack nothing."""
    video = submission.video
    found = [truncation(video, check=lambda: _check_interrupt(stopping))] if submission.allow_truncated else []
    if submission.mode != "results_only":
        found += [f"the sound ({codec}) is left out: MP4 does not take it" for codec in dropped_audio(video)]
    return "; ".join(text for text in found if text) or None


def _check_interrupt(stopping: threading.Event) -> None:
    if stopping.is_set():
        raise Interrupted("nothing is uploaded yet. Submit the video again to go on")


def _existing(resources: Resources, job_id: str) -> Job:
    job = resources.store.job(job_id)
    if job is None:
        raise JobFailed(f"job {job_id} is no longer in the store. Submit the video again")
    return job


def _cut_and_upload(
    resources: Resources,
    submission: Submission,
    job_id: str,
    display: ProgressDisplay,
    stopping: threading.Event,
    *,
    again: bool,
) -> int:
    """Cuts the video and uploads the missing segments; returns the number of all segments.

    Args:
        again: also upload segments that exist, so that the bucket sends their events once more.
    """
    complete = {completion.segment.index for completion in resources.store.completions(job_id)}
    total, started, shown = 0, time.monotonic(), False

    def check() -> None:
        nonlocal shown
        if stopping.is_set():
            raise Interrupted(f"job {job_id}: {total} segments are uploaded. Submit the video again to go on")
        if not shown and time.monotonic() - started > display.long_s:
            shown = True
            display.status(f"segment {total} is being cut")

    with tempfile.TemporaryDirectory(prefix="cutting-") as folder:
        silent = submission.mode == "results_only"
        for part in cut(submission.video, Path(folder), submission.seconds, check, silent=silent):
            check()
            segment = SegmentKey(job_id, total, submission.mode)
            if total not in complete:
                address = input_uri(resources.input_bucket, segment)
                if again or not resources.objects.exists(address):
                    resources.objects.upload(part, address)
                if resources.announce is not None:
                    resources.announce(segment)
            display.uploaded(total)
            part.unlink()
            total += 1
            if shown:
                display.status("")
            started, shown = time.monotonic(), False
    return total


# --- the display ---

_MARKS = {"waiting": ("·", "dim"), "working": ("▸", "yellow"), "done": ("■", "green")}
_BAR = 40


class ProgressDisplay:
    """A job's progress: on a terminal a live display of each segment, elsewhere a log line for each change.

    Any thread may call it.
    """

    long_s = 2.0
    """Seconds after which it shows that a segment is still being cut."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._job_id = self._title = self._status = ""
        self._uploaded: set[int] = set()
        self._completed: set[int] = set()
        self._completed_before: int | None = None
        self._analysing: dict[int, tuple[int, int]] = {}
        self._total: int | None = None
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=5, transient=True)

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            # Log lines appear above the display. The display shows progress itself, so only warnings are logged.
            handler = RichHandler(logging.WARNING, self._console, show_path=False)
            logging.getLogger().handlers[:] = [handler]
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def status(self, text: str) -> None:
        """Sets the line on what the command waits for; an empty text removes it."""
        self._status = text
        if text and not self._console.is_terminal:
            log.info("%s", text)

    def start(self, job: Job) -> None:
        """Shows this job from now on."""
        self._job_id = job.job_id
        self._title = f"{job.source}  {job.mode}  job {job.job_id}"
        log.info("job %s: %s of %s", job.job_id, job.mode, job.source)

    def uploaded(self, index: int) -> None:
        """Marks a segment as uploaded to the input bucket."""
        with self._lock:
            self._uploaded.add(index)
        log.info("segment %d is cut and uploaded", index)

    def all_uploaded(self, total: int) -> None:
        """Marks all segments as uploaded to the input bucket and sets their number."""
        with self._lock:
            self._total = total
            self._uploaded.update(range(total))

    def progress(self, segment: SegmentKey, frames: int | None, total: int) -> None:
        """Sets the number of a segment's analysed frames.

        Args:
            frames: None if the analysis ended, successfully or not.
            total: frames of the segment.
        """
        self._status = ""
        if segment.job_id != self._job_id:  # a segment of an interrupted job in the same folder
            return
        index = segment.index
        with self._lock:
            if frames is None:
                self._analysing.pop(index, None)
            else:
                self._analysing[index] = frames, total

    def completed(self, indices: Collection[int]) -> None:
        """Marks these segments as complete."""
        with self._lock:
            if self._completed_before is None:
                self._completed_before = len(self._completed | set(indices))
            for index in sorted(set(indices) - self._completed):
                self._completed.add(index)
                log.info("segment %d is done; %s", index, self._counts())

    def _counts(self) -> str:
        of = f"of {self._total}" if self._total is not None else f"of {len(self._uploaded)} or more"
        return f"{len(self._completed)} {of} segments"

    def _render(self) -> RenderableType:
        with self._lock:
            rows = Table.grid(padding=(0, 1))
            for index, (frames, of) in sorted(self._analysing.items()):
                bar = ProgressBar(max(of, 1), min(frames, of), width=_BAR)
                rows.add_row(Text(f"{index:05d}", "yellow"), bar, Text(f"{frames} of {of} frames", "dim"))
            title = Text(self._title, "bold")
            total = self._total or max(len(self._uploaded), 1)
            bar = ProgressBar(total, len(self._completed), width=_BAR)
            line = Table.grid(padding=(0, 1))
            line.add_row(Text("video"), bar, f"{self._counts()}  {self._times()}")
            lines: list[RenderableType] = [title, line, rows, self._marks()]
            if self._status:
                lines.append(Text(self._status, "italic"))
            return Group(*lines)

    def _marks(self) -> Text:
        """One mark for each segment."""
        marks = Text()
        for index in sorted(self._uploaded | self._completed):
            state = "done" if index in self._completed else "working" if index in self._analysing else "waiting"
            marks.append(*_MARKS[state])
        return marks

    def _times(self) -> str:
        elapsed = time.monotonic() - self._started
        fresh = len(self._completed) - (self._completed_before or 0)
        if self._total is None or fresh == 0 or len(self._completed) >= self._total:
            return _clock(elapsed)
        return f"{_clock(elapsed)}, {_clock(elapsed / fresh * (self._total - len(self._completed)))} to go"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
