"""From what the models saw to a frame's result: tracks, text, and how every stage went."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache

from app import metrics
from app.errors import FrameError
from app.pipeline import pose as poses
from app.pipeline import yolo
from app.pipeline.batch import Batch, Look
from app.pipeline.ocr import Ocr
from app.pipeline.tracks import StreamTracker, match_poses
from app.pipeline.vision import Vision
from app.protocol.result import FACE, OFF, OK, STAGES, Detection, FaceDetection, FrameResult, Image, Pose, Stage, Text

Record = Callable[[Mapping[str, float]], None]
"""Takes how long each stage of a frame took, seconds."""


@cache
def recorder(door: str) -> Record:
    """Takes a frame's times to STAGE_SECONDS, sooner or later."""
    return metrics.stage_times(door).add


def write_all(batch: Batch) -> None:
    """Tracks what was found and writes it down as the wire has it, in order. Milliseconds for a crowd."""
    for look in batch.looks:
        if look.error is None:
            _write(look, batch.vision)


def _write(look: Look, vision: Vision) -> None:
    clock = time.perf_counter()
    look.objects, look.people = _track(look, vision)
    look.time("parse", clock)


def finish(look: Look, batch: Batch, ocr: Ocr, started: float, record: Record) -> FrameResult | FrameError:
    """The frame's result once its models have answered; where `write_all` was done, some ten microseconds."""
    if look.error is not None:
        return look.error
    info, settings = look.info, look.job.settings
    assert info is not None
    if look.objects is None:
        _write(look, batch.vision)
    assert look.objects is not None
    assert look.people is not None
    stages = look.stages
    texts: list[Text] = []
    if settings.stages.ocr:
        at_s = look.job.frame.at_s
        now = time.perf_counter() if at_s is None else at_s
        texts, stages["ocr"] = ocr.attach(look.job.memory.ocr, look.still or look.job.frame.still, look.grey, now=now)
    _say(look, batch)
    look.timings["queue"] = started - look.job.frame.received
    look.timings["total"] = time.perf_counter() - look.job.frame.received
    record(look.timings)
    return FrameResult(
        image=Image(info.width, info.height),
        objects=look.objects,
        poses=look.people,
        texts=texts,
        motion=look.motion,
        stages={name: stages[name] for name in ((*STAGES, FACE) if look.job.faces else STAGES)},
        # To the microsecond; `round` to a number of digits takes four times as long.
        timings_ms={name: round(seconds * 1e6) / 1000 for name, seconds in look.timings.items()},
    )


def _track(look: Look, vision: Vision) -> tuple[list[Detection], list[Pose]]:
    """Track ids for what was found; poses take theirs from the persons that they lie on."""
    assert look.info is not None
    size = look.info.width, look.info.height
    detected, posed, memory = look.detected, look.posed, look.job.memory
    object_ids = pose_ids = None
    if look.job.settings.stages.track and (detected is not None or posed is not None):
        if memory.tracker is None:
            memory.tracker = StreamTracker()
        frame = look.job.frame
        at_s = frame.received if frame.at_s is None else frame.at_s
        if detected is not None:
            object_ids = memory.tracker.update(
                detected.xyxy, detected.confidence, detected.class_id, size=size, at_s=at_s
            )
            if posed is not None:
                pose_ids = match_poses(posed, detected, object_ids, vision.persons)
        elif posed is not None:
            pose_ids = memory.tracker.update(posed.xyxy, posed.confidence, size=size, at_s=at_s)
        look.stages["track"] = OK
    names = vision.detect.class_names if vision.detect else ()
    objects = [] if detected is None else yolo.detections(detected, object_ids, names)
    people = [] if posed is None else poses.poses(posed, pose_ids)
    for index, embedding in look.embeddings.items():
        one = objects[index]
        objects[index] = FaceDetection(
            one.class_id, one.class_name, one.confidence, one.box, one.track_id, embedding=embedding
        )
    return objects, people


def _say(look: Look, batch: Batch) -> None:
    """Every stage says how it went, also those that did not run."""
    chosen, stages, vision = look.job.settings.stages, look.stages, batch.vision
    for name, wanted, served in (
        ("detect", chosen.detect, vision.detect),
        ("pose", chosen.pose, vision.pose),
    ):
        if not wanted:
            stages[name] = OFF
        elif name not in stages:
            stages[name] = _missing(batch, served is not None, vision.rejected)
    for name, wanted in (("ocr", chosen.ocr), ("motion", chosen.motion), ("track", chosen.track)):
        if not wanted:
            stages[name] = OFF
    stages.setdefault("track", Stage("skipped", "nothing_detected_on"))
    if look.job.faces and FACE not in stages:
        stages[FACE] = _missing(batch, vision.face is not None, vision.face_rejected)
    for name, stage in stages.items():
        if stage.status == "error":
            metrics.STAGE_ERRORS.labels(name).inc()


def _missing(batch: Batch, served: bool, rejected: str | None) -> Stage:
    if not batch.up or served:
        return Stage("error", "inference_unavailable")
    return Stage("disabled", rejected or "not_served")
