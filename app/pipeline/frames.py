"""What goes into the pipeline: a frame, what its stream remembers, and how it is to be looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from app.pipeline.motion import Flow
from app.pipeline.ocr import OcrMemory
from app.pipeline.tracks import StreamTracker
from app.protocol.messages import StreamSettings


@dataclass(frozen=True, slots=True)
class Frame:
    stream: str
    jpeg: bytes
    received: float
    """`time.perf_counter()` when it came in."""
    received_at_ms: float
    """Epoch milliseconds when it came in."""
    seq: int
    """The client's number of the frame, or its door's."""
    captured_at_ms: float | None = None


@dataclass(slots=True)
class StreamMemory:
    """What one stream must remember between frames. Its door owns it; never two frames of a stream at once."""

    grey: NDArray[Any] | None = None
    """The last frame, small and grey: the flow's first picture."""
    flow: Flow | None = None
    tracker: StreamTracker | None = None
    ocr: OcrMemory = field(default_factory=OcrMemory)


@dataclass(frozen=True, slots=True)
class Job:
    """One frame to be analysed."""

    frame: Frame
    memory: StreamMemory
    settings: StreamSettings
    faces: bool = False
    """Whether to embed faces. Its door's choice, no client's: there is no word for it in the live protocol."""
