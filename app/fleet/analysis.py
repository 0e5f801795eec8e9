"""From a batch of frames to what became of each: analysed, dropped, or failed after a try of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import FrameError
from app.fleet.frames import CameraFrame
from app.fleet.message import Failure
from app.fleet.tally import DOOR
from app.pipeline.answer import Record
from app.pipeline.frames import Frame, Job, StreamMemory
from app.pipeline.multimodal import Pipeline
from app.protocol.result import FrameResult
from app.protocol.stream import Stages, StreamSettings
from app.settings import FleetSettings, OcrSettings, PipelineSettings, Settings

log = logging.getLogger(__name__)

_PAUSE_S = 0.1
_TELL_AGAIN_S = 60.0
_MODELS = ("detect", "pose")
_AWAY = "inference_unavailable"


@dataclass(frozen=True, slots=True)
class Outcome:
    frame: CameraFrame
    result: FrameResult | None = None
    dropped: str | None = None
    """Why it was given up: stale, undecodable, too_large."""
    failure: Failure | None = None


def stream_settings(fleet: FleetSettings, pipeline: PipelineSettings) -> StreamSettings:
    """What runs on every camera's frames."""
    chosen = {field.name: field.name in fleet.fleet_stages for field in dataclasses.fields(Stages)}
    return StreamSettings(stages=Stages(**chosen), confidence=pipeline.confidence, iou=pipeline.iou)


def ocr_settings(settings: Settings) -> OcrSettings:
    """Text reading only where FLEET_STAGES asks for it."""
    if "ocr" in settings.fleet.fleet_stages:
        return settings.ocr
    return settings.ocr.model_copy(update={"ocr": "off"})


def is_stale(frame: CameraFrame, staleness_ms: float) -> bool:
    """Whether it was captured too long ago to be worth anything.

    What was claimed from a worker that died was read in time, and is older than any frame may be: a minute by default
    (FLEET_RECLAIM_IDLE_MS). It counts from its claim, or no claim would ever be answered.
    """
    if frame.claimed:
        return (time.perf_counter() - frame.arrived) * 1000 > staleness_ms
    return time.time() * 1000 - frame.origin.captured_at_ms > staleness_ms


def job(frame: CameraFrame, memory: StreamMemory, settings: StreamSettings, *, faces: bool) -> Job:
    """Its `received` is when it was captured, on the monotonic clock: tracks want real times, and frames that were
    read in one go have arrived at the same moment. `queue` in the timings thus counts from the capture.
    """
    now_ms = time.time() * 1000
    age_s = max(0.0, now_ms - frame.origin.captured_at_ms) / 1000
    return Job(
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
        faces,
    )


def outcome(frame: CameraFrame, found: FrameResult | FrameError) -> Outcome:
    """What the pipeline's answer means here: a model that failed is a frame that failed."""
    if isinstance(found, FrameError):
        return Outcome(frame, dropped=found.code)
    for name in _MODELS:
        stage = found.stages[name]
        if stage.status == "error":
            reason = stage.reason or "the model failed"
            code = _AWAY if reason == _AWAY else "inference"
            return Outcome(frame, result=found, failure=Failure(code, f"{name}: {reason}"))
    return Outcome(frame, result=found)


class Troubles:
    """Frames that fail by a fault of ours: each is counted, one of a kind a minute is told. Any thread may use it."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def tell(self, error: Exception, camera_id: str) -> Failure:
        """Called where the error was caught."""
        kind, now = type(error).__name__, time.monotonic()
        if now - self._told.get(kind, -math.inf) > _TELL_AGAIN_S:
            self._told[kind] = now
            log.exception(
                "a frame of camera %s could not be analysed; more like it are only counted for %g s",
                camera_id,
                _TELL_AGAIN_S,
            )
        return Failure("internal", f"{kind}: {error}")


class Memories:
    """What each camera's stream remembers. Used by one thread at a time for a stream."""

    def __init__(self) -> None:
        self._of: dict[str, StreamMemory] = {}
        self._kept: frozenset[str] | None = None
        """Streams that are this worker's; None until it knows."""

    def keep(self, streams: frozenset[str]) -> list[StreamMemory]:
        """Forgets all other streams, whose memories are returned."""
        self._kept = streams
        return [self._of.pop(stream) for stream in [*self._of] if stream not in streams]

    def has(self, frame: CameraFrame) -> bool:
        """Whether later frames are to know of it. Not one that was claimed: the worker before may have answered it, and
        what somebody outside the fleet left even comes behind newer ones. Nor one that still waited when its camera
        went to another worker: once the camera is back, it would meet what was remembered long ago.
        """
        return not frame.claimed and (self._kept is None or frame.origin.stream in self._kept)

    def get(self, frame: CameraFrame) -> StreamMemory:
        """The stream's, or one of its own for a frame that later ones are not to know of."""
        if not self.has(frame):
            return StreamMemory()
        return self._of.setdefault(frame.origin.stream, StreamMemory())


