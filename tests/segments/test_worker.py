"""The worker, on moto's AWS and on a folder."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from app.segments.backends.http import HttpBackend
from app.segments.events import Created, body_of
from app.segments.handler import Completions
from app.segments.keys import SegmentKey, beside, input_key, input_uri, output_uri
from app.segments.local import LocalDatabase, LocalQueue
from app.segments.ports import Backend, Completion, Done, Job, Queue, SegmentFailed, WorkerResources
from app.settings import SegmentSettings
from tests.support.aws import Aws
from tests.support.segments import estate, local_resources, uploaded
from tests.support.service import process, wait_for_line
from tests.support.worker import Analyser, Counts, until, working

SETTINGS = SegmentSettings(segment_visibility_s=30)
Make = Callable[..., WorkerResources]


@pytest.fixture(params=["aws", "local"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes resources on moto's AWS or in a folder."""
    if request.param == "local":
        return lambda **settings: local_resources(tmp_path, SETTINGS.model_copy(update=settings))
    aws: Aws = request.getfixturevalue("aws")
    return lambda **settings: estate(aws, **({"segment_visibility_s": 30} | settings)).resources()


@pytest.fixture
def parts(make: Make) -> WorkerResources:
    return make()


@pytest.fixture
def local(tmp_path: Path) -> WorkerResources:
    """Local resources, for behaviour that is the same on AWS, because the tests of stores and queues cover both."""
    return local_resources(tmp_path, SETTINGS)


def segments(count: int, job_id: str = "clip") -> list[SegmentKey]:
    return [SegmentKey(job_id, index, "annotate") for index in range(count)]


def submit(parts: WorkerResources, count: int, job_id: str = "clip") -> list[SegmentKey]:
    """Makes a job with all its segments uploaded; sends their events if no bucket does."""
    parts.store.put_job(Job(job_id, "annotate", "clip.mp4", time.time()))
    made = segments(count, job_id)
    for segment in made:
        uploaded(parts, segment, f"film {segment.index}".encode())
        if parts.input_bucket.startswith("/"):
            parts.segments.send(body_of(Created(parts.input_bucket, input_key(segment))))
    parts.store.chunking_complete(job_id, count)
    return made


def jobs_sent(queue: Queue) -> list[str]:
    """Receives and deletes all jobs in the reassembly queue."""
    found = []
    while (message := queue.receive(0)) is not None:
        found.append(message.body)
        queue.delete(message)
    return found


def all_done(parts: WorkerResources, count: int, job_id: str = "clip") -> bool:
    return len(parts.store.completions(job_id)) == count and parts.store.trigger_once(job_id, 60) == "sent"


def test_segments_go_through_and_the_job_is_sent_once(parts: WorkerResources) -> None:
    made = submit(parts, 3)
    with working(parts, SETTINGS) as worker:
        until(lambda: all_done(parts, 3))
        until(lambda: worker.report()["state"] == "ok")
        assert worker.report()["backend"] == "stub"
    for segment in made:
        assert parts.objects.read(output_uri(parts.output_bucket, segment)) == f"film {segment.index}".encode()
        assert parts.objects.read(beside(output_uri(parts.output_bucket, segment))) == b""
    assert [completion.segment.index for completion in parts.store.completions("clip")] == [0, 1, 2]
    assert jobs_sent(parts.reassembly) == ["clip"]
    assert parts.segments.receive(0) is None


def test_one_event_may_name_many_segments_and_strangers(parts: WorkerResources) -> None:
    parts.store.put_job(Job("clip", "annotate", "clip.mp4", 0.0))
    names = [Created(parts.input_bucket, uploaded(parts, segment)) for segment in segments(3)]
    strangers = [Created(parts.input_bucket, "segments/readme.txt"), Created("another", names[0].key)]
    parts.segments.send(body_of(names[0], strangers[0], names[1], strangers[1], names[2]))
    parts.store.chunking_complete("clip", 3)
    counts = Counts().since("segment_messages", "segments", "invalid")
    with working(parts, SETTINGS):
        until(lambda: all_done(parts, 3))
        until(lambda: counts("segment_messages", "segments", "invalid") >= 2)
        # The other bucket's is not ours to delete: the message comes again, until its dead-letter queue has it.
        until(lambda: counts("segment_messages", "segments", "duplicate") >= 3)


