"""Observations for the tests of summaries, and results from which observations are made."""

from __future__ import annotations

from app.pipeline.stages.detect import Detection
from app.pipeline.stages.ocr.policy import Text
from app.protocol.result import OK, Box, FrameResult, Image
from app.summary import Entity, Movement, ObjectCount, Observation

BEGUN_MS = 1.7e12


def seen(name: str, most: int, *, frames: int, score: float = 0.9) -> ObjectCount:
    """`most` of a class in each of so many frames."""
    return ObjectCount(name, most, frames, most * frames, round(score * 1000) * most * frames)


def observation(first: int = 1, frames: int = 20, *, at_s: float = 0.0, lasts_s: float = 1.0, **shown) -> Observation:
    started = BEGUN_MS + at_s * 1000
    return Observation(first, first + frames - 1, started, started + lasts_s * 1000, frames, **shown)


def moved(frames: int, *, much: int = 0, some: int = 0, left: bool = False, pan: bool = False) -> Movement:
    directed = much + some if left else 0
    camera = 2000 * frames if pan else 0  # the picture goes right: the camera pans left
    return Movement(frames, some, much, directed, -1000 * directed, 0, camera, 0, camera)


def entities(name: str, *numbers: int) -> tuple[Entity, ...]:
    return tuple(Entity(number, name) for number in numbers)


def frame(*names: str, text: str | None = None) -> FrameResult:
    """A result with one tracked box a name, and a text."""
    boxes = [Detection(0, name, 0.9, Box(0, 0, 10, 10), track_id) for track_id, name in enumerate(names, 1)]
    texts = [Text(text, 0.9, ((0, 0), (9, 0), (9, 9), (0, 9)))] if text else []
    stages = dict.fromkeys(("detect", "pose", "ocr", "motion", "track"), OK)
    return FrameResult(Image(640, 480), objects=boxes, texts=texts, stages=stages)
