"""A backend of stereo video, recorded side by side: the left half of each frame is the left eye's image.

A model that sees both halves at once finds boxes across the seam, and the tracker takes the two images of a person for
two people. This backend has each half analysed as a stream of its own, and puts both results together, in pixels of the
whole frame. Tracks of the left half have even ids, those of the right half odd ones. Text and motion are not analysed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.errors import FrameError
from app.pipeline.multimodal import Pipeline
from app.pipeline.types import FrameJob, StreamMemory
from app.protocol.result import FrameResult, Image
from app.segments.backends.pipeline import PipelineBackend
from app.segments.keys import Mode
from app.segments.video.processor import Analyze, VideoReport, analyze_video, stream_settings


class SideBySide(PipelineBackend):
    """Analyses the halves of each frame apart, by the models of the pipeline in this process."""

    name = "side_by_side"

    async def analyze(
        self,
        pipeline: Pipeline,
        source: Path,
        target: Path,
        results: Path,
        mode: Mode,
        on_frames: Callable[[int], None],
    ) -> VideoReport:
        settings = stream_settings(self.settings.pipeline, mode)
        stages = settings.stages.but(ocr=False, motion=False)
        return await analyze_video(
            source,
            target,
            results,
            mode,
            pipeline,
            dataclasses.replace(settings, stages=stages),
            max_pixels=self.settings.live.max_pixels,
            on_frames=on_frames,
            analyze=Halves().analyze,
        )


class Halves:
    """Analyses the frames of one video, half by half."""

    def __init__(self) -> None:
        self._left, self._right = StreamMemory(), StreamMemory()

    async def analyze(self, jobs: Sequence[FrameJob], analyze: Analyze) -> list[FrameResult | FrameError]:
        """Returns a result for each frame.

        Args:
            jobs: whole frames.
            analyze: the pipeline's analysis of any frames.
        """
        halves = []
        for job in jobs:
            middle = job.frame.pixels.shape[1] // 2
            halves.append(_part(job, self._left, "left", slice(None, middle)))
            halves.append(_part(job, self._right, "right", slice(middle, None)))
        found = await analyze(halves)
        return [merged(left, right) for left, right in zip(found[::2], found[1::2], strict=True)]


def _part(job: FrameJob, memory: StreamMemory, side: str, columns: slice) -> FrameJob:
    """The job of one half, which is a stream of its own."""
    frame = dataclasses.replace(
        job.frame, stream=f"{job.frame.stream}/{side}", pixels=job.frame.pixels[:, columns].copy()
    )
    return dataclasses.replace(job, frame=frame, memory=memory)


def merged(left: FrameResult | FrameError, right: FrameResult | FrameError) -> FrameResult | FrameError:
    """Both halves' results as that of the whole frame; the error if a half has one."""
    if isinstance(left, FrameError):
        return left
    if isinstance(right, FrameError):
        return right
    dx = left.image.width
    parts = {
        name: [_placed(found, 0, 0) for found in part] + [_placed(found, dx, 1) for found in right.values()[name]]
        for name, part in left.values().items()
        if isinstance(part, list)
    }
    return FrameResult(
        Image(dx + right.image.width, left.image.height),
        # A stage that failed on one half failed on the frame.
        stages={name: right.stages[name] if stage.status == "ok" else stage for name, stage in left.stages.items()},
        timings_ms={name: max(value, right.timings_ms.get(name, 0.0)) for name, value in left.timings_ms.items()},
        **parts,
    )


GEOMETRY = ("box", "keypoints", "polygons", "corners")
"""The fields of results that hold positions."""


def _placed(found: Any, dx: int, side: int) -> Any:
    """An entry of a part in the whole frame: moved by `dx` pixels, its track id unique among those of both halves."""
    changes = {name: _moved(getattr(found, name), dx) for name in GEOMETRY if hasattr(found, name)}
    if getattr(found, "track_id", None) is not None:
        changes["track_id"] = 2 * found.track_id + side
    return dataclasses.replace(found, **changes)


def _moved(geometry: Any, dx: int) -> Any:
    """A box, a point `[x, y]` or one with a name, or a list of these, moved to the right."""
    if hasattr(geometry, "x1"):
        return dataclasses.replace(geometry, x1=geometry.x1 + dx, x2=geometry.x2 + dx)
    if hasattr(geometry, "x"):
        return dataclasses.replace(geometry, x=geometry.x + dx)
    if not isinstance(geometry, list | tuple):
        return geometry
    if len(geometry) == 2 and all(isinstance(each, int | float) for each in geometry):
        return [geometry[0] + dx, geometry[1]]
    return [_moved(each, dx) for each in geometry]
