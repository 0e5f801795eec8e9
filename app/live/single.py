"""One picture, no session: what `POST /v1/frames` does."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid

from app import metrics
from app.errors import FrameError
from app.pipeline.multimodal import Pipeline
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.messages import Dropped, Result, StreamSettings
from app.protocol.result import FrameResult, Stage

DOOR = "http"
PACE = metrics.Pace(DOOR)
_POLL_S = 0.01


async def analyze_one(pipeline: Pipeline, picture: bytes, settings: StreamSettings, *, ocr_timeout_s: float) -> Result:
    """The result of one JPEG, PNG or WebP, its text read to the end.

    Args:
        ocr_timeout_s: seconds that a run may take. The picture's own is waited for, and one before it.

    Raises:
        FrameError: the picture cannot be used.
    """
    metrics.FRAMES_RECEIVED.labels(DOOR).inc()
    metrics.LAST_ACTIVITY.set_to_current_time()
    received, stream = time.perf_counter(), uuid.uuid4().hex
    now_ms = time.time() * 1000
    frame = Frame(stream=stream, jpeg=picture, received=received, received_at_ms=now_ms, seq=1)
    accounted = False
    try:
        memory = StreamMemory()
        # One picture has nothing to be tracked, and no picture before it.
        stages = dataclasses.replace(settings.stages, track=False, motion=False)
        settings = dataclasses.replace(settings, stages=stages)
        (found,) = await pipeline.analyze([FrameJob(frame, memory, settings, photo=True)], entry=DOOR)
        if isinstance(found, FrameError):
            metrics.FRAMES_DROPPED.labels(DOOR, found.code).inc()
            accounted = True
            raise found
        found = await _read_text(pipeline, memory, frame, found, ocr_timeout_s)
        age_s = time.perf_counter() - received
        metrics.FRAMES_PROCESSED.labels(DOOR).inc()
        PACE.add()
        metrics.FRAME_AGE.labels(DOOR).observe(age_s)
        accounted = True
    finally:
        if not accounted:
            metrics.FRAMES_FAILED.labels(DOOR, "pipeline").inc()
    return Result(
        session_id=stream,
        frame_id=1,
        seq=1,
        captured_at_ms=now_ms,
        frame=found,
        age_ms=round(age_s * 1000, 3),
        dropped=Dropped(0, 0),
    )


def count_refused(reason: str) -> None:
    """A picture that was turned away before it was here whole."""
    metrics.FRAMES_RECEIVED.labels(DOOR).inc()
    metrics.FRAMES_DROPPED.labels(DOOR, reason).inc()


async def _read_text(
    pipeline: Pipeline, memory: StreamMemory, frame: Frame, found: FrameResult, timeout_s: float
) -> FrameResult:
    """Waits for the run that the frame started, which may stand in line behind others."""
    if not memory.ocr.pending:
        return found
    try:
        async with asyncio.timeout(2 * timeout_s) as clock:
            while memory.ocr.pending:
                await asyncio.sleep(_POLL_S)
                if pipeline.ocr.health()["state"] == "starting":  # which has a time limit of its own
                    clock.reschedule(asyncio.get_running_loop().time() + 2 * timeout_s)
    except TimeoutError:
        late = Stage("error", f"its turn did not come within {2 * timeout_s:g} seconds, twice OCR_TIMEOUT_S")
        return dataclasses.replace(found, stages={**found.stages, "ocr": late})
    finally:
        pipeline.ocr.forget(memory.ocr)
    texts, stage = pipeline.ocr.attach(memory.ocr, frame.jpeg, memory.grey, now=time.perf_counter())
    return dataclasses.replace(found, texts=texts, stages={**found.stages, "ocr": stage})
