"""Runs a batch of frames through the pipeline and decides each frame's outcome: analysed, dropped, or failed."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.errors import FrameError
from app.fleet.delivery import Failure
from app.fleet.in_flight import ENTRY_POINT
from app.fleet.streams import CameraFrame
from app.pipeline.multimodal import Pipeline
from app.pipeline.postprocess import Record
from app.pipeline.registry import fleet_stages
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.result import FrameResult
from app.protocol.stream import Stages, StreamSettings
from app.settings import FleetSettings, PipelineSettings

log = logging.getLogger(__name__)

_PAUSE_S = 0.1
_LOG_AGAIN_S = 60.0
_UNAVAILABLE = "inference_unavailable"


@dataclass(frozen=True, slots=True)
class FrameOutcome:
    frame: CameraFrame
    result: FrameResult | None = None
    dropped: str | None = None
    """Why the frame was dropped, for example stale, undecodable or too_large."""
    failure: Failure | None = None


def stream_settings(fleet: FleetSettings, pipeline: PipelineSettings) -> StreamSettings:
    """The stages that run on every camera's frames, and their thresholds."""
    return StreamSettings(stages=Stages.only(fleet_stages(fleet)), confidence=pipeline.confidence, iou=pipeline.iou)


def is_stale(frame: CameraFrame, staleness_ms: float) -> bool:
    """Whether the frame is older than `staleness_ms`.

    A claimed frame was read in time by another worker, but may be a minute old by now (FLEET_RECLAIM_IDLE_MS). Its age
    counts from the claim, because otherwise no claimed frame would ever be analysed.
    """
    if frame.claimed:
        return (time.perf_counter() - frame.arrived) * 1000 > staleness_ms
    return time.time() * 1000 - frame.origin.captured_at_ms > staleness_ms


def job_of(frame: CameraFrame, memory: StreamMemory, settings: StreamSettings) -> FrameJob:
    """The pipeline's job for a frame.

    `received` is the capture time on the monotonic clock, because tracks need real times, and frames that were read
    together have arrived at the same moment. So `queue` in the timings counts from the capture.
    """
    now_ms = time.time() * 1000
    age_s = max(0.0, now_ms - frame.origin.captured_at_ms) / 1000
    return FrameJob(
        Frame(
            stream=frame.origin.camera_id,
            jpeg=frame.jpeg,
            received=time.perf_counter() - age_s,
            received_at_ms=now_ms,
            seq=0,
            captured_at_ms=frame.origin.captured_at_ms,
        ),
        memory,
        settings,
    )


def outcome_of(
    frame: CameraFrame,
    found: FrameResult | FrameError,
    models: Collection[str],
    plug_ins: Collection[str] = (),
) -> FrameOutcome:
    """The outcome for a result of the pipeline: a frame has failed if one of its models failed.

    Args:
        models: the stages whose models take whole frames.
        plug_ins: those of them that cost a frame their own part alone, unless the inference server is unavailable.
    """
    if isinstance(found, FrameError):
        return FrameOutcome(frame, dropped=found.code)
    for name in models:
        stage = found.stages[name]
        if stage.status == "error" and (name not in plug_ins or stage.reason == _UNAVAILABLE):
            reason = stage.reason or "the model failed"
            code = _UNAVAILABLE if reason == _UNAVAILABLE else "inference"
            return FrameOutcome(frame, result=found, failure=Failure(code, f"{name}: {reason}"))
    return FrameOutcome(frame, result=found)


