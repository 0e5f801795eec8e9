"""A server's reply read for every frame of a batch: objects and poses, and how their stages went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from app import metrics
from app.inference.client import Reply
from app.pipeline.batch import Batch, Look, Request
from app.pipeline.together import Rows, picked
from app.protocol.messages import StreamSettings
from app.protocol.result import OK

CROWD = 64
"""Rows from which reading and tracking take milliseconds, and are a thread's work."""

# `labels` takes a lock and looks its arguments over; what it answers stays the same.
_model_batch = cache(metrics.MODEL_BATCH.labels)
_model_frames = cache(metrics.MODEL_FRAMES.labels)


@dataclass(frozen=True, slots=True)
class Scan:
    """What a first look at a reply says."""

    rows: Mapping[str, Rows]
    """By output: what scores in some frame of the batch. Not of raw heads."""
    heavy: bool
    """Whether the event loop would be held up by `read`: thousands of columns to look over, or many rows that score."""


def scan(batch: Batch, request: Request, reply: Reply) -> Scan:
    """Some microseconds a frame."""
    confidence = min(look.job.settings.confidence for look in batch.looks)
    readers = [reader for reader in (request.detect, request.pose) if reader is not None]
    rows = {
        reader.output_name: picked(reply.outputs[reader.output_name], confidence)
        for reader in readers
        if reader.layout != "raw"
    }
    raw = any(reader.layout == "raw" for reader in readers)
    return Scan(rows, raw or sum(picture.size for picture, _ in rows.values()) > CROWD)


def crowded(look: Look) -> bool:
    """Whether tracking what was found and writing it down is a thread's work."""
    found = sum(len(one.confidence) for one in (look.detected, look.posed) if one is not None)
    return found > CROWD


def read(batch: Batch, request: Request, reply: Reply, seen: Scan, max_detections: int) -> None:
    """Fills `detected`, `posed` and their stages. Milliseconds where it is `heavy`, else microseconds a frame."""
    if len({_limits(look.job.settings) for look in batch.looks}) == 1:
        _all(batch, request, reply, seen, max_detections)
        return
    for index, look in enumerate(batch.looks):
        if look.error is None:
            _one(look, request, reply, index, max_detections)


def count(batch: Batch, request: Request, *, detect: str, pose: str, model: str) -> None:
    """Adds the batch to the metrics of the models of each stage: once, since each takes a lock."""
    _model_batch(model).observe(len(batch.looks))
    for stage, name in (("detect", detect), ("pose", pose)):
        if stage in request.stages and (
            frames := sum(one.error is None and one.stages.get(stage) is OK for one in batch.looks)
        ):
            _model_frames(name).inc(frames)


def _one(look: Look, request: Request, reply: Reply, index: int, max_detections: int) -> None:
    settings, box = look.job.settings, request.input.boxes[index]
    limits: Any = {"confidence": settings.confidence, "iou": settings.iou, "max_detections": max_detections}
    if request.detect is not None and settings.stages.detect:
        look.detected = request.detect.read(reply.outputs, index, box, classes=_classes(settings), **limits)
        look.stages["detect"] = OK
    if request.pose is not None and settings.stages.pose:
        look.posed = request.pose.read(reply.outputs, index, box, classes=None, **limits)
        look.stages["pose"] = OK


def _all(batch: Batch, request: Request, reply: Reply, seen: Scan, max_detections: int) -> None:
    """A batch whose frames are all read alike."""
    settings = batch.looks[0].job.settings
    boxes = [request.input.boxes[index] if look.error is None else None for index, look in enumerate(batch.looks)]
    limits: Any = {"confidence": settings.confidence, "iou": settings.iou, "max_detections": max_detections}
    if request.detect is not None and settings.stages.detect:
        objects = request.detect.read_all(
            reply.outputs, boxes, classes=_classes(settings), rows=seen.rows.get(request.detect.output_name), **limits
        )
        for look, detected in zip(batch.looks, objects, strict=True):
            look.detected, look.stages["detect"] = detected, OK
    if request.pose is not None and settings.stages.pose:
        people = request.pose.read_all(reply.outputs, boxes, rows=seen.rows.get(request.pose.output_name), **limits)
        for look, posed in zip(batch.looks, people, strict=True):
            look.posed, look.stages["pose"] = posed, OK


def _limits(settings: StreamSettings) -> tuple[object, ...]:
    """What the reading of a frame depends on."""
    stages = settings.stages
    return stages.detect, stages.pose, settings.confidence, settings.iou, settings.classes


def _classes(settings: StreamSettings) -> frozenset[int] | None:
    return None if settings.classes is None else frozenset(settings.classes)
