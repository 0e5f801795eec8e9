"""A film in: cut into segments, each uploaded as soon as it is cut; then its job is watched to its end.

Called again for the same film, it goes on where it was interrupted: a job's id follows from the film.
"""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.errors import SightlineError
from app.segments.completion import Completions
from app.segments.keys import Mode, SegmentKey, input_uri
from app.segments.ports import Job, Resources
from app.segments.progress import Board
from app.segments.reassemble import final_address
from app.segments.video import TruncatedVideo, cut, dropped_audio, probe
from app.sources.truncation import truncation

log = logging.getLogger(__name__)

_PIECE = 4 << 20
"""Bytes of a film between two looks at whether to go on: some milliseconds."""
_LONG_S = 2.0
"""After which it is said that a segment is still being cut."""
_NAME = 40
"""Letters of a film's name in its job's id."""


class Interrupted(SightlineError):
    """Ctrl-C, or SIGTERM. What was done so far is kept."""


class JobFailed(SightlineError):
    """A segment, or the reassembly, was given up. The message says why."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for."""

    film: Path
    mode: Mode = "annotate"
    seconds: float = 10.0
    """A segment's least length."""
    again: bool = False
    """Analyse it anew, though it is done or has failed; else tell the workers once more of what is missing."""
    allow_truncated: bool = False
    """Whether a film whose file was cut off is taken for what is there of it."""


def record(
    resources: Resources, wish: Wish, board: Board | None = None, stopping: threading.Event | None = None
) -> Job:
    """The film's job: a new one; or the one that is there, unless it has ended and is to be begun anew.

    Raises:
        VideoError: it cannot be read.
        TruncatedVideo: it was cut off; the job has failed for that, until the film is submitted with `allow_truncated`.
        Interrupted: `stopping` was set meanwhile.
    """
    board, stopping = board or Board(), stopping or threading.Event()
    probe(wish.film)
    board.say(f"{wish.film.name} is being read")
    base = _job_id(wish, stopping)
    lacks = None if wish.allow_truncated else truncation(wish.film, check=lambda: _heed(stopping))
    board.say("")
    last: Job | None = None
    for job_id in _numbered(base):
        there = resources.store.job(job_id)
        if there is None:
            break
        last = there
    if lacks is not None:
        if last is None:
            resources.store.put_job(Job(base, wish.mode, wish.film.name, time.time()))
            resources.store.mark(base, "failed", lacks)
        raise TruncatedVideo(f"{lacks}; nothing was analysed. With --allow-truncated what is there is taken")
    if (
        last is not None
        and not (_ended(last) and wish.again)
        and not (last.status == "done" and _gone(resources, last))
    ):
        return last
    resources.store.put_job(Job(job_id, wish.mode, wish.film.name, time.time()))
    return _known(resources, job_id)


def upload(resources: Resources, wish: Wish, job: Job, board: Board, stopping: threading.Event) -> Job:
    """Cuts and uploads what of a film is not yet where the workers find it.

    Raises:
        VideoError: it cannot be cut.
        Interrupted: `stopping` was set meanwhile.
    """
    board.job(job)
    if job.status == "failed":
        log.warning("job %s had failed (%s); trying again what is missing", job.job_id, job.reason)
        resources.store.reopen(job.job_id)
    elif wish.again and job.status == "chunking_complete":
        # All may be done, and the message that said so lost: only another round's is sent anew.
        resources.store.reopen(job.job_id)
    # A later round that was interrupted, too: what failed lies in the bucket, and the workers are to hear of it anew.
    again = job.status == "failed" or wish.again or (job.status == "chunking" and job.round > 0)
    told = job.status == "chunking_complete" and resources.announce is None  # the bucket has told the workers of all
    if job.status == "done" or (told and not again):
        board.whole(job.total or 0)
        return job
    wanting = _wanting(wish, stopping)
    total = _cut(resources, wish, job.job_id, board, stopping, again=again)
    if wanting:
        resources.store.mark(job.job_id, "chunking", wanting)
    resources.store.chunking_complete(job.job_id, total)
    board.whole(total)
    # All may be done by now, and then no worker looks again soon.
    Completions(resources.store, resources.reassembly).check(job.job_id)
    return _known(resources, job.job_id)


