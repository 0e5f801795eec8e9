"""Segments put together, once, whatever comes twice, early or damaged: on moto's AWS and in a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.segments.depot import Depot
from app.segments.keys import Mode, SegmentId, beside, final_results_uri, final_uri, output_uri
from app.segments.ports import Completion, Job
from app.segments.reassemble import Reassembler
from app.segments.video import cut
from app.settings import SegmentSettings
from tests.segments.films import film
from tests.support.aws import Aws
from tests.support.movie import packets
from tests.support.segments import estate, local_parts
from tests.support.worker import Counts

JOB = "clip-1"


both = pytest.mark.parametrize("depot", ["local", "aws"], indirect=True)


@pytest.fixture
def depot(request: pytest.FixtureRequest, tmp_path: Path) -> Depot:
    if getattr(request, "param", "local") == "local":
        parts = local_parts(tmp_path / "out", SegmentSettings())
    else:
        aws: Aws = request.getfixturevalue("aws")
        parts = estate(aws).parts()
    return Depot(parts.input_bucket, parts.output_bucket, parts.objects, parts.store, parts.reassembly)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return film(tmp_path / "film.mp4", 4)


def analysed(depot: Depot, source: Path, folder: Path, *, mode: Mode = "annotate", results: bool = True) -> None:
    """A job whose segments are all there, done in no order."""
    parts = list(cut(source, folder / "parts", 0.3))
    depot.store.put_job(Job(JOB, mode, "film.mp4", 1.0))
    for index in (2, 0, 3, 1):
        address = output_uri(depot.output_bucket, SegmentId(JOB, index))
        if mode != "results_only":
            depot.objects.upload(parts[index], address)
        if results:
            depot.objects.write(beside(address), b'{"part": %d}\n' % index)
        depot.store.complete(Completion(SegmentId(JOB, index), address, 1.0))
    depot.store.chunking_complete(JOB, 4)


def turn(depot: Depot, *bodies: str) -> None:
    """Sends these, and has them dealt with."""
    one = Reassembler(depot, visibility_s=30)
    for body in bodies:
        depot.reassembly.send(body)
        one.turn(0)


def counted(outcome: str) -> Any:
    counts = Counts().since("segment_messages", "reassembly", outcome)
    return lambda: counts("segment_messages", "reassembly", outcome)


def left(depot: Depot) -> int:
    """Messages that are there to be received."""
    count = 0
    while depot.reassembly.receive(0):
        count += 1
    return count


def status(depot: Depot) -> tuple[str, str | None]:
    job = depot.store.job(JOB)
    assert job is not None
    return job.status, job.reason


@both
def test_the_parts_become_the_film_that_was_cut(depot: Depot, source: Path, tmp_path: Path) -> None:
    analysed(depot, source, tmp_path)
    done = counted("done")
    turn(depot, JOB)
    assert (done(), left(depot), status(depot)) == (1, 0, ("done", None))
    depot.objects.download(final_uri(depot.output_bucket, JOB), tmp_path / "final.mp4")
    assert packets(tmp_path / "final.mp4") == packets(source)
    lines = depot.objects.read(final_results_uri(depot.output_bucket, JOB))
    assert lines == b"".join(b'{"part": %d}\n' % index for index in range(4))


def test_a_job_that_comes_twice_is_made_once(depot: Depot, source: Path, tmp_path: Path) -> None:
    analysed(depot, source, tmp_path)
    turn(depot, JOB)
    depot.objects.write(final_uri(depot.output_bucket, JOB), b"as it was")
    duplicate = counted("duplicate")
    turn(depot, JOB, JOB)
    assert (duplicate(), left(depot)) == (2, 0)
    assert depot.objects.read(final_uri(depot.output_bucket, JOB)) == b"as it was"


@both
def test_results_only(depot: Depot, source: Path, tmp_path: Path) -> None:
    analysed(depot, source, tmp_path, mode="results_only")
    turn(depot, JOB)
    assert status(depot) == ("done", None)
    assert not depot.objects.exists(final_uri(depot.output_bucket, JOB))
    assert depot.objects.read(final_results_uri(depot.output_bucket, JOB)).count(b"\n") == 4


def test_a_backend_that_writes_no_results_gives_a_film_without(depot: Depot, source: Path, tmp_path: Path) -> None:
    analysed(depot, source, tmp_path, results=False)
    turn(depot, JOB)
    assert status(depot) == ("done", None)
    assert not depot.objects.exists(final_results_uri(depot.output_bucket, JOB))


@both
def test_frames_without_a_result_are_told_of(depot: Depot, source: Path, tmp_path: Path) -> None:
    analysed(depot, source, tmp_path)
    lines = [
        b'{"frame_id":0,"pts_s":0.0,"error":{"code":"inference","message":"detect: no answer"}}',
        b'{"frame_id":1,"pts_s":0.04,"texts":[{"text":"\\",\\"error\\":{"}],"stages":{"ocr":{"status":"error"}}}',
        b'{"frame_id":2,"pts_s":0.08,"error":{"code":"internal","message":""}}',
    ]
    address = beside(output_uri(depot.output_bucket, SegmentId(JOB, 1)))
    depot.objects.write(address, b"".join(line + b"\n" for line in lines))
    turn(depot, JOB)
    assert status(depot) == ("done", "2 of its frames could not be analysed; the results say why")


def test_a_job_that_is_not_whole_waits_for_its_next_message(depot: Depot, source: Path, tmp_path: Path) -> None:
    analysed(depot, source, tmp_path)
    depot.store.chunking_complete(JOB, 5)
    early = counted("early")
    turn(depot, JOB)
    assert (early(), left(depot), status(depot)) == (1, 0, ("chunking_complete", None))


def test_what_is_no_job_of_ours_is_deleted(depot: Depot) -> None:
    count = counted("unknown")
    turn(depot, "nobody-knows-it")
    assert (count(), left(depot)) == (1, 0)


def test_d1_what_is_no_job_at_all_is_given_back(depot: Depot) -> None:
    count = counted("invalid")
    turn(depot, "../etc/passwd")
    assert count() == 1
    message = depot.reassembly.receive(10)
    assert message is not None
    assert (message.body, message.deliveries) == ("../etc/passwd", 2)


def test_parts_that_do_not_fit_together_fail_the_job(depot: Depot, source: Path, tmp_path: Path) -> None:
    analysed(depot, source, tmp_path)
    depot.objects.write(output_uri(depot.output_bucket, SegmentId(JOB, 2)), b"not a film")
    given_up = counted("given_up")
    turn(depot, JOB)
    assert (given_up(), left(depot)) == (1, 0)
    said, reason = status(depot)
    assert said == "failed"
    assert reason is not None
    assert reason.startswith("its parts cannot be put together: 00002.mp4: ")
    assert not depot.objects.exists(final_uri(depot.output_bucket, JOB))


class Broken:
    """Objects of which none can be read just now."""

    def __init__(self, objects: Any) -> None:
        self._objects = objects

    def download(self, uri: str, path: Path) -> None:
        raise OSError("no route to host")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)


@both
def test_what_may_go_away_by_itself_is_tried_again(
    depot: Depot, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysed(depot, source, tmp_path)
    monkeypatch.setattr("app.segments.reassemble._FIRST_PAUSE_S", 0.0)
    depot.reassembly.send(JOB)
    error = counted("error")
    Reassembler(replace(depot, objects=Broken(depot.objects)), visibility_s=30).turn(0)
    assert (error(), status(depot)) == (1, ("chunking_complete", None))
    Reassembler(depot, visibility_s=30).turn(5)
    assert status(depot) == ("done", None)


def test_what_does_not_go_away_fails_the_job_in_the_end(
    depot: Depot, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysed(depot, source, tmp_path)
    monkeypatch.setattr("app.segments.reassemble._FIRST_PAUSE_S", 0.0)
    depot.reassembly.send(JOB)
    one = Reassembler(replace(depot, objects=Broken(depot.objects)), visibility_s=30)
    for _ in range(8):
        one.turn(5)
    assert left(depot) == 0
    assert status(depot) == ("failed", "its parts cannot be put together: OSError: no route to host")
