"""The halves are analysed apart, and their results are put together in pixels of the whole frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
from sightline_side_by_side import Halves

from app.errors import FrameError, UndecodableFrame
from app.pipeline.stages.detect import Detection
from app.pipeline.stages.pose import Keypoint, Pose
from app.pipeline.stages.segment import Segment
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.result import OK, Box, FrameResult, Image
from app.protocol.stream import StreamSettings


def job(width: int = 200) -> FrameJob:
    pixels = np.zeros((80, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    frame = Frame(stream="film", jpeg=b"", received=time.perf_counter(), received_at_ms=0.0, seq=0, pixels=pixels)
    return FrameJob(frame, StreamMemory(), StreamSettings(mode="lossless"))


def found(job: FrameJob) -> FrameResult:
    """A person at the same place of every image, on track 1."""
    height, width = job.frame.pixels.shape[:2]
    person = Detection(0, "person", 0.9, Box(10, 20, 60, 70), track_id=1)
    pose = Pose(0.9, person.box, (Keypoint("nose", 30, 25, 0.8),), track_id=1)
    segment = Segment(0, "person", 0.9, person.box, [[(10.0, 20.0), (60.0, 20.0), (60.0, 70.0)]], track_id=1)
    parts = {"objects": [person], "poses": [pose], "segments": [segment]}
    return FrameResult(Image(width, height), stages={"detect": OK}, timings_ms={"total": 5.0}, **parts)


def test_each_half_is_a_stream_and_results_are_in_pixels_of_the_frame() -> None:
    asked: list[FrameJob] = []

    async def analyze(jobs: Sequence[FrameJob]) -> list[FrameResult | FrameError]:
        asked.extend(jobs)
        return [found(job) for job in jobs]

    halves = Halves()
    (result,) = asyncio.run(halves.analyze([job()], analyze))
    asyncio.run(halves.analyze([job()], analyze))
    assert [half.frame.stream for half in asked[:2]] == ["film/left", "film/right"]
    assert [half.frame.pixels.mean() for half in asked[:2]] == [0, 255]
    assert asked[0].memory is asked[2].memory is not asked[1].memory
    assert isinstance(result, FrameResult)
    assert (result.image.width, result.image.height) == (200, 80)
    assert [(o.box.x1, o.box.x2, o.track_id) for o in result.objects] == [(10, 60, 2), (110, 160, 3)]
    assert [pose.keypoints[0].x for pose in result.poses] == [30, 130]
    assert [segment.polygons[0][1] for segment in result.segments] == [[60, 20], [160, 20]]
    assert result.texts == []
    assert result.stages["detect"].status == "ok"


def test_a_half_that_cannot_be_used_costs_its_frame_only() -> None:
    error = UndecodableFrame("damaged")

    async def analyze(jobs: Sequence[FrameJob]) -> list[FrameResult | FrameError]:
        return [found(jobs[0]), error, found(jobs[2]), found(jobs[3])]

    first, second = asyncio.run(Halves().analyze([job(), job(201)], analyze))
    assert first is error
    assert isinstance(second, FrameResult)
    assert second.image.width == 201
