"""Segments are joined once, even if messages come twice, early or damaged; on moto's AWS and in a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.segments.keys import Mode, SegmentId, beside, final_results_uri, final_uri, output_uri
from app.segments.ports import Completion, Job, Resources
from app.segments.reassemble import Reassembler
from app.segments.video import cut
from app.settings import SegmentSettings
from tests.segments.films import film
from tests.support.aws import Aws
from tests.support.movie import packets
from tests.support.segments import estate, local_resources
from tests.support.worker import Counts

JOB = "clip-1"


both = pytest.mark.parametrize("resources", ["local", "aws"], indirect=True)


@pytest.fixture
def resources(request: pytest.FixtureRequest, tmp_path: Path) -> Resources:
    if getattr(request, "param", "local") == "local":
        return local_resources(tmp_path / "out", SegmentSettings())
    aws: Aws = request.getfixturevalue("aws")
    return estate(aws).resources()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return film(tmp_path / "film.mp4", 4)


def analysed(
    resources: Resources, source: Path, folder: Path, *, mode: Mode = "annotate", results: bool = True
) -> None:
    """Makes a job whose segments are all complete, out of order."""
    parts = list(cut(source, folder / "parts", 0.3))
    resources.store.put_job(Job(JOB, mode, "film.mp4", 1.0))
    for index in (2, 0, 3, 1):
        address = output_uri(resources.output_bucket, SegmentId(JOB, index))
        if mode != "results_only":
            resources.objects.upload(parts[index], address)
        if results:
            resources.objects.write(beside(address), b'{"part": %d}\n' % index)
        resources.store.complete(Completion(SegmentId(JOB, index), address, 1.0))
    resources.store.chunking_complete(JOB, 4)


def turn(resources: Resources, *bodies: str) -> None:
    """Sends these messages, and has each handled."""
    reassembler = Reassembler(resources, visibility_s=30)
    for body in bodies:
        resources.reassembly.send(body)
        reassembler.turn(0)


def counted(outcome: str) -> Any:
    counts = Counts().since("segment_messages", "reassembly", outcome)
    return lambda: counts("segment_messages", "reassembly", outcome)


def left(resources: Resources) -> int:
    """The number of messages that can be received."""
    count = 0
    while resources.reassembly.receive(0):
        count += 1
    return count


def status(resources: Resources) -> tuple[str, str | None]:
    job = resources.store.job(JOB)
    assert job is not None
    return job.status, job.reason


@both
def test_the_parts_become_the_film_that_was_cut(resources: Resources, source: Path, tmp_path: Path) -> None:
    analysed(resources, source, tmp_path)
    done = counted("done")
    turn(resources, JOB)
    assert (done(), left(resources), status(resources)) == (1, 0, ("done", None))
    resources.objects.download(final_uri(resources.output_bucket, JOB), tmp_path / "final.mp4")
    assert packets(tmp_path / "final.mp4") == packets(source)
    lines = resources.objects.read(final_results_uri(resources.output_bucket, JOB))
    assert lines == b"".join(b'{"part": %d}\n' % index for index in range(4))


def test_a_job_that_comes_twice_is_made_once(resources: Resources, source: Path, tmp_path: Path) -> None:
    analysed(resources, source, tmp_path)
    turn(resources, JOB)
    resources.objects.write(final_uri(resources.output_bucket, JOB), b"as it was")
    duplicate = counted("duplicate")
    turn(resources, JOB, JOB)
    assert (duplicate(), left(resources)) == (2, 0)
    assert resources.objects.read(final_uri(resources.output_bucket, JOB)) == b"as it was"


@both
def test_results_only(resources: Resources, source: Path, tmp_path: Path) -> None:
    analysed(resources, source, tmp_path, mode="results_only")
    turn(resources, JOB)
    assert status(resources) == ("done", None)
    assert not resources.objects.exists(final_uri(resources.output_bucket, JOB))
    assert resources.objects.read(final_results_uri(resources.output_bucket, JOB)).count(b"\n") == 4


def test_a_backend_that_writes_no_results_gives_a_film_without(
    resources: Resources, source: Path, tmp_path: Path
) -> None:
    analysed(resources, source, tmp_path, results=False)
    turn(resources, JOB)
    assert status(resources) == ("done", None)
    assert not resources.objects.exists(final_results_uri(resources.output_bucket, JOB))


@both
def test_frames_without_a_result_are_told_of(resources: Resources, source: Path, tmp_path: Path) -> None:
    analysed(resources, source, tmp_path)
    lines = [
        b'{"frame_id":0,"pts_s":0.0,"error":{"code":"inference","message":"detect: no answer"}}',
        b'{"frame_id":1,"pts_s":0.04,"texts":[{"text":"\\",\\"error\\":{"}],"stages":{"ocr":{"status":"error"}}}',
        b'{"frame_id":2,"pts_s":0.08,"error":{"code":"internal","message":""}}',
    ]
    address = beside(output_uri(resources.output_bucket, SegmentId(JOB, 1)))
    resources.objects.write(address, b"".join(line + b"\n" for line in lines))
    turn(resources, JOB)
    assert status(resources) == ("done", "2 of its frames could not be analysed; the results say why")


def test_a_job_that_is_not_whole_waits_for_its_next_message(resources: Resources, source: Path, tmp_path: Path) -> None:
    analysed(resources, source, tmp_path)
    resources.store.chunking_complete(JOB, 5)
    early = counted("early")
    turn(resources, JOB)
    assert (early(), left(resources), status(resources)) == (1, 0, ("chunking_complete", None))


def test_what_is_no_job_of_ours_is_deleted(resources: Resources) -> None:
    count = counted("unknown")
    turn(resources, "nobody-knows-it")
    assert (count(), left(resources)) == (1, 0)


def test_d1_what_is_no_job_at_all_is_given_back(resources: Resources) -> None:
    count = counted("invalid")
    turn(resources, "../etc/passwd")
    assert count() == 1
    message = resources.reassembly.receive(10)
    assert message is not None
    assert (message.body, message.deliveries) == ("../etc/passwd", 2)


def test_parts_that_do_not_fit_together_fail_the_job(resources: Resources, source: Path, tmp_path: Path) -> None:
    analysed(resources, source, tmp_path)
    resources.objects.write(output_uri(resources.output_bucket, SegmentId(JOB, 2)), b"not a film")
    given_up = counted("given_up")
    turn(resources, JOB)
    assert (given_up(), left(resources)) == (1, 0)
    said, reason = status(resources)
    assert said == "failed"
    assert reason is not None
    assert reason.startswith("its parts cannot be put together: 00002.mp4: ")
    assert not resources.objects.exists(final_uri(resources.output_bucket, JOB))


class Broken:
    """Objects whose downloads fail."""

    def __init__(self, objects: Any) -> None:
        self._objects = objects

    def download(self, uri: str, path: Path) -> None:
        raise OSError("no route to host")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)


@both
def test_what_may_go_away_by_itself_is_tried_again(resources: Resources, source: Path, tmp_path: Path) -> None:
    analysed(resources, source, tmp_path)
    resources.reassembly.send(JOB)
    error = counted("error")
    Reassembler(replace(resources, objects=Broken(resources.objects)), visibility_s=30, pause_s=0).turn(0)
    assert (error(), status(resources)) == (1, ("chunking_complete", None))
    Reassembler(resources, visibility_s=30).turn(5)
    assert status(resources) == ("done", None)


def test_what_does_not_go_away_fails_the_job_in_the_end(resources: Resources, source: Path, tmp_path: Path) -> None:
    analysed(resources, source, tmp_path)
    resources.reassembly.send(JOB)
    reassembler = Reassembler(replace(resources, objects=Broken(resources.objects)), visibility_s=30, pause_s=0)
    for _ in range(8):
        reassembler.turn(5)
    assert left(resources) == 0
    assert status(resources) == ("failed", "its parts cannot be put together: OSError: no route to host")
