"""A batch on its way through the pipeline: the frames, their input memory, and the requests it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import FrameError
from app.inference.memory import Buffer
from app.pipeline.boxes import Letterbox
from app.pipeline.frames import Job
from app.pipeline.jpeg import JpegInfo
from app.pipeline.pose import Posed, PoseReader
from app.pipeline.tensors import InputFormat
from app.pipeline.vision import Vision
from app.pipeline.yolo import Detected, DetectReader
from app.protocol.result import Detection, Motion, Pose, Stage


@dataclass(slots=True)
class Look:
    """One frame on its way through a batch."""

    job: Job
    info: JpegInfo | None = None
    box: Letterbox | None = None
    grey: NDArray[Any] | None = None
    pixels: NDArray[np.uint8] | None = None
    """The whole frame upright, RGB `[h, w, 3]`, kept where faces are cut out of it and it was decoded so."""
    still: Callable[[], bytes] | None = None
    """What makes a JPEG of the frame as it was looked at, where its own bytes are none or lie on their side."""
    motion: Motion | None = None
    error: FrameError | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    detected: Detected | None = None
    posed: Posed | None = None
    objects: list[Detection] | None = None
    """As the wire has them, once they were written; and `people`."""
    people: list[Pose] | None = None
    embeddings: dict[int, str] = field(default_factory=dict)
    """Of faces, as the wire has them, by the index of their person in `detected`."""

    def time(self, name: str, since: float) -> float:
        """Adds what has passed since to the timing; returns now."""
        now = time.perf_counter()
        self.timings[name] = self.timings.get(name, 0.0) + now - since
        return now


@dataclass(slots=True)
class Input:
    """One input tensor of a batch, and how each frame was laid into it."""

    form: InputFormat
    buffer: Buffer
    boxes: dict[int, Letterbox] = field(default_factory=dict)

    def canvas(self, index: int) -> NDArray[np.uint8]:
        """Where to decode to: the tensor itself where it takes UINT8 NHWC, else a picture to be filled in from."""
        if self.form.is_image:
            canvas: NDArray[np.uint8] = self.buffer.array[index]
            return canvas
        return np.empty((self.form.height, self.form.width, 3), np.uint8)

    def place(self, index: int, box: Letterbox) -> bool:
        """Notes how a frame lies in its canvas; whether the border must be painted, which frames of one size share.

        Until it is `laid` nobody knows what is there: a damaged frame may leave anything.
        """
        self.boxes[index] = box
        slot = self.buffer.slot
        return slot is None or not self.form.is_image or slot.borders.pop(index, None) != box

    def laid(self, index: int, box: Letterbox) -> None:
        """Notes that the frame lies there, with its border around it."""
        if self.buffer.slot is not None and self.form.is_image:
            self.buffer.slot.borders[index] = box


@dataclass(slots=True)
class Request:
    input: Input
    detect: DetectReader | None
    pose: PoseReader | None

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(name for name, reader in (("detect", self.detect), ("pose", self.pose)) if reader is not None)


@dataclass(slots=True)
class Batch:
    looks: list[Look]
    vision: Vision
    """As it was when the batch began; a reconnection may bring another while it is under way."""
    up: bool
    """Whether the inference server was there."""
    inputs: dict[InputFormat, Input] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def hold(self) -> None:
        """Keeps the memory for one more; each `hold` wants its `release`."""
        for one in self.inputs.values():
            one.buffer.hold()

    def release(self) -> None:
        for one in self.inputs.values():
            one.buffer.release()
