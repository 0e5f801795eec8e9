"""Groups frames into micro-batches: a batch is due when it is full, or its oldest frame has waited long enough. Pure.

A camera's frames are never in two batches at once, and are in order within one, because each frame reads and changes
the camera's stream memory (tracks, the last image).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.fleet.streams import CameraFrame
from app.settings import FleetSettings


@dataclass(frozen=True, slots=True)
class BatchLimits:
    size: int
    """Most frames."""
    wait_s: float
    """Longest wait of the first frame."""


LATENCY = BatchLimits(4, 0.020)
THROUGHPUT = BatchLimits(16, 0.005)


def batch_limits(settings: FleetSettings) -> tuple[BatchLimits, BatchLimits]:
    """The limits without lag and with much lag; BATCH_SIZE and BATCH_TIMEOUT_MS set the same limit for both."""
    low = LATENCY if settings.fleet_profile == "latency" else THROUGHPUT
    return _overridden(low, settings), _overridden(THROUGHPUT, settings)


def _overridden(limits: BatchLimits, settings: FleetSettings) -> BatchLimits:
    wait_ms = settings.batch_timeout_ms
    return BatchLimits(settings.batch_size or limits.size, limits.wait_s if wait_ms is None else wait_ms / 1000)


def fit_limits(low: BatchLimits, high: BatchLimits, waiting: int, batches: int) -> BatchLimits:
    """The limits for `waiting` frames and `batches` batches at once.

    The size grows so that one round of batches takes all waiting frames; the wait shrinks with it, because frames are
    not rare then.
    """
    size = min(high.size, max(low.size, -(-waiting // batches)))
    span = high.size - low.size
    share = (size - low.size) / span if span else float(waiting > batches * size)
    return BatchLimits(size, (1 - share) * low.wait_s + share * high.wait_s)


class MicroBatcher:
    """Times are seconds of one monotonic clock. Not thread-safe."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[CameraFrame]] = {}
        self._ready: deque[str] = deque()
        """Streams that have waiting frames and no frame in a running batch, in round-robin order."""
        self._busy: set[str] = set()
        self._waiting = self._eligible = 0

    def __len__(self) -> int:
        """Frames that wait."""
        return self._waiting

    def add(self, frames: Iterable[CameraFrame]) -> None:
        """Queues frames, each camera's in order."""
        for frame in frames:
            stream = frame.origin.stream
            queue = self._queues.get(stream)
            if queue is None:
                queue = self._queues[stream] = deque()
            if stream not in self._busy:
                if not queue:
                    self._ready.append(stream)
                self._eligible += 1
            queue.append(frame)
            self._waiting += 1

    def take(self, limits: BatchLimits, now: float) -> list[CameraFrame]:
        """Removes and returns the next batch, round robin over the cameras; empty while none is due."""
        if not self._eligible or (self._eligible < limits.size and self._first() + limits.wait_s > now):
            return []
        batch: list[CameraFrame] = []
        while self._ready and len(batch) < limits.size:
            stream = self._ready.popleft()
            queue = self._queues[stream]
            batch.append(queue.popleft())
            if queue:
                self._ready.append(stream)
            else:
                del self._queues[stream]
        self._waiting -= len(batch)
        self._eligible -= len(batch)
        taken = {frame.origin.stream for frame in batch}
        self._busy |= taken
        blocked = [stream for stream in self._ready if stream in taken]
        if blocked:
            self._eligible -= sum(len(self._queues[stream]) for stream in blocked)
            self._ready = deque(stream for stream in self._ready if stream not in taken)
        return batch

    def done(self, batch: Sequence[CameraFrame]) -> None:
        """Allows the next frames of the batch's cameras to be taken."""
        for stream in {frame.origin.stream: None for frame in batch}:
            self._busy.discard(stream)
            if queue := self._queues.get(stream):
                self._ready.append(stream)
                self._eligible += len(queue)

    def due(self, limits: BatchLimits) -> float | None:
        """When the next batch is due at the latest; None if no waiting frame may be taken."""
        return self._first() + limits.wait_s if self._eligible else None

    def _first(self) -> float:
        """Arrival of the longest-waiting frame, among those that may be taken."""
        return min(self._queues[stream][0].arrived for stream in self._ready)