def follow(resources: Resources, job_id: str, board: Board, stopping: threading.Event, *, every_s: float) -> Job:
    """Shows a job's progress until it is done.

    Raises:
        JobFailed: it is not going to be.
        Interrupted: `stopping` was set meanwhile.
    """
    while True:
        job = _known(resources, job_id)
        board.done({one.segment.index for one in resources.store.completions(job_id)})
        if job.status == "done":
            return job
        if job.status == "failed":
            raise JobFailed(
                f"job {job_id} failed: {job.reason}. Submit the film again to try what is missing, "
                "or with --again to begin anew"
            )
        if stopping.wait(every_s):
            raise Interrupted(f"job {job_id} is not done. Submit the film again to go on")


def _job_id(wish: Wish, stopping: threading.Event) -> str:
    """Follows from the film's bytes, and from what else decides its segments."""
    digest = hashlib.sha256()
    with wish.film.open("rb") as film:
        while piece := film.read(_PIECE):
            _heed(stopping)
            digest.update(piece)
    digest.update(f"{wish.mode} {wish.seconds!r}".encode())
    name = re.sub(r"[^A-Za-z0-9]+", "-", wish.film.stem).strip("-")[:_NAME].rstrip("-")
    return f"{name or 'film'}-{digest.hexdigest()[:12]}"


def _wanting(wish: Wish, stopping: threading.Event) -> str | None:
    """What the new film will lack, in words."""
    found = [truncation(wish.film, check=lambda: _heed(stopping))] if wish.allow_truncated else []
    if wish.mode != "results_only":
        found += [f"the sound ({codec}) is left out: MP4 does not take it" for codec in dropped_audio(wish.film)]
    return "; ".join(words for words in found if words) or None


def _heed(stopping: threading.Event) -> None:
    if stopping.is_set():
        raise Interrupted("nothing is uploaded yet. Submit the film again to go on")


def _numbered(base: str) -> Iterator[str]:
    yield base
    number = 2
    while True:
        yield f"{base}-{number}"
        number += 1


def _ended(job: Job) -> bool:
    return job.status in ("done", "failed")


def _gone(resources: Resources, job: Job) -> bool:
    return not resources.objects.exists(final_address(resources.output_bucket, job))


def _known(resources: Resources, job_id: str) -> Job:
    job = resources.store.job(job_id)
    if job is None:
        raise JobFailed(f"job {job_id} is no longer in the store. Submit the film again")
    return job


def _cut(resources: Resources, wish: Wish, job_id: str, board: Board, stopping: threading.Event, *, again: bool) -> int:
    """Uploads what is missing; returns the number of segments.

    Args:
        again: also what is there already, so that the bucket tells the workers of it once more.
    """
    done = {one.segment.index for one in resources.store.completions(job_id)}
    total, began, said = 0, time.monotonic(), False

    def check() -> None:
        nonlocal said
        if stopping.is_set():
            raise Interrupted(f"job {job_id}: {total} segments are uploaded. Submit the film again to go on")
        if not said and time.monotonic() - began > _LONG_S:
            said = True
            board.say(f"segment {total} is being cut")

    with tempfile.TemporaryDirectory(prefix="cutting-") as folder:
        for part in cut(wish.film, Path(folder), wish.seconds, check, silent=wish.mode == "results_only"):
            check()
            segment = SegmentKey(job_id, total, wish.mode)
            if total not in done:
                address = input_uri(resources.input_bucket, segment)
                if again or not resources.objects.exists(address):
                    resources.objects.upload(part, address)
                if resources.announce is not None:
                    resources.announce(segment)
            board.uploaded(total)
            part.unlink()
            total += 1
            if said:
                board.say("")
            began, said = time.monotonic(), False
    return total
