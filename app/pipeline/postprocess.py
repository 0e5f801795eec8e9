"""From the server's replies to results: reads each frame's objects and poses, then adds tracks, texts and stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from app import metrics
from app.errors import FrameError
from app.inference.client import Reply
from app.pipeline.layouts import Rows, scoring_rows
from app.pipeline.models import ModelSet
from app.pipeline.stages.detect import detections
from app.pipeline.stages.ocr import Ocr
from app.pipeline.stages.pose import poses
from app.pipeline.stages.tracking import StreamTracker, match_poses
from app.pipeline.types import Batch, FrameState, Request
from app.protocol.messages import StreamSettings
from app.protocol.result import FACE, OFF, OK, STAGES, FaceDetection, FrameResult, Image, Stage, Text

CROWD = 64
"""Rows from which reading and tracking take milliseconds, and run in a thread."""

Record = Callable[[Mapping[str, float]], None]
"""Receives how long each step of a frame took, seconds."""

# `labels` takes a lock and checks its arguments on each call; its answer stays the same.
_model_batch = cache(metrics.MODEL_BATCH.labels)
_model_frames = cache(metrics.MODEL_FRAMES.labels)


@cache
def recorder(entry: str) -> Record:
    """A function that adds a frame's times to STAGE_SECONDS of one entry point, at once or within a second."""
    return metrics.stage_times(entry).add


# --- reading a reply ---


@dataclass(frozen=True, slots=True)
class Scan:
    """The result of a first, quick look at a reply."""

    rows: Mapping[str, Rows]
    """By output name: the rows that score in any frame of the batch. Without raw heads."""
    heavy: bool
    """Whether `read` would block the event loop: it has thousands of columns to search, or many rows that score."""


def scan(batch: Batch, request: Request, reply: Reply) -> Scan:
    """Finds the rows of a reply that score in any frame. Takes microseconds a frame."""
    confidence = min([state.job.settings.confidence for state in batch.frames])
    rows: dict[str, Rows] = {}
    raw = False
    for reader in (request.detect, request.pose):
        if reader is None:
            continue
        if reader.layout == "raw":
            raw = True
        else:
            rows[reader.output_name] = scoring_rows(reply.outputs[reader.output_name], confidence)
    return Scan(rows, raw or sum([images.size for images, _ in rows.values()]) > CROWD)


def read(batch: Batch, request: Request, reply: Reply, seen: Scan, max_detections: int) -> None:
    """Fills `detected`, `posed` and their stages. Takes milliseconds where `Scan.heavy`, else microseconds a frame."""
    frames = batch.frames
    if len(frames) == 1 or len({_limits(state.job.settings) for state in frames}) == 1:
        _read_alike(batch, request, reply, seen, max_detections)
        return
    for index, state in enumerate(frames):
        if state.error is None:
            _read_frame(state, request, reply, index, max_detections)


def _read_alike(batch: Batch, request: Request, reply: Reply, seen: Scan, max_detections: int) -> None:
    """Reads a batch whose frames have the same settings, all at once."""
    settings, placed = batch.frames[0].job.settings, request.input.boxes
    boxes = [placed[index] if state.error is None else None for index, state in enumerate(batch.frames)]
    limits: Any = {"confidence": settings.confidence, "iou": settings.iou, "max_detections": max_detections}
    if request.detect is not None and settings.stages.detect:
        rows = seen.rows.get(request.detect.output_name)
        objects = request.detect.read_all(reply.outputs, boxes, classes=_classes(settings), rows=rows, **limits)
        for state, detected in zip(batch.frames, objects, strict=True):
            state.detected, state.stages["detect"] = detected, OK
    if request.pose is not None and settings.stages.pose:
        people = request.pose.read_all(reply.outputs, boxes, rows=seen.rows.get(request.pose.output_name), **limits)
        for state, posed in zip(batch.frames, people, strict=True):
            state.posed, state.stages["pose"] = posed, OK


def _read_frame(state: FrameState, request: Request, reply: Reply, index: int, max_detections: int) -> None:
    settings, box = state.job.settings, request.input.boxes[index]
    limits: Any = {"confidence": settings.confidence, "iou": settings.iou, "max_detections": max_detections}
    if request.detect is not None and settings.stages.detect:
        state.detected = request.detect.read(reply.outputs, index, box, classes=_classes(settings), **limits)
        state.stages["detect"] = OK
    if request.pose is not None and settings.stages.pose:
        state.posed = request.pose.read(reply.outputs, index, box, classes=None, **limits)
        state.stages["pose"] = OK


def _limits(settings: StreamSettings) -> tuple[object, ...]:
    """The settings that reading a frame depends on."""
    stages = settings.stages
    return stages.detect, stages.pose, settings.confidence, settings.iou, settings.classes


def _classes(settings: StreamSettings) -> frozenset[int] | None:
    return None if settings.classes is None else frozenset(settings.classes)


