"""The asynchronous endpoint: a stand-in for SageMaker's runtime, which writes its answers to moto's S3."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import boto3
import pytest

from app.segments.backends.sagemaker import SageMakerBackend
from app.segments.events import Created, body_of
from app.segments.handler import Attempts, Completions, InvocationResults, Limiter, Timings
from app.segments.keys import SegmentKey, input_uri, output_uri, parse_answer, split_s3
from app.segments.ports import Accepted, BackendUnavailable, Invocation, Job, WorkerResources
from app.segments.worker import SegmentWorker
from app.settings import SegmentSettings
from tests.support.aws import REGION, Aws
from tests.support.segments import estate, local_resources, uploaded
from tests.support.worker import Counts, Runtime, until, working

SEGMENT = SegmentKey("clip", 0, "annotate")


@dataclass(frozen=True)
class Setup:
    """Resources whose backend is the runtime."""

    parts: WorkerResources
    runtime: Runtime
    settings: SegmentSettings
    backend: SageMakerBackend

    @contextmanager
    def working(self, **settings: int) -> Iterator[SegmentWorker]:
        with working(self.parts, self.settings.model_copy(update=settings)) as worker:
            yield worker

    def submit(self, count: int = 1) -> list[SegmentKey]:
        """Makes a job and uploads its segments; S3 sends their events."""
        store = self.parts.store
        store.put_job(Job("clip", "annotate", "clip.mp4", time.time()))
        made = [SegmentKey("clip", index, "annotate") for index in range(count)]
        for segment in made:
            uploaded(self.parts, segment, b"film")
        store.chunking_complete("clip", count)
        return made

    def invoke(self, segment: SegmentKey = SEGMENT) -> Accepted:
        given, wanted = input_uri(self.parts.input_bucket, segment), output_uri(self.parts.output_bucket, segment)
        return self.backend.invoke(segment, given, wanted)

    def open(self) -> list[str]:
        return [invocation.id for invocation in self.parts.store.open_invocations() if invocation.state == "open"]

    def sent(self) -> list[str]:
        """Receives and deletes all jobs in the reassembly queue."""
        found = []
        while (message := self.parts.reassembly.receive(0)) is not None:
            found.append(message.body)
            self.parts.reassembly.delete(message)
        return found

    def done(self, count: int = 1) -> bool:
        store = self.parts.store
        return len(store.completions("clip")) == count and store.trigger_once("clip", 60) == "sent"


def client(url: str) -> object:
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return boto3.client("sagemaker-runtime", endpoint_url=url, region_name=REGION, **keys)


@pytest.fixture
def setup(aws: Aws) -> Iterator[Setup]:
    made = estate(aws, segment_visibility_s=30, inference_max_in_flight=2)
    parts = made.resources()
    runtime = Runtime(parts.objects, parts.output_bucket)
    with runtime.serving() as url:
        backend = SageMakerBackend(
            client(url),  # type: ignore[arg-type]
            "films",
            parts.objects,
            parts.store,
            input_bucket=parts.input_bucket,
            timeout_s=600,
        )
        yield Setup(replace(parts, backend=backend), runtime, made.settings, backend)


def test_the_call_as_the_api_wants_it(setup: Setup) -> None:
    uploaded(setup.parts, SEGMENT)
    invocation = setup.invoke().invocation
    (call,) = setup.runtime.calls
    assert call["path"] == "/endpoints/films/async-invocations"
    assert call["x-amzn-sagemaker-inference-id"] == invocation.id
    assert call["x-amzn-sagemaker-filename"] == f"{invocation.id}.out"
    assert call["x-amzn-sagemaker-requestttlseconds"] == "600"
    assert call["x-amzn-sagemaker-invocationtimeoutseconds"] == "600"
    assert call["x-amzn-sagemaker-content-type"] == "application/json"
    body = setup.parts.objects.read(call["x-amzn-sagemaker-inputlocation"])
    assert (
        body
        == (
            f'{{"s3_input_uri":"s3://{setup.parts.input_bucket}/segments/clip/00000.annotate.mp4",'
            f'"s3_output_uri":"s3://{setup.parts.output_bucket}/jobs/clip/segments/00000.mp4","mode":"annotate"}}'
        ).encode()
    )
    recorded = setup.parts.store.invocation(invocation.id)
    assert recorded is not None
    assert recorded.answer_uri == f"s3://{setup.parts.output_bucket}/async/{invocation.id}.out"
    assert recorded.failure_uri == f"s3://{setup.parts.output_bucket}/async-failures/{invocation.id}.out"


def test_an_answer_that_comes_before_the_call_returns(setup: Setup) -> None:
    setup.submit(3)
    counts = Counts().since("segments", "sagemaker", "completed")
    with setup.working() as worker:
        until(lambda: setup.done(3))
        until(lambda: worker.limiter.in_flight == 0)
        until(lambda: counts("segments", "sagemaker", "completed") == 3)
    assert setup.parts.objects.read(output_uri(setup.parts.output_bucket, SEGMENT)) == b"FILM"
    assert len(setup.runtime.calls) == 3
    assert setup.sent() == ["clip"]


def test_messages_are_deleted_at_once_and_places_are_held_until_the_answer(setup: Setup) -> None:
    setup.runtime.script = ["late"] * 3
    setup.submit(3)
    with setup.working() as worker:
        until(lambda: len(setup.runtime.waiting) == 2)
        until(lambda: worker.limiter.in_flight == 2)
        assert len(setup.open()) == 2
        waits = until(lambda: setup.parts.segments.receive(1))
        assert waits.deliveries == 1, "two at the endpoint: the third was never received"
        assert setup.parts.segments.receive(0) is None, "the messages of those two are gone"
        setup.parts.segments.release(waits)
        assert setup.parts.store.completions("clip") == [], "nothing is complete before its event"
        setup.runtime.answer_all()
        until(lambda: len(setup.runtime.waiting) == 1)
        setup.runtime.answer_all()
        until(lambda: setup.done(3))
        until(lambda: worker.limiter.in_flight == 0)
    assert setup.sent() == ["clip"]


def test_an_answer_that_comes_twice_frees_one_place(setup: Setup) -> None:
    setup.runtime.script = ["late", "late"]
    setup.submit(2)
    counts = Counts().since("segment_messages", "events", "late")
    with setup.working() as worker:
        until(lambda: len(setup.runtime.waiting) == 2 and worker.limiter.in_flight == 2)
        (name, asked), rest = setup.runtime.waiting[0], setup.runtime.waiting[1:]
        setup.runtime.waiting = rest
        for _ in range(3):
            setup.runtime.answer(name, asked)
        until(lambda: counts("segment_messages", "events", "late") == 2)
        assert worker.limiter.in_flight == 1
        setup.runtime.answer_all()
        until(lambda: setup.done(2))
    assert setup.sent() == ["clip"]


def test_a_failure_is_tried_again(setup: Setup) -> None:
    setup.runtime.script = ["fail", "fail", "early"]
    setup.submit(1)
    counts = Counts().since("segments", "sagemaker", "failed").since("segments", "sagemaker", "completed")
    with setup.working() as worker:
        until(lambda: setup.done())
        until(lambda: worker.limiter.in_flight == 0)
    assert counts("segments", "sagemaker", "failed") == 2
    assert counts("segments", "sagemaker", "completed") == 1
    assert len({call["x-amzn-sagemaker-inference-id"] for call in setup.runtime.calls}) == 3
    assert setup.sent() == ["clip"]


def test_a_container_without_room_costs_no_attempt(setup: Setup) -> None:
    setup.runtime.script = ["refuse", "refuse quoted", "refuse", "early"]
    setup.submit(1)
    counts = Counts().since("segments", "sagemaker", "failed")
    with setup.working(segment_attempts=1) as worker:
        until(lambda: setup.done())
        until(lambda: worker.limiter.in_flight == 0)
        until(lambda: not setup.parts.store.open_invocations())
    assert counts("segments", "sagemaker", "failed") == 0
    assert (setup.parts.store.failures(SEGMENT), setup.parts.store.refusals(SEGMENT)) == (0, 3)
    assert len({call["x-amzn-sagemaker-inference-id"] for call in setup.runtime.calls}) == 4
    assert setup.sent() == ["clip"]


def test_a_container_that_never_has_room_fails_the_job_in_the_end(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.segments.handler.MAX_REFUSALS", 2)
    setup.runtime.script = ["refuse"] * 9
    setup.submit(1)
    with setup.working(segment_attempts=2):
        job = until(lambda: (found := setup.parts.store.job("clip")) and found.status == "failed" and found)
    assert len(setup.runtime.calls) == 4
    assert "503" in job.reason


class Sends:
    """A queue without a reader, which records each message's delay."""

    name = "segments"

    def __init__(self) -> None:
        self.delays: list[float] = []

    def send(self, body: str, *, once: str | None = None, delay_s: float = 0.0) -> None:
        self.delays.append(delay_s)


