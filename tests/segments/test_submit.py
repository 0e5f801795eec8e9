"""Videos submitted, interrupted and submitted again, on moto's AWS and in a folder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.segments.aws import SqsQueue, open_resources
from app.segments.events import read
from app.segments.handler import Completions
from app.segments.keys import SegmentId, SegmentKey, final_uri, input_uri, output_uri, parse_input
from app.segments.local import LocalFolder
from app.segments.ports import Completion, Job, Queue, Resources
from app.segments.submit import Interrupted, JobFailed, ProgressDisplay, Submission, follow, record, upload
from app.segments.video import VideoError
from app.settings import AwsSettings, SegmentSettings
from tests.segments.films import film
from tests.support.aws import REGION, Aws
from tests.support.segments import estate


class Watched:
    """A resources, and the queue that workers hear of its segments by."""

    def __init__(self, resources: Resources, segments: Queue) -> None:
        self.resources = resources
        self.segments = segments

    def heard(self) -> list[SegmentKey]:
        """The announced segments, sorted; deletes their messages."""
        found = []
        while message := self.segments.receive(0):
            for event in read(message.body):
                segment = parse_input(event.bucket, event.key)
                assert segment is not None
                assert self.resources.objects.exists(input_uri(self.resources.input_bucket, segment))
                found.append(segment)
            self.segments.delete(message)
        return sorted(found, key=lambda segment: segment.index)


both = pytest.mark.parametrize("watched", ["local", "aws"], indirect=True)


@pytest.fixture
def watched(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    if getattr(request, "param", "local") == "local":
        local = LocalFolder(tmp_path / "out", SegmentSettings())
        yield Watched(local.resources, local.segments)
        local.close()
        return
    aws: Aws = request.getfixturevalue("aws")
    for name, value in aws.environment.items():
        monkeypatch.setenv(name, value)
    settings = estate(aws).settings
    assert settings.video_worker_queue_url
    queue = SqsQueue(aws.client("sqs"), settings.video_worker_queue_url, "segments")
    resources = open_resources(settings, AwsSettings(aws_region=REGION, aws_endpoint_url=aws.endpoint_url))
    yield Watched(resources, queue)


@pytest.fixture
def submission(tmp_path: Path) -> Submission:
    return Submission(film(tmp_path / "Grüße, 1.mp4", 4), seconds=0.3)


def go(
    watched: Watched,
    submission: Submission,
    display: ProgressDisplay | None = None,
    stopping: threading.Event | None = None,
) -> Job:
    resources = watched.resources
    return upload(
        resources,
        submission,
        record(resources, submission),
        display or ProgressDisplay(),
        stopping or threading.Event(),
    )


def taken(queue: Queue) -> list[str]:
    """The bodies of all its messages, which are deleted."""
    found = []
    while message := queue.receive(0):
        found.append(message.body)
        queue.delete(message)
    return found


def finish(resources: Resources, job: Job) -> None:
    """Marks the job as done, as if its segments had been analysed and joined."""
    resources.objects.write(final_uri(resources.output_bucket, job.job_id), b"film")
    resources.store.mark(job.job_id, "done")


def of(job: Job, *indices: int) -> list[SegmentKey]:
    return [SegmentKey(job.job_id, index, job.mode) for index in indices]


class StopsAfter(ProgressDisplay):
    """Sets the event once so many segments are uploaded."""

    def __init__(self, count: int, stopping: threading.Event, then: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._left, self._stopping, self._then = count, stopping, then

    def uploaded(self, index: int) -> None:
        super().uploaded(index)
        self._left -= 1
        if self._left == 0:
            self._then()
            self._stopping.set()


@both
def test_a_film_is_cut_uploaded_and_recorded(watched: Watched, submission: Submission) -> None:
    job = go(watched, submission)
    assert job.job_id.startswith("Gr-e-1-")
    assert (job.source, job.mode, job.status, job.total) == ("Grüße, 1.mp4", "annotate", "chunking_complete", 4)
    assert watched.heard() == of(job, 0, 1, 2, 3)


def test_workers_hear_of_a_segment_as_soon_as_it_is_cut(watched: Watched, submission: Submission) -> None:
    stopping = threading.Event()
    heard: list[SegmentKey] = []
    with pytest.raises(Interrupted, match="2 segments are uploaded"):
        go(watched, submission, StopsAfter(2, stopping, lambda: heard.extend(watched.heard())), stopping)
    assert [segment.index for segment in heard] == [0, 1]


class Says(ProgressDisplay):
    """Records the status texts, and sets the event after so many of them."""

    long_s = -1.0

    def __init__(self, stopping: threading.Event, after: int) -> None:
        super().__init__()
        self.said: list[str] = []
        self._stopping, self._after = stopping, after

    def status(self, words: str) -> None:
        self.said.append(words)
        if len(self.said) == self._after:
            self._stopping.set()


def test_the_reading_of_a_film_is_said_and_can_be_interrupted(watched: Watched, submission: Submission) -> None:
    stopping = threading.Event()
    display = Says(stopping, 1)
    with pytest.raises(Interrupted, match="nothing is uploaded yet"):
        record(watched.resources, submission, display, stopping)
    assert display.said == ["Grüße, 1.mp4 is being read"]
    display = Says(threading.Event(), 0)
    assert record(watched.resources, submission, display, threading.Event()).status == "chunking"
    assert display.said == ["Grüße, 1.mp4 is being read", ""]


def test_the_cutting_of_a_long_segment_is_said_and_can_be_interrupted(watched: Watched, submission: Submission) -> None:
    whole, stopping = replace(submission, seconds=60), threading.Event()
    job = record(watched.resources, whole)
    display = Says(stopping, 1)
    with pytest.raises(Interrupted, match="0 segments are uploaded"):
        upload(watched.resources, whole, job, display, stopping)
    assert display.said == ["segment 0 is being cut"]
    assert watched.heard() == []
    display = Says(threading.Event(), 0)
    upload(watched.resources, whole, job, display, threading.Event())
    assert display.said == ["segment 0 is being cut", ""]
    assert watched.heard() == of(job, 0)


@both
def test_an_interrupted_submission_goes_on(watched: Watched, submission: Submission) -> None:
    stopping = threading.Event()
    with pytest.raises(Interrupted):
        go(watched, submission, StopsAfter(2, stopping), stopping)
    job = record(watched.resources, submission)
    assert (job.status, job.total) == ("chunking", None)
    assert go(watched, submission).total == 4
    assert watched.heard() == of(job, 0, 1, 2, 3)  # each once


def test_what_is_done_already_is_not_uploaded_again(watched: Watched, submission: Submission) -> None:
    stopping = threading.Event()
    with pytest.raises(Interrupted):
        go(watched, submission, StopsAfter(2, stopping), stopping)
    job = record(watched.resources, submission)
    watched.heard()
    watched.resources.store.complete(Completion(SegmentId(job.job_id, 0), "", 1.0))
    go(watched, submission)
    assert 0 not in [segment.index for segment in watched.heard()]


def test_a_job_whose_segments_were_all_done_while_it_was_cut_is_sent_to_be_put_together(
    watched: Watched, submission: Submission
) -> None:
    resources, job = watched.resources, record(watched.resources, submission)
    for segment in of(job, 0, 1, 2, 3):
        resources.store.complete(Completion(segment.id, output_uri(resources.output_bucket, segment), 1.0))
    go(watched, submission)
    message = resources.reassembly.receive(0)
    assert message is not None
    assert message.body == job.job_id


@both
def test_a_job_that_failed_is_tried_again_where_it_failed(watched: Watched, submission: Submission) -> None:
    resources, job = watched.resources, go(watched, submission)
    watched.heard()
    resources.store.complete(Completion(SegmentId(job.job_id, 1), "", 1.0))
    resources.store.mark(job.job_id, "failed", "segment 0: the model fell over")
    with pytest.raises(JobFailed, match=r"segment 0: the model fell over\. Submit the video again"):
        follow(resources, job.job_id, ProgressDisplay(), threading.Event(), every_s=0.01)
    again = go(watched, submission)
    assert (again.job_id, again.status, again.round) == (job.job_id, "chunking_complete", 1)
    assert watched.heard() == of(job, 0, 2, 3)


@both
def test_a_later_round_that_is_interrupted_goes_on(watched: Watched, submission: Submission) -> None:
    resources, job, stopping = watched.resources, go(watched, submission), threading.Event()
    watched.heard()
    resources.store.mark(job.job_id, "failed", "segment 3: the model fell over")
    with pytest.raises(Interrupted):
        go(watched, submission, StopsAfter(2, stopping), stopping)
    assert watched.heard() == of(job, 0, 1)
    assert go(watched, submission).status == "chunking_complete"
    assert set(watched.heard()) == set(of(job, 0, 1, 2, 3))


def test_a_job_whose_parts_do_not_fit_together_can_be_begun_anew(watched: Watched, submission: Submission) -> None:
    resources, job = watched.resources, go(watched, submission)
    watched.heard()
    for segment in of(job, 0, 1, 2, 3):
        resources.store.complete(Completion(segment.id, "", 1.0))
    resources.store.mark(job.job_id, "failed", "its parts cannot be put together")
    with pytest.raises(JobFailed, match=r"or with --again to start anew"):
        follow(resources, job.job_id, ProgressDisplay(), threading.Event(), every_s=0.01)
    second = go(watched, Submission(submission.video, submission.mode, submission.seconds, again=True))
    assert second.job_id == f"{job.job_id}-2"
    assert watched.heard() == of(second, 0, 1, 2, 3)
    assert go(watched, submission).job_id == second.job_id


def test_what_a_kill_left_half_written_goes_with_the_parts(
    watched: Watched, submission: Submission, tmp_path: Path
) -> None:
    job = go(watched, submission)
    finish(watched.resources, job)
    folder = tmp_path / "out" / "jobs" / job.job_id
    (folder / ".final.mp4.k1ll3d.part").write_bytes(b"half")
    assert watched.resources.tidy is not None
    watched.resources.tidy(job.job_id)
    assert [path.name for path in folder.iterdir()] == ["final.mp4"]


@both
def test_a_film_that_is_done_is_done_anew_only_when_asked(watched: Watched, submission: Submission) -> None:
    resources, job = watched.resources, go(watched, submission)
    watched.heard()
    finish(resources, job)
    assert go(watched, submission).job_id == job.job_id
    assert follow(resources, job.job_id, ProgressDisplay(), threading.Event(), every_s=60).status == "done"
    assert watched.heard() == []
    anew = Submission(submission.video, submission.mode, submission.seconds, again=True)
    second = go(watched, anew)
    assert second.job_id == f"{job.job_id}-2"
    assert go(watched, anew).job_id == second.job_id  # that one is not done yet
    assert go(watched, submission).job_id == second.job_id
    assert set(watched.heard()) == set(of(second, 0, 1, 2, 3))


@both
def test_a_job_that_is_stuck_is_told_of_once_more_when_asked(watched: Watched, submission: Submission) -> None:
    resources, job = watched.resources, go(watched, submission)
    assert len(watched.heard()) == 4  # which no worker received
    resources.store.complete(Completion(SegmentId(job.job_id, 3), "", 1.0))
    assert (
        go(watched, Submission(submission.video, submission.mode, submission.seconds, again=True)).job_id == job.job_id
    )
    assert watched.heard() == of(job, 0, 1, 2)


@both
def test_a_job_whose_last_message_was_lost_is_put_together_when_asked(watched: Watched, submission: Submission) -> None:
    resources, job = watched.resources, go(watched, submission)
    watched.heard()
    for index in range(4):
        resources.store.complete(Completion(SegmentId(job.job_id, index), "", 1.0))
    assert Completions(resources).check(job.job_id)
    assert taken(resources.reassembly) == [job.job_id]  # which no worker received
    assert go(watched, submission).status == "chunking_complete"
    assert taken(resources.reassembly) == []
    anew = go(watched, Submission(submission.video, submission.mode, submission.seconds, again=True))
    assert (anew.job_id, anew.status, anew.total) == (job.job_id, "chunking_complete", 4)
    assert taken(resources.reassembly) == [job.job_id]
    assert watched.heard() == [], "nothing of it is analysed again"


def test_a_film_whose_result_was_deleted_is_done_anew(watched: Watched, submission: Submission) -> None:
    job = go(watched, submission)
    watched.resources.store.mark(job.job_id, "done")
    assert go(watched, submission).job_id == f"{job.job_id}-2"


def test_other_submissiones_are_other_jobs(watched: Watched, submission: Submission) -> None:
    first = record(watched.resources, submission)
    others = [Submission(submission.video, "blur_faces", 0.3), Submission(submission.video, "annotate", 0.5)]
    assert len({first.job_id, *(record(watched.resources, other).job_id for other in others)}) == 3


def test_waiting_ends_when_it_is_told_to(watched: Watched, submission: Submission) -> None:
    job, stopping = go(watched, submission), threading.Event()
    stopping.set()
    with pytest.raises(Interrupted, match=r"is not done\. Submit the video again to go on"):
        follow(watched.resources, job.job_id, ProgressDisplay(), stopping, every_s=60)


def test_what_is_no_film_leaves_no_job(watched: Watched, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("not a film")
    with pytest.raises(VideoError, match=r"a\.mp4"):
        record(watched.resources, Submission(path))
    assert watched.resources.store.waiting_jobs() == []