def test_d1_bodies_that_are_not_understood_are_counted_and_given_back(parts: WorkerResources) -> None:
    counts = Counts().since("segment_messages", "segments", "invalid").since("segment_messages", "events", "invalid")
    for queue in (parts.segments, parts.events):
        for body in ("no json", '{"Records": [1]}', "[]"):
            queue.send(body)
    with working(parts, SETTINGS):
        until(lambda: counts("segment_messages", "segments", "invalid") >= 6)
        until(lambda: counts("segment_messages", "events", "invalid") >= 6)


def test_d1_a_body_that_is_not_understood_ends_in_the_dead_letter_queue(aws: Aws) -> None:
    made = estate(aws, segment_visibility_s=30)
    parts, sqs = made.resources(), aws.client("sqs")
    url = made.settings.video_worker_queue_url
    assert url is not None
    policy = json.loads(sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]["RedrivePolicy"])
    dead = url.rpartition("/")[0] + "/" + policy["deadLetterTargetArn"].rpartition(":")[2]
    policy["maxReceiveCount"] = "2"
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": json.dumps(policy)})
    parts.segments.send('{"hello": "world"}')
    letters: list[str] = []

    def buried() -> bool:
        found = sqs.receive_message(QueueUrl=dead, WaitTimeSeconds=0).get("Messages", ())
        letters.extend(letter["Body"] for letter in found)
        return bool(letters)

    with working(parts, SETTINGS):
        until(buried)
    assert letters == ['{"hello": "world"}']


def _sns(body: str) -> str:
    return json.dumps({"Type": "Notification", "TopicArn": "arn:aws:sns:eu:1:films", "Message": body})


def _eventbridge(bucket: str, key: str) -> str:
    detail = {"version": "0", "bucket": {"name": bucket}, "object": {"key": key, "size": 5}, "reason": "PutObject"}
    return json.dumps({"version": "0", "source": "aws.s3", "detail-type": "Object Created", "detail": detail})


def test_d1_events_in_envelopes_end_their_job(parts: WorkerResources) -> None:
    parts.store.put_job(Job("clip", "annotate", "clip.mp4", time.time()))
    keys = [input_key(segment) for segment in segments(5)]
    for segment in segments(5):
        parts.objects.write(input_uri(parts.input_bucket, segment), b"film")
    while (message := parts.segments.receive(0)) is not None:  # S3's own events: only the wrapped ones shall do it
        parts.segments.delete(message)
    bucket = parts.input_bucket
    parts.segments.send(_sns(body_of(Created(bucket, keys[0]), Created(bucket, keys[1]))))
    parts.segments.send(_eventbridge(bucket, keys[2]))
    parts.segments.send(_sns(_eventbridge(bucket, keys[3])))
    parts.segments.send(_sns(_sns(body_of(Created(bucket, keys[4])))))
    parts.segments.send(_sns('{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"b"}'))
    parts.store.chunking_complete("clip", 5)
    with working(parts, SETTINGS):
        until(lambda: all_done(parts, 5))
    assert parts.segments.receive(0) is None


@pytest.mark.parametrize(
    "stranger",
    [
        SegmentKey("clip", 7, "annotate"),  # beyond the job's total
        SegmentKey("clip", 0, "results_only"),  # of another mode than the job
        SegmentKey("nobody", 0, "annotate"),
    ],
)
def test_d1_an_event_for_a_segment_that_does_not_exist_harms_no_job(
    parts: WorkerResources, stranger: SegmentKey
) -> None:
    submit(parts, 2)
    parts.segments.send(body_of(Created(parts.input_bucket, input_key(stranger))))
    counts = Counts().since("segment_messages", "segments", "unknown")
    with working(parts, SETTINGS.model_copy(update={"segment_attempts": 1})):
        until(lambda: counts("segment_messages", "segments", "unknown") >= 2)
        until(lambda: all_done(parts, 2))
    job = parts.store.job("clip")
    assert job is not None
    assert (job.status, job.reason) == ("chunking_complete", None)
    assert parts.store.job("nobody") is None


