"""The types that all modules of the pipeline share: a frame, its stream's memory, and a batch on its way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.errors import FrameError
from app.pipeline.decode import JpegInfo, encode_jpeg
from app.protocol.messages import StreamSettings
from app.protocol.result import Stage

if TYPE_CHECKING:
    from app.inference.client import ModelSpec
    from app.inference.shared_memory import Buffer
    from app.pipeline.boxes import Letterbox
    from app.pipeline.layouts import InputFormat
    from app.pipeline.models import ModelSet
    from app.pipeline.ordering import Ticket
    from app.pipeline.stage import ModelReader, PipelineStage

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
    """The last frame, small and grey, where a stage used it: what the next frame is compared with."""
    parts: dict[str, Any] = field(default_factory=dict)
    """What each stage keeps, by its name."""
    ticket: Ticket | None = None
    """The ticket of the last call, where an entry point makes several calls at a time."""


@dataclass(slots=True, eq=False)
class FrameJob:
    """One frame to analyse, with its stream's memory and settings."""

    frame: Frame
    memory: StreamMemory
    settings: StreamSettings
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
    index: int = 0
    """The frame's place in its batch."""
    info: JpegInfo | None = None
    grey: NDArray[Any] | None = None
    pixels: NDArray[np.uint8] | None = None
    """The upright frame, RGB `[h, w, 3]`, for stages that need it; None unless it was decoded at full size anyway."""
    still: Callable[[], bytes] | None = None
    """Makes a JPEG of the analysed image; set where the frame's own bytes are no JPEG or lie on their side."""
    error: FrameError | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    """Outcomes by stage, so far."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds of each step."""
    found: dict[str, Any] = field(default_factory=dict)
    """What each stage found, by its name: arrays in frame pixels, for the stages after it."""
    track_ids: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """By stage, `[n]`: the track of each thing that it found; -1 without one."""
    parts: dict[str, Any] = field(default_factory=dict)
    """The parts of the result by field, as the wire has them, as far as they are written."""
    finished: bool = False
    """Whether the stages that may run in a thread have finished and written this frame."""
    looped: bool = False
    """Whether the stages that run on the event loop alone have."""

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
    """One request to the inference server, and the readers of its reply, by stage."""

    spec: ModelSpec
    input: Input
    readers: dict[str, ModelReader]


@dataclass(slots=True)
class Batch:
    """Frames that are analysed together, their input memory, and the requests that they need."""

    frames: list[FrameState]
    model_set: ModelSet
    """The models as they were when the batch began; a reconnection may bring others meanwhile."""
    up: bool
    """Whether the inference server was connected."""
    stages: Mapping[str, PipelineStage] = field(default_factory=dict)
    """The pipeline's stages, by name."""
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