@pytest.mark.parametrize(
    ("reason", "delays"),
    [("CUDA out of memory", [5, 10, 20, 40, 80, 160, 300, 300]), ('"code":"no_room"', [5, 10, 20, 30, 30, 30, 30, 30])],
)
def test_each_time_it_waits_longer(tmp_path: Path, reason: str, delays: list[float]) -> None:
    queue = Sends()
    resources = replace(local_resources(tmp_path, SegmentSettings()), segments=queue)  # type: ignore[arg-type]
    store = resources.store
    store.put_job(Job("clip", "annotate", "clip.mp4", time.time()))
    results = InvocationResults(
        resources, Limiter(1, "sagemaker"), Completions(resources), Attempts(resources, 20), Timings()
    )
    for number in range(len(delays)):
        invocation = Invocation(f"{number:032x}", SEGMENT, "s3://in/x", "s3://out/y", called_at=time.time())
        store.record(invocation)
        results.failed(invocation, reason)
        results.failed(invocation, reason)  # said twice, it counts once
    assert queue.delays == delays


def test_a_segment_that_fails_to_the_last_fails_its_job(setup: Setup) -> None:
    setup.runtime.script = ["fail"] * 9
    setup.submit(1)
    with setup.working() as worker:
        job = until(lambda: (found := setup.parts.store.job("clip")) and found.status == "failed" and found)
        until(lambda: worker.limiter.in_flight == 0)
        until(lambda: not setup.parts.store.open_invocations())
    assert len(setup.runtime.calls) == 3
    assert "tried 3 times" in job.reason
    assert "CUDA out of memory" in job.reason
    assert setup.parts.segments.receive(0) is None