class Analysis:
    """Runs batches through the pipeline, with the stream memory of each camera. Used in the event loop's thread.

    Args:
        record: called with the seconds that the stages of each frame took.
    """

    def __init__(self, pipeline: Pipeline, fleet: FleetSettings, settings: StreamSettings, record: Record) -> None:
        self._pipeline = pipeline
        self._record = record
        self._staleness_ms = fleet.frame_staleness_ms
        self._settings = settings
        self._memories: dict[str, StreamMemory] = {}
        self._kept: frozenset[str] | None = None
        """Streams that this worker holds; None until it knows."""
        self._logged: dict[str, float] = {}
        """When each kind of error was last logged."""
        self.stopping = False
        """Set when the worker stops, so that it no longer waits for an inference server that is unavailable."""

    def keep_only(self, streams: frozenset[str]) -> None:
        """Deletes the memories of all other streams."""
        self._kept = streams
        for stream in [*self._memories]:
            if stream not in streams:
                self._pipeline.forget(self._memories.pop(stream))

    async def analyze(self, frames: Sequence[CameraFrame]) -> list[FrameOutcome]:
        """One outcome for each frame, in their order. Raises nothing but cancellation.

        A batch that fails is tried again in halves, down to single frames. While the inference server is unavailable,
        frames wait for it as long as they are fresh.
        """
        outcomes = await self._round(frames)
        while waiting := [
            outcome.frame for outcome in outcomes if outcome.failure and outcome.failure.code == _UNAVAILABLE
        ]:
            if self.stopping:
                break
            await self._wait(waiting)
            outcomes = _merged(outcomes, await self._round(waiting))
        return outcomes

    async def _round(self, frames: Sequence[CameraFrame]) -> list[FrameOutcome]:
        """Tries the frames as one batch, then those that failed in halves, recursively. Frames that failed because the
        server is unavailable are not halved, because halves would fail as well.
        """
        fresh = [frame for frame in frames if not is_stale(frame, self._staleness_ms)]
        outcomes = _merged([FrameOutcome(frame, dropped="stale") for frame in frames], await self._try(fresh))
        failed = [outcome.frame for outcome in outcomes if outcome.failure and outcome.failure.code != _UNAVAILABLE]
        if not failed or len(fresh) == 1:
            return outcomes
        half = -(-len(failed) // 2)
        for part in (failed[:half], failed[half:]):
            if part:
                outcomes = _merged(outcomes, await self._round(part))
        return outcomes

    async def _try(self, frames: list[CameraFrame]) -> list[FrameOutcome]:
        if not frames:
            return []
        jobs = [job_of(frame, self._memory(frame), self._settings) for frame in frames]
        models, plug_ins = self._pipeline.model_stages, self._pipeline.plug_ins
        greys = [job.memory.grey for job in jobs]
        try:
            results = await self._pipeline.analyze(jobs, entry=ENTRY_POINT, record=self._record)
            outcomes = [
                outcome_of(frame, result, models, plug_ins) for frame, result in zip(frames, results, strict=True)
            ]
        except Exception as error:
            # Whatever it is, the next batches must not suffer. A single frame's error is logged.
            if len(frames) == 1:
                self._log(error, frames[0].origin.camera_id)
            failure = Failure("internal", f"{type(error).__name__}: {error}")
            outcomes = [FrameOutcome(frame, failure=failure) for frame in frames]
        for job, outcome, grey in zip(jobs, outcomes, greys, strict=True):
            if outcome.failure:
                job.memory.grey = grey  # when the frame is tried again, its predecessor must not be the frame itself
            if not self._is_remembered(outcome.frame):
                self._pipeline.forget(job.memory)  # no later frame would show its texts
        return outcomes

    def _is_remembered(self, frame: CameraFrame) -> bool:
        """Whether the frame changes its camera's stream memory.

        A claimed frame does not: an earlier worker may have analysed it, and a frame left by a consumer outside the
        fleet even comes after newer ones. Nor does a frame that still waited when its camera went to another worker:
        the memory would be outdated when the camera comes back.
        """
        return not frame.claimed and (self._kept is None or frame.origin.stream in self._kept)

    def _memory(self, frame: CameraFrame) -> StreamMemory:
        """The camera's stream memory, or an empty one for a frame that does not change it."""
        if not self._is_remembered(frame):
            return StreamMemory()
        return self._memories.setdefault(frame.origin.stream, StreamMemory())

    def _log(self, error: Exception, camera_id: str) -> None:
        """Logs one error of a kind a minute, with the traceback of the exception being handled."""
        kind, now = type(error).__name__, time.monotonic()
        if now - self._logged.get(kind, -math.inf) > _LOG_AGAIN_S:
            self._logged[kind] = now
            log.exception(
                "a frame of camera %s could not be analysed; more like it are only counted for %g s",
                camera_id,
                _LOG_AGAIN_S,
            )

    async def _wait(self, frames: list[CameraFrame]) -> None:
        """Waits until the inference server is back, all frames are stale, or the worker stops."""
        await asyncio.sleep(_PAUSE_S)
        while not self._pipeline.client.up and not self.stopping:
            if all(is_stale(frame, self._staleness_ms) for frame in frames):
                return
            await asyncio.sleep(_PAUSE_S)


def _merged(outcomes: list[FrameOutcome], later: list[FrameOutcome]) -> list[FrameOutcome]:
    """The outcomes, with those of `later` in the place of earlier ones of the same frames."""
    newer = {id(outcome.frame): outcome for outcome in later}
    return [newer.get(id(outcome.frame), outcome) for outcome in outcomes]