def count(batch: Batch, request: Request, *, detect: str, pose: str, model: str) -> None:
    """Adds the batch to the models' metrics, once for all frames, because each metric takes a lock."""
    _model_batch(model).observe(len(batch.frames))
    for stage, reader, name in (("detect", request.detect, detect), ("pose", request.pose, pose)):
        if reader is not None:
            frames = 0
            for state in batch.frames:
                frames += state.error is None and state.stages.get(stage) is OK
            if frames:
                _model_frames(name).inc(frames)


# --- finishing a frame ---


def crowded(state: FrameState) -> bool:
    """Whether `track_and_write` of this frame belongs in a thread."""
    found = 0 if state.detected is None else len(state.detected.confidence)
    return found + (0 if state.posed is None else len(state.posed.confidence)) > CROWD


def track_all(batch: Batch) -> None:
    """Runs `track_and_write` on all usable frames, in order. Takes milliseconds for a crowd."""
    for state in batch.frames:
        if state.error is None:
            track_and_write(state, batch.model_set)


def track_and_write(state: FrameState, models: ModelSet) -> None:
    """Fills `objects` and `people` as the wire has them. A pose gets the track id of the object that it lies on.

    Uses the stream's tracker: each frame once, in order.
    """
    clock = time.perf_counter()
    detected, posed = state.detected, state.posed
    object_ids = pose_ids = None
    if state.job.settings.stages.track and (detected is not None or posed is not None):
        memory, frame, info = state.job.memory, state.job.frame, state.info
        assert info is not None
        size = info.width, info.height
        at_s = frame.received if frame.at_s is None else frame.at_s
        if memory.tracker is None:
            memory.tracker = StreamTracker()
        if detected is not None:
            object_ids = memory.tracker.update(
                detected.xyxy, detected.confidence, detected.class_id, size=size, at_s=at_s
            )
            if posed is not None:
                pose_ids = match_poses(posed, detected, object_ids, models.people)
        elif posed is not None:
            pose_ids = memory.tracker.update(posed.xyxy, posed.confidence, size=size, at_s=at_s)
        state.stages["track"] = OK
    names = models.detect.class_names if models.detect else ()
    objects = [] if detected is None else detections(detected, object_ids, names)
    for index, embedding in state.embeddings.items():
        plain = objects[index]
        objects[index] = FaceDetection(
            plain.class_id, plain.class_name, plain.confidence, plain.box, plain.track_id, embedding=embedding
        )
    state.objects, state.people = objects, [] if posed is None else poses(posed, pose_ids)
    state.time("parse", clock)


def finish(state: FrameState, batch: Batch, ocr: Ocr, started: float, record: Record) -> FrameResult | FrameError:
    """The frame's result once its models have answered. Takes some ten microseconds after `track_all`."""
    if state.error is not None:
        return state.error
    if state.objects is None:
        track_and_write(state, batch.model_set)
    info, job, stages, timings = state.info, state.job, state.stages, state.timings
    assert info is not None
    assert state.objects is not None
    assert state.people is not None
    texts: list[Text] = []
    if job.settings.stages.ocr:
        at_s = job.frame.at_s
        now = time.perf_counter() if at_s is None else at_s
        texts, stages["ocr"] = ocr.attach(job.memory.ocr, state.still or job.frame.still, state.grey, now=now)
    _complete(state, batch)
    timings["queue"] = started - job.frame.received
    timings["total"] = time.perf_counter() - job.frame.received
    record(timings)
    return FrameResult(
        image=Image(info.width, info.height),
        objects=state.objects,
        poses=state.people,
        texts=texts,
        motion=state.motion,
        stages={name: stages[name] for name in ((*STAGES, FACE) if job.faces else STAGES)},
        # To the microsecond; `round` to a number of digits takes four times as long.
        timings_ms={name: round(seconds * 1e6) / 1000 for name, seconds in timings.items()},
    )


def _complete(state: FrameState, batch: Batch) -> None:
    """Gives every stage a status, also those that did not run, and counts the errors."""
    chosen, stages, models = state.job.settings.stages, state.stages, batch.model_set
    if not chosen.detect:
        stages["detect"] = OFF
    elif "detect" not in stages:
        stages["detect"] = _missing(batch, models.detect is not None, models.rejected)
    if not chosen.pose:
        stages["pose"] = OFF
    elif "pose" not in stages:
        stages["pose"] = _missing(batch, models.pose is not None, models.rejected)
    if not chosen.ocr:
        stages["ocr"] = OFF
    if not chosen.motion:
        stages["motion"] = OFF
    if not chosen.track:
        stages["track"] = OFF
    elif "track" not in stages:
        stages["track"] = Stage("skipped", "nothing_detected_on")
    if state.job.faces and FACE not in stages:
        stages[FACE] = _missing(batch, models.face is not None, models.face_rejected)
    for name, stage in stages.items():
        if stage.status == "error":
            metrics.STAGE_ERRORS.labels(name).inc()


def _missing(batch: Batch, served: bool, rejected: str | None) -> Stage:
    if not batch.up or served:
        return Stage("error", "inference_unavailable")
    return Stage("disabled", rejected or "not_served")
