"""What goes into the pipeline: a frame, what its stream remembers, and how it is to be looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from app.pipeline.motion import Flow
from app.pipeline.ocr import OcrMemory
from app.pipeline.tracks import StreamTracker
from app.pipeline.turns import Turn
from app.protocol.messages import StreamSettings


@dataclass(frozen=True, slots=True)
class Frame:
    stream: str
    jpeg: bytes
    """Of a `Job.photo` perhaps a PNG or WebP."""
    received: float
    """`time.perf_counter()` when it came in."""
    received_at_ms: float
    """Epoch milliseconds when it came in."""
    seq: int
    """The client's number of the frame, or its door's."""
    captured_at_ms: float | None = None
    pixels: NDArray[np.uint8] | None = None
    """The picture where it came decoded, in place of `jpeg`: RGB `[height, width, 3]`, C-contiguous, never changed."""
    at_s: float | None = None
    """When it was taken, seconds on its stream's own clock, for tracking and the age of texts; None: `received`."""

    @property
    def still(self) -> bytes | Callable[[], bytes]:
        """Its JPEG, or what makes one: some milliseconds, for a thread."""
        return self.jpeg if self.pixels is None else partial(as_jpeg, self.pixels)


def as_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """RGB `[height, width, 3]` as a JPEG without subsampling, for the reading of text."""
    jpeg: bytes = simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="444")
    return jpeg


@dataclass(slots=True)
class StreamMemory:
    """What one stream must remember between frames. Its door owns it; never two frames of a stream at once."""

    grey: NDArray[Any] | None = None
    """The last frame, small and grey: the flow's first picture."""
    flow: Flow | None = None
    tracker: StreamTracker | None = None
    ocr: OcrMemory = field(default_factory=OcrMemory)
    turn: Turn | None = None
    """The last call's, where a door makes several at a time."""


@dataclass(frozen=True, slots=True)
class Job:
    """One frame to be analysed."""

    frame: Frame
    memory: StreamMemory
    settings: StreamSettings
    faces: bool = False
    """Whether to embed faces. Its door's choice, no client's: there is no word for it in the live protocol."""
    photo: bool = False
    """A picture by itself, no camera's frame: PNG and WebP are taken too, and it is turned as its EXIF orientation says
    (EXIF_ORIENTATION)."""
    deadline_s: float | None = None
    """Of a door that can wait: seconds a request has. One that takes longer is repeated once, and then counts as
    unavailable. None: TRITON_DEADLINE_S, and a stage that says `error`."""
