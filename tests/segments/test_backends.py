"""The backends: the stub, and a server of `/invocations`."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.segments.aws import open_worker_resources
from app.segments.backends.http import HttpBackend
from app.segments.backends.sagemaker import SageMakerBackend
from app.segments.backends.stub import StubBackend
from app.segments.events import Created, body_of
from app.segments.keys import SegmentKey, beside, input_key, input_uri, output_uri
from app.segments.ports import BackendLost, BackendUnavailable, Done, Job, SegmentFailed, WorkerResources
from app.settings import AwsSettings, SegmentSettings
from tests.support.aws import Aws
from tests.support.proxy import BEHIND_A_PROXY
from tests.support.segments import estate, local_resources, uploaded
from tests.support.worker import Analyser, Counts, until, working

SETTINGS = SegmentSettings()
SEGMENT = SegmentKey("clip", 0, "annotate")


@pytest.fixture
def parts(tmp_path: Path) -> WorkerResources:
    return local_resources(tmp_path, SETTINGS)


def addresses(parts: WorkerResources, segment: SegmentKey = SEGMENT) -> tuple[str, str]:
    return input_uri(parts.input_bucket, segment), output_uri(parts.output_bucket, segment)


def test_the_stub_passes_through(parts: WorkerResources) -> None:
    uploaded(parts, SEGMENT, b"film")
    stub = StubBackend(parts.objects)
    assert stub.ready()
    assert stub.invoke(SEGMENT, *addresses(parts)) == Done()
    assert parts.objects.read(output_uri(parts.output_bucket, SEGMENT)) == b"film"
    only = replace(SEGMENT, index=1, mode="results_only")
    uploaded(parts, only, b"film")
    stub.invoke(only, *addresses(parts, only))
    assert not parts.objects.exists(output_uri(parts.output_bucket, only))
    assert parts.objects.exists(beside(output_uri(parts.output_bucket, only)))
    with pytest.raises(SegmentFailed, match="no such file"):
        stub.invoke(replace(SEGMENT, index=2), *addresses(parts, replace(SEGMENT, index=2)))


def test_a_server_is_asked_as_it_should(parts: WorkerResources) -> None:
    uploaded(parts, SEGMENT, b"film")
    analyser = Analyser(parts.objects)
    with analyser.serving() as url:
        http = HttpBackend(url, timeout_s=10, max_calls=2, token="secret")
        assert http.ready()
        assert http.invoke(SEGMENT, *addresses(parts)) == Done()
        http.close()
    given, wanted = addresses(parts)
    assert analyser.asked == [{"s3_input_uri": given, "s3_output_uri": wanted, "mode": "annotate"}]
    assert analyser.tokens == {"Bearer secret"}
    assert parts.objects.read(wanted) == b"FILM"


def test_no_proxy_stands_before_a_server_beside_us(parts: WorkerResources, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BEHIND_A_PROXY.items():
        monkeypatch.setenv(name, value)
    with Analyser(parts.objects).serving() as url:
        http = HttpBackend(url, timeout_s=10, max_calls=2)
        assert http.ready()
        http.close()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"frames": 9, "failed": 2, "undecodable": 1}, "2 frames could not be analysed, 1 pieces could not be decoded"),
        ({"frames": 9, "failed": 0, "undecodable": 0}, ""),
        ({"failed": "some"}, ""),
        (["another's"], ""),
    ],
)
def test_frames_that_a_server_could_not_do_are_logged(
    parts: WorkerResources, said: object, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    uploaded(parts, SEGMENT, b"film")
    with Analyser(parts.objects, says=said).serving() as url:
        http = HttpBackend(url, timeout_s=10, max_calls=2)
        assert http.invoke(SEGMENT, *addresses(parts)) == Done()
        http.close()
    assert told in caplog.text
    assert bool(told) == ("could not be" in caplog.text)


@pytest.mark.parametrize("status", [400, 404, 422, 500])
def test_a_segment_that_the_server_cannot_do(parts: WorkerResources, status: int) -> None:
    with Analyser(parts.objects, script=[status]).serving() as url:
        http = HttpBackend(url, timeout_s=10, max_calls=2)
        with pytest.raises(SegmentFailed, match=rf"{status} .*cannot be read"):
            http.invoke(SEGMENT, *addresses(parts))
        http.close()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, BackendUnavailable),
        (429, BackendUnavailable),
        (503, BackendUnavailable),
        (507, BackendUnavailable),
        (502, BackendLost),
        (504, BackendLost),
    ],
)
def test_a_server_that_speaks_of_itself(parts: WorkerResources, status: int, kind: type[BackendUnavailable]) -> None:
    with Analyser(parts.objects, script=[status], up=False).serving() as url:
        http = HttpBackend(url, timeout_s=10, max_calls=2)
        assert not http.ready()
        with pytest.raises(BackendUnavailable, match=rf"INFERENCE_HTTP_URL={url}: {status}") as told:
            http.invoke(SEGMENT, *addresses(parts))
        assert type(told.value) is kind
        http.close()


def test_a_server_that_is_not_there_or_never_answers(parts: WorkerResources) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        http = HttpBackend(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3, max_calls=2)
        with pytest.raises(SegmentFailed, match=r"no answer after 0\.3 s"):
            http.invoke(SEGMENT, *addresses(parts))
        http.close()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
    # Nobody listens there any more.
    http = HttpBackend(url, timeout_s=1, max_calls=2)
    assert not http.ready()
    with pytest.raises(BackendUnavailable, match=r"INFERENCE_HTTP_URL=.*refused"):
        http.invoke(SEGMENT, *addresses(parts))
    http.close()


def begin(parts: WorkerResources) -> None:
    parts.store.put_job(Job("clip", "annotate", "clip.mp4", time.time()))
    parts.segments.send(body_of(Created(parts.input_bucket, uploaded(parts, SEGMENT))))


def test_a_segment_that_failed_twice_is_done_the_third_time(parts: WorkerResources) -> None:
    begin(parts)
    analyser = Analyser(parts.objects, script=[500, 400])
    counts = Counts().since("segments", "http", "failed").since("segments", "http", "completed")
    with (
        analyser.serving() as url,
        working(replace(parts, backend=HttpBackend(url, timeout_s=10, max_calls=5)), SETTINGS),
    ):
        until(lambda: parts.store.completion(SEGMENT.id))
        until(lambda: counts("segments", "http", "completed") == 1)
    assert len(analyser.asked) == 3
    assert counts("segments", "http", "failed") == 2
    assert parts.store.job("clip") == replace(parts.store.job("clip"), status="chunking")  # type: ignore[type-var]


def test_a_server_that_is_away_is_waited_for_and_no_segment_is_to_blame(parts: WorkerResources) -> None:
    begin(parts)
    analyser = Analyser(parts.objects, script=[503, 503], up=False)
    counts = Counts().since("segment_messages", "segments", "unavailable")
    with (
        analyser.serving() as url,
        working(replace(parts, backend=HttpBackend(url, timeout_s=10, max_calls=5)), SETTINGS) as worker,
    ):
        until(lambda: worker.report()["state"] == "degraded")
        assert not analyser.asked, "nothing is taken while it does not answer"
        message = parts.segments.receive(0)
        assert message is not None
        assert message.deliveries == 1
        parts.segments.release(message)
        analyser.up = True
        until(lambda: parts.store.completion(SEGMENT.id))
        until(lambda: worker.report()["state"] == "ok")
    assert counts("segment_messages", "segments", "unavailable") == 2
    assert parts.store.failures(SEGMENT) == 0
    assert parts.segments.receive(0) is None


def test_a_segment_over_which_the_server_goes_away_each_time_has_failed(parts: WorkerResources) -> None:
    begin(parts)
    analyser = Analyser(parts.objects, script=[502, 503, 503, 503] * 8)
    settings = SETTINGS.model_copy(update={"segment_attempts": 1})
    with (
        analyser.serving() as url,
        working(replace(parts, backend=HttpBackend(url, timeout_s=10, max_calls=5)), settings),
    ):
        job = until(lambda: (found := parts.store.job("clip")) and found.status == "failed" and found)
    assert "the backend went away over it 8 times" in job.reason
    assert len(analyser.asked) == 29, "busy it may be as often as it likes"


@pytest.mark.parametrize(
    ("missing", "backend"),
    [
        ("input_bucket_name", "stub"),
        ("output_bucket_name", "stub"),
        ("video_worker_queue_url", "stub"),
        ("segment_output_queue_url", "stub"),
        ("reassembly_queue_url", "stub"),
        ("jobs_table_name", "stub"),
        ("inference_http_url", "http"),
        ("sagemaker_endpoint_name", "sagemaker"),
    ],
)
def test_what_is_unset_is_told(aws: Aws, missing: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws.environment.items():
        monkeypatch.setenv(name, value)
    full = ESTATE.setdefault(aws.endpoint_url, estate(aws).settings)
    settings = full.model_copy(update={missing: None, "inference_backend": backend})
    with pytest.raises(ConfigurationError, match=f"{missing.upper()} is unset: "):
        open_worker_resources(settings, AwsSettings())


ESTATE: dict[str, SegmentSettings] = {}


def test_the_backend_is_the_one_that_is_set(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws.environment.items():
        monkeypatch.setenv(name, value)
    settings = estate(aws, inference_http_url="http://127.0.0.1:9", sagemaker_endpoint_name="films").settings
    for name, kind in (("stub", StubBackend), ("http", HttpBackend), ("sagemaker", SageMakerBackend)):
        parts = open_worker_resources(settings.model_copy(update={"inference_backend": name}), AwsSettings())
        assert isinstance(parts.backend, kind)
        assert parts.backend.name == name
        uploaded(parts, SEGMENT, b"film")
        assert parts.objects.read(f"s3://{parts.input_bucket}/{input_key(SEGMENT)}") == b"film"
        parts.backend.close()
