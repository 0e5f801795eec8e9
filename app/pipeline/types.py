"""The types that all modules of the pipeline share: a frame, its stream's memory, and a batch on its way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.errors import FrameError
from app.pipeline.decode import JpegInfo, encode_jpeg
from app.pipeline.stages.ocr.policy import OcrMemory
from app.protocol.messages import StreamSettings
from app.protocol.result import Detection, Motion, Pose, Stage

if TYPE_CHECKING:
    from app.inference.shared_memory import Buffer
    from app.pipeline.boxes import Letterbox
    from app.pipeline.layouts import InputFormat
    from app.pipeline.models import ModelSet
    from app.pipeline.ordering import Ticket
    from app.pipeline.stages.detect import Detected, DetectReader
    from app.pipeline.stages.motion import Flow
    from app.pipeline.stages.pose import Posed, PoseReader
    from app.pipeline.stages.tracking import StreamTracker

# --- what goes into the pipeline ---


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it came to an entry point."""

    stream: str
    """The stream's id."""
    jpeg: bytes
    """The image's bytes: a JPEG, or with `FrameJob.photo` perhaps a PNG or WebP."""
    received: float
    """`time.perf_counter()` when the frame arrived."""
    received_at_ms: float
    """Epoch milliseconds when the frame arrived."""
    seq: int
    """The frame's number, given by the client or by the entry point."""
    captured_at_ms: float | None = None
    pixels: NDArray[np.uint8] | None = None
    """The decoded image, which replaces `jpeg`: RGB `[height, width, 3]`, C-contiguous. Nothing may change it."""
    at_s: float | None = None
    """When the frame was captured, seconds on the stream's own clock; tracking and the age of texts use it.
    None: they use `received`."""

    @property
    def still(self) -> bytes | Callable[[], bytes]:
        """The frame's JPEG, or a function that makes one: it takes milliseconds and belongs in a thread."""
        return self.jpeg if self.pixels is None else partial(encode_jpeg, self.pixels)


@dataclass(slots=True)
class StreamMemory:
    """The state of one stream between frames. The entry point owns it; only one frame at a time may use it."""

    grey: NDArray[Any] | None = None
    """The last frame, small and grey: the first image of the next optical flow."""
    flow: Flow | None = None
    tracker: StreamTracker | None = None
    ocr: OcrMemory = field(default_factory=OcrMemory)
    ticket: Ticket | None = None
    """The ticket of the last call, where an entry point makes several calls at a time."""


@dataclass(slots=True, eq=False)
class FrameJob:
    """One frame to analyse, with its stream's memory and settings."""

    frame: Frame
    memory: StreamMemory
    settings: StreamSettings
    faces: bool = False
    """Whether to embed faces. The entry point decides; the live protocol has no field for it."""
    photo: bool = False
    """Whether the image stands alone and comes from no camera. Then PNG and WebP are accepted, too, and
    EXIF_ORIENTATION=auto turns the image by its EXIF orientation."""
    deadline_s: float | None = None
    """Seconds that an inference request may take, for an entry point that can wait: a request that takes longer is
    repeated once; then the server counts as unavailable. None: TRITON_DEADLINE_S applies, without a second try; the
    stage's status is then `error`.
    """
    heavy: bool | None = None
    """Whether preparing the frame takes long; `preprocess.heavy` determines it once."""


# --- on its way ---


@dataclass(slots=True)
class FrameState:
    """The state of one frame on its way through a batch."""

    job: FrameJob
    info: JpegInfo | None = None
    grey: NDArray[Any] | None = None
    pixels: NDArray[np.uint8] | None = None
    """The upright frame, RGB `[h, w, 3]`, for cutting out faces; None unless it was decoded at full size anyway."""
    still: Callable[[], bytes] | None = None
    """Makes a JPEG of the analysed image; set where the frame's own bytes are no JPEG or lie on their side."""
    motion: Motion | None = None
    error: FrameError | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds of each step."""
    detected: Detected | None = None
    posed: Posed | None = None
    objects: list[Detection] | None = None
    """Objects as the wire has them, with track ids; None until they are built."""
    people: list[Pose] | None = None
    """Poses as the wire has them, with track ids; None until they are built."""
    embeddings: dict[int, str] = field(default_factory=dict)
    """Embedded faces as the wire has them, by the index of their person in `detected`."""

    def time(self, name: str, since: float) -> float:
        """Adds the seconds since `since` to a timing; returns `time.perf_counter()`."""
        now = time.perf_counter()
        self.timings[name] = self.timings.get(name, 0.0) + now - since
        return now


@dataclass(slots=True)
class Input:
    """One input tensor of a batch, and where each frame lies in it."""

    form: InputFormat
    buffer: Buffer
    boxes: dict[int, Letterbox] = field(default_factory=dict)

    def canvas(self, index: int) -> NDArray[np.uint8]:
        """The image to decode into: a part of the tensor itself where it takes UINT8 NHWC, else a new array."""
        if self.form.is_image:
            canvas: NDArray[np.uint8] = self.buffer.array[index]
            return canvas
        return np.empty((self.form.height, self.form.width, 3), np.uint8)

    def place(self, index: int, box: Letterbox) -> bool:
        """Records where a frame will lie; returns whether its border must be painted.

        Shared memory keeps the border of the last frame of the same size. Until `laid` is called the content of the
        canvas counts as unknown, because a damaged frame may leave anything there.
        """
        self.boxes[index] = box
        slot = self.buffer.slot
        return slot is None or not self.form.is_image or slot.borders.pop(index, None) != box

    def laid(self, index: int, box: Letterbox) -> None:
        """Records that the frame lies at `box`, with its border around it."""
        if self.buffer.slot is not None and self.form.is_image:
            self.buffer.slot.borders[index] = box


@dataclass(slots=True)
class Request:
    """One request to the inference server, and the readers of its reply."""

    input: Input
    detect: DetectReader | None
    pose: PoseReader | None

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages that read the reply."""
        return tuple(name for name, reader in (("detect", self.detect), ("pose", self.pose)) if reader is not None)


@dataclass(slots=True)
class Batch:
    """Frames that are analysed together, their input memory, and the requests that they need."""

    frames: list[FrameState]
    model_set: ModelSet
    """The models as they were when the batch began; a reconnection may bring others meanwhile."""
    up: bool
    """Whether the inference server was connected."""
    inputs: dict[InputFormat, Input] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def hold(self) -> None:
        """Takes one more reference to the input memory; each `hold` needs its `release`."""
        for tensor in self.inputs.values():
            tensor.buffer.hold()

    def release(self) -> None:
        """Drops one reference to the input memory, which returns to its pool after the last."""
        for tensor in self.inputs.values():
            tensor.buffer.release()