def test_an_answer_that_never_comes_is_given_up_and_its_segment_repeated(setup: Setup) -> None:
    setup.runtime.script = ["late", "early"]
    setup.submit(1)
    counts = Counts().since("segments", "sagemaker", "timed_out").since("segment_messages", "events", "late")
    with setup.working(sagemaker_invoke_timeout_seconds=1, inference_max_in_flight=1) as worker:
        until(lambda: setup.done())
        assert counts("segments", "sagemaker", "timed_out") == 1
        before = setup.parts.store.completions("clip")
        setup.runtime.answer_all()  # it comes after all
        until(lambda: counts("segment_messages", "events", "late") == 1)
        assert setup.parts.store.completions("clip") == before
        assert worker.limiter.in_flight == 0
    assert setup.sent() == ["clip"]


def test_an_answer_after_it_was_given_up_still_counts(setup: Setup) -> None:
    setup.runtime.script = ["late"] * 5
    setup.submit(1)
    with setup.working(sagemaker_invoke_timeout_seconds=1, segment_attempts=20) as worker:
        until(lambda: len(setup.runtime.calls) >= 2)
        setup.runtime.answer_all()
        until(lambda: setup.done())
        until(lambda: worker.limiter.in_flight == 0)
    assert setup.sent() == ["clip"]


def test_places_are_counted_anew_from_the_store(setup: Setup) -> None:
    setup.runtime.script = ["late", "late"]
    made = setup.submit(3)
    for segment in made[:2]:
        setup.invoke(segment)  # by a worker that was killed then
    with setup.working() as worker:
        until(lambda: worker.limiter.in_flight == 2)
        time.sleep(1.0)  # it might take a third, if it were wrong
        assert len(setup.runtime.calls) == 2
        setup.runtime.answer_all()
        until(lambda: setup.done(3))
        until(lambda: worker.limiter.in_flight == 0)
    assert len(setup.runtime.calls) == 3, "those two messages came again, and were known"


def test_another_worker_s_answer_frees_this_one_s_place(setup: Setup) -> None:
    setup.runtime.script = ["late"]
    setup.submit(1)
    with setup.working() as worker:
        (name,) = until(worker.limiter.invocations)
        assert setup.parts.store.finish(name, "succeeded"), "as another worker would"
        setup.parts.store.settle(name)
        until(lambda: worker.limiter.in_flight == 0)


def test_killed_between_the_record_and_the_call(setup: Setup) -> None:
    setup.runtime.script = ["busy"] * 4
    setup.submit(1)
    with pytest.raises(BackendUnavailable, match=r"SAGEMAKER_ENDPOINT_NAME=films.*Rate exceeded"):
        setup.invoke()
    (left,) = setup.open()
    setup.runtime.script = []
    with setup.working(inference_max_in_flight=1):
        until(lambda: setup.done())
    assert {call["x-amzn-sagemaker-inference-id"] for call in setup.runtime.calls} == {left}
    assert setup.sent() == ["clip"]