def test_d1_an_event_before_its_upload_harms_no_job(parts: WorkerResources) -> None:
    parts.store.put_job(Job("clip", "annotate", "clip.mp4", time.time()))
    (segment,) = segments(1)
    parts.segments.send(body_of(Created(parts.input_bucket, input_key(segment))))
    counts = Counts().since("segment_messages", "segments", "missing")
    with working(parts, SETTINGS.model_copy(update={"segment_attempts": 1})):
        until(lambda: counts("segment_messages", "segments", "missing") >= 2)
        parts.objects.write(input_uri(parts.input_bucket, segment), b"film")
        parts.store.chunking_complete("clip", 1)
        until(lambda: all_done(parts, 1))


def test_events_that_come_twice_change_nothing(parts: WorkerResources) -> None:
    made = submit(parts, 2)
    counts = Counts().since("segments", "stub", "completed")
    with working(parts, SETTINGS):
        until(lambda: all_done(parts, 2))
        before = parts.store.completions("clip")
        duplicates = Counts().since("segment_messages", "segments", "duplicate")
        for segment in (*made, *made):
            parts.segments.send(body_of(Created(parts.input_bucket, input_key(segment))))
        until(lambda: duplicates("segment_messages", "segments", "duplicate") == 4)
    assert parts.store.completions("clip") == before
    assert counts("segments", "stub", "completed") == 2
    assert jobs_sent(parts.reassembly) == ["clip"]


def test_segments_that_are_done_before_the_total_is_known(local: WorkerResources) -> None:
    local.store.put_job(Job("clip", "annotate", "clip.mp4", 0.0))
    completions = Completions(local)
    for index in (2, 0, 1):
        assert completions.complete(SegmentKey("clip", index, "annotate"), f"s3://out/{index}")
    assert jobs_sent(local.reassembly) == []
    local.store.chunking_complete("clip", 3)
    assert completions.check("clip"), "who cut the film finds all segments done"
    assert not completions.check("clip")
    assert jobs_sent(local.reassembly) == ["clip"]


def test_a_segment_beyond_the_total_does_not_stand_for_one_that_is_missing(local: WorkerResources) -> None:
    local.store.put_job(Job("clip", "annotate", "clip.mp4", 0.0))
    local.store.chunking_complete("clip", 2)
    completions = Completions(local)
    for index in (0, 7):
        completions.complete(SegmentKey("clip", index, "annotate"), "s3://out/x")
    assert jobs_sent(local.reassembly) == []


def test_a_trigger_whose_taker_died_is_sent_by_the_next(parts: WorkerResources) -> None:
    parts.store.put_job(Job("clip", "annotate", "clip.mp4", 0.0))
    parts.store.complete(Completion(SegmentKey("clip", 0, "annotate").id, "s3://out/0", 1.0))
    parts.store.chunking_complete("clip", 1)
    assert parts.store.trigger_once("clip", 60) == "taken", "and its taker dies before it sends"
    with working(parts, SETTINGS):
        until(lambda: parts.store.trigger_once("clip", 60) == "sent")
    assert jobs_sent(parts.reassembly) == ["clip"]