class Analysis:
    """Batches through the pipeline; what each camera's stream remembers.

    Args:
        record: takes how long the stages of each frame took.
    """

    def __init__(self, pipeline: Pipeline, fleet: FleetSettings, settings: StreamSettings, record: Record) -> None:
        self._pipeline = pipeline
        self._record = record
        self._faces = "face" in fleet.fleet_stages
        self._staleness_ms = fleet.frame_staleness_ms
        self._settings = settings
        self._memories = Memories()
        self._troubles = Troubles()
        self.stopping = False
        """Set when the worker stops: an inference server that is away is no longer waited for."""

    def forget(self, kept: frozenset[str]) -> None:
        """Drops what is remembered of all other streams."""
        for memory in self._memories.keep(kept):
            self._pipeline.ocr.forget(memory.ocr)

    async def of(self, frames: Sequence[CameraFrame]) -> list[Outcome]:
        """One outcome a frame, in their order. Never raises but for cancellation.

        A batch that fails is tried again in halves, down to single frames. While the inference server is away its
        frames are kept as long as they are fresh.
        """
        outcomes = await self._look(frames)
        while away := [one.frame for one in outcomes if one.failure and one.failure.code == _AWAY]:
            if self.stopping:
                break
            await self._wait(away)
            outcomes = _with(outcomes, await self._look(away))
        return outcomes

    async def _look(self, frames: Sequence[CameraFrame]) -> list[Outcome]:
        """One round; the halves of halves are rounds of their own. A server that is away fails halves as well."""
        fresh = [frame for frame in frames if not is_stale(frame, self._staleness_ms)]
        outcomes = _with([Outcome(frame, dropped="stale") for frame in frames], await self._try(fresh))
        failed = [one.frame for one in outcomes if one.failure and one.failure.code != _AWAY]
        if not failed or len(fresh) == 1:
            return outcomes
        half = -(-len(failed) // 2)
        for part in (failed[:half], failed[half:]):
            if part:
                outcomes = _with(outcomes, await self._look(part))
        return outcomes

    async def _try(self, frames: list[CameraFrame]) -> list[Outcome]:
        if not frames:
            return []
        jobs = [job(frame, self._memories.get(frame), self._settings, faces=self._faces) for frame in frames]
        greys = [one.memory.grey for one in jobs]
        try:
            found = await self._pipeline.analyze(jobs, door=DOOR, record=self._record)
            outcomes = [outcome(frame, one) for frame, one in zip(frames, found, strict=True)]
        except Exception as error:
            # Whatever it is, the next batches must not suffer; told for a frame that fails by itself.
            if len(frames) == 1:
                failure = self._troubles.tell(error, frames[0].origin.camera_id)
            else:
                failure = Failure("internal", f"{type(error).__name__}: {error}")
            outcomes = [Outcome(frame, failure=failure) for frame in frames]
        for one, ended, grey in zip(jobs, outcomes, greys, strict=True):
            if ended.failure:
                one.memory.grey = grey  # looked at again, a frame must not meet itself as the last one
            if not self._memories.has(ended.frame):
                self._pipeline.ocr.forget(one.memory.ocr)  # no later frame would show its texts
        return outcomes

    async def _wait(self, frames: list[CameraFrame]) -> None:
        """Until the inference server is back, all frames are stale, or the worker stops."""
        await asyncio.sleep(_PAUSE_S)
        while not self._pipeline.client.up and not self.stopping:
            if all(is_stale(frame, self._staleness_ms) for frame in frames):
                return
            await asyncio.sleep(_PAUSE_S)


def _with(outcomes: list[Outcome], later: list[Outcome]) -> list[Outcome]:
    """The outcomes, those replaced that came out otherwise later."""
    news = {id(one.frame): one for one in later}
    return [news.get(id(one.frame), one) for one in outcomes]