def test_an_endpoint_that_is_busy_for_longer_than_an_answer_may_take_costs_no_attempt(setup: Setup) -> None:
    setup.runtime.script = ["busy"] * 10_000
    setup.submit(1)
    counts = Counts().since("segments", "sagemaker", "timed_out")
    with setup.working(sagemaker_invoke_timeout_seconds=1, segment_attempts=20) as worker:
        until(lambda: setup.runtime.calls)
        time.sleep(1.5)  # the record is older than an answer may be, and the rounds see it several times
        assert counts("segments", "sagemaker", "timed_out") == 0
        assert setup.parts.store.failures(SEGMENT) == 0
        (recorded,), taken_at = setup.open(), time.time()
        setup.runtime.script = []
        until(lambda: setup.done())
        until(lambda: worker.limiter.in_flight == 0)
    invocation = setup.parts.store.invocation(recorded)
    assert invocation is not None
    assert invocation.called_at > taken_at, "the answer is waited for from when the call was taken"
    assert setup.sent() == ["clip"]


@pytest.mark.parametrize("outcome", ["failed", "succeeded", "timed_out"])
def test_killed_between_the_end_and_what_follows(setup: Setup, outcome: str) -> None:
    setup.runtime.script = ["late"]
    setup.submit(1)
    invocation = setup.invoke().invocation
    message = until(lambda: setup.parts.segments.receive(1))
    setup.parts.segments.delete(message)
    if outcome == "succeeded":
        setup.runtime.answer_all()
        event = until(lambda: setup.parts.events.receive(1))
        while event is not None:
            setup.parts.events.delete(event)
            event = setup.parts.events.receive(0)
        from app.segments.ports import Completion

        setup.parts.store.complete(Completion(SEGMENT.id, invocation.output_uri, time.time()))
    assert setup.parts.store.finish(invocation.id, outcome, "why")  # type: ignore[arg-type]
    with setup.working():
        until(lambda: setup.done())
        until(lambda: not setup.parts.store.open_invocations())
    assert setup.sent() == ["clip"]


def test_a_runtime_that_names_files_itself(setup: Setup) -> None:
    setup.runtime.keeps_names = False
    setup.runtime.script = ["early", "fail", "late"]
    setup.submit(2)
    with setup.working() as worker:
        until(lambda: setup.runtime.waiting)
        setup.runtime.answer_all()
        until(lambda: setup.done(2))
        until(lambda: worker.limiter.in_flight == 0)


def test_an_answer_to_nothing_is_given_up_in_the_end(setup: Setup) -> None:
    counts = Counts().since("segment_messages", "events", "unknown").since("segment_messages", "events", "early")
    tried = until(lambda: setup.parts.events.receive(1))  # S3 tries the queue when it is wired
    setup.parts.events.delete(tried)
    setup.parts.events.send(body_of(Created(setup.parts.output_bucket, "async/nobody.out")))
    for _ in range(17):
        message = until(lambda: setup.parts.events.receive(0))
        setup.parts.events.release(message)
    with setup.working():
        until(lambda: counts("segment_messages", "events", "unknown") == 1)
    assert counts("segment_messages", "events", "early") == 2
    assert setup.parts.events.receive(0) is None


def test_motos_own_runtime(aws: Aws) -> None:
    made = estate(aws)
    parts = made.resources()
    runtime = aws.client("sagemaker-runtime")
    backend = SageMakerBackend(
        runtime, "films", parts.objects, parts.store, input_bucket=parts.input_bucket, timeout_s=60
    )
    parts.store.put_job(Job("clip", "annotate", "clip.mp4", time.time()))
    uploaded(parts, SEGMENT)
    parts.store.chunking_complete("clip", 1)
    with working(replace(parts, backend=backend), made.settings) as worker:
        (invocation,) = until(lambda: [found for found in parts.store.open_invocations() if found.answer_uri])
        # moto answers into a bucket that it makes on the spot; the test sends its event.
        bucket, key = split_s3(invocation.answer_uri)
        assert parse_answer(bucket, key) is None
        parts.events.send(body_of(Created(bucket, key)))
        until(lambda: parts.store.completion(SEGMENT.id))
        until(lambda: worker.limiter.in_flight == 0)