def test_a_segment_that_is_not_there_fails_its_job_when_its_attempts_are_spent(local: WorkerResources) -> None:
    local.store.put_job(Job("clip", "annotate", "clip.mp4", 0.0))
    counts = Counts().since("segments", "stub", "failed").since("segments", "stub", "given_up")
    local.store.chunking_complete("clip", 8)
    local.segments.send(body_of(Created(local.input_bucket, "segments/clip/00007.annotate.mp4")))
    with working(local, SETTINGS):
        job = until(lambda: (found := local.store.job("clip")) and found.status == "failed" and found)
        until(lambda: counts("segments", "stub", "given_up") == 1)
    assert job.reason.startswith("segment 7: tried 3 times, the last time: ")
    assert "it is no longer in bucket" in job.reason
    assert counts("segments", "stub", "failed") == 2
    assert local.segments.receive(0) is None
    assert local.store.completions("clip") == []


def test_segments_of_a_failed_job_are_left_alone_until_it_is_reopened(local: WorkerResources) -> None:
    submit(local, 2)
    local.store.mark("clip", "failed", "by hand")
    counts = Counts().since("segment_messages", "segments", "job_failed")
    with working(local, SETTINGS):
        until(lambda: counts("segment_messages", "segments", "job_failed") == 2)
        assert local.store.completions("clip") == []
        local.store.reopen("clip")
        for segment in segments(2):
            local.segments.send(body_of(Created(local.input_bucket, input_key(segment))))
        local.store.chunking_complete("clip", 2)
        until(lambda: all_done(local, 2))


class Overtaken(Backend):
    """A backend that fails a segment which another worker has completed meanwhile."""

    name = "overtaken"

    def __init__(self, parts: WorkerResources) -> None:
        self._parts = parts

    def ready(self) -> bool:
        return True

    def invoke(self, segment: SegmentKey, input_uri: str, output_uri: str) -> Done:
        Completions(self._parts).complete(segment, output_uri)
        raise SegmentFailed("its input is gone")


def test_a_failure_after_somebody_else_has_done_the_segment_changes_nothing(local: WorkerResources) -> None:
    submit(local, 1)
    counts = Counts().since("segment_messages", "segments", "duplicate")
    settings = SETTINGS.model_copy(update={"segment_attempts": 1})
    with working(replace(local, backend=Overtaken(local)), settings):
        until(lambda: counts("segment_messages", "segments", "duplicate") == 1)
    job = local.store.job("clip")
    assert job is not None
    assert job.status == "chunking_complete"
    assert jobs_sent(local.reassembly) == ["clip"]
    assert local.segments.receive(0) is None


def test_without_a_thread_left_the_place_and_the_message_are_given_back(
    local: WorkerResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(local, 1)
    start, left = threading.Thread.start, [1]

    def full(thread: threading.Thread) -> None:
        if thread.name == "segment" and left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", full)
    with working(local, SETTINGS.model_copy(update={"inference_max_in_flight": 1})):
        until(lambda: all_done(local, 1))
    assert left == [0]


def test_a_segment_that_ends_whoever_works_on_it_fails_its_job_in_the_end(tmp_path: Path) -> None:
    parts = local_resources(tmp_path, SETTINGS)
    submit(parts, 1)
    for _ in range(20):
        message = parts.segments.receive(0)
        assert message is not None
        parts.segments.release(message)
    with working(parts, SETTINGS):
        job = until(lambda: (found := parts.store.job("clip")) and found.status == "failed" and found)
    assert job.reason == "segment 0: delivered 20 times, and no worker finished it"


def test_a_segment_file_is_only_acknowledged(local: WorkerResources) -> None:
    local.store.put_job(Job("clip", "annotate", "clip.mp4", 0.0))
    counts = Counts().since("segment_messages", "events", "segment_file").since("segment_messages", "events", "other")
    for key in ("jobs/clip/segments/00000.mp4", "jobs/clip/final.mp4", "jobs/clip/segments/00000.jsonl"):
        local.events.send(body_of(Created(local.output_bucket, key)))
    with working(local, SETTINGS):
        until(lambda: counts("segment_messages", "events", "other") == 2)
        until(lambda: counts("segment_messages", "events", "segment_file") == 1)
    assert local.store.completions("clip") == []


def test_what_is_worked_on_stays_hidden_and_no_more_is_taken_than_there_are_places(make: Make) -> None:
    parts = make(segment_visibility_s=3)
    analyser = Analyser(parts.objects, takes_s=60.0)
    with analyser.serving() as url:
        parts = replace(parts, backend=HttpBackend(url, timeout_s=90, max_calls=2))
        submit(parts, 4)
        settings = SETTINGS.model_copy(update={"inference_max_in_flight": 2, "segment_visibility_s": 3})
        with working(parts, settings) as worker:
            until(lambda: len(analyser.asked) == 2)
            assert worker.report()["in_flight"] == 2
            untouched = [message for _ in range(2) if (message := parts.segments.receive(0))]
            assert [message.deliveries for message in untouched] == [1, 1], "what waits was never received"
            for message in untouched:
                parts.segments.extend(message, 60)
            assert parts.segments.receive(4) is None, "hidden for three seconds, and still worked on: it came again"
            for message in untouched:
                parts.segments.release(message)
            analyser.go_on.set()
            until(lambda: all_done(parts, 4))
    assert analyser.most_at_once == 2
    assert len(analyser.asked) == 4


def test_a_worker_that_stops_ends_what_it_can_and_gives_back_the_rest(local: WorkerResources) -> None:
    analyser = Analyser(local.objects, takes_s=30.0)
    with analyser.serving() as url:
        parts = replace(local, backend=HttpBackend(url, timeout_s=60, max_calls=2))
        submit(parts, 1)
        with working(parts, SETTINGS, drain_s=0.2):
            until(lambda: analyser.asked)
        message = parts.segments.receive(1)
        assert message is not None, "visible at once"
        assert message.deliveries == 2
        analyser.go_on.set()


def test_a_local_worker_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"segment_visibility_s": 2})
    submit(local_resources(tmp_path, settings), 3)
    queue = LocalQueue(LocalDatabase(tmp_path / ".state" / "segments.db"), "segments", visibility_s=2)
    assert queue.receive(0) is not None, "taken by one that was killed"
    parts = local_resources(tmp_path, settings)
    with working(parts, settings):
        until(lambda: all_done(parts, 3))
    assert jobs_sent(parts.reassembly) == ["clip"]


def test_the_worker_as_a_process_with_its_pages(aws: Aws, tmp_path: Path) -> None:
    made = estate(aws)
    parts = made.resources()
    submit(parts, 2)
    settings = made.environment | {"METRICS_PORT": "0", "DRAIN_TIMEOUT_S": "2", "LOG_FORMAT": "console"}
    log_path = tmp_path / "log"
    with process(["segments", "work"], settings, log_path) as child:
        port = wait_for_line(child, log_path, r"metrics on http://127\.0\.0\.1:(\d+)/metrics")[1]
        until(lambda: all_done(parts, 2))
        health = httpx.get(f"http://127.0.0.1:{port}/health", timeout=10)
        assert health.status_code == 200
        assert health.json()["backend"] == "stub"
        assert set(health.json()["loops"]) == {"inference", "events", "rounds"}
        counted = 'sightline_segments_total{backend="stub",outcome="completed"} 2.0'  # once the store has it
        until(lambda: counted in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0, log_path.read_text()
    assert "Traceback" not in log_path.read_text()


def test_a_worker_outlives_aws(local: WorkerResources) -> None:
    settings = SETTINGS.model_copy(update={"inference_max_in_flight": 1})

    class Dull:
        """A store whose first two reads fail."""

        def __init__(self) -> None:
            self.left = 2

        def __getattr__(self, name: str) -> object:
            if name == "open_invocations" and self.left:
                self.left -= 1
                raise ConnectionError("DynamoDB is away")
            return getattr(local.store, name)

    submit(local, 1)
    dull = Dull()
    with working(replace(local, store=dull), settings) as worker:  # type: ignore[arg-type]
        until(lambda: worker.report()["state"] == "degraded")
        until(lambda: all_done(local, 1))
        until(lambda: worker.report()["state"] == "ok")
    assert dull.left == 0
