"""Micro-batches: as many frames as a batch takes, or what is there when its first frame has waited long enough. Pure.

A camera's frames are never in two batches at once, and stand in order within one: what its stream remembers is theirs
one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.fleet.frames import CameraFrame
from app.settings import FleetSettings


@dataclass(frozen=True, slots=True)
class Limits:
    size: int
    """Most frames."""
    wait_s: float
    """Longest wait of the first one."""


LATENCY = Limits(4, 0.020)
THROUGHPUT = Limits(16, 0.005)


def spans(settings: FleetSettings) -> tuple[Limits, Limits]:
    """The batch's limits without lag and with much of it; a limit that was set is the same in both."""
    low = LATENCY if settings.fleet_profile == "latency" else THROUGHPUT
    return _as_set(low, settings), _as_set(THROUGHPUT, settings)


def _as_set(limits: Limits, settings: FleetSettings) -> Limits:
    wait_ms = settings.batch_timeout_ms
    return Limits(settings.batch_size or limits.size, limits.wait_s if wait_ms is None else wait_ms / 1000)


def fitting(low: Limits, high: Limits, waiting: int, batches: int) -> Limits:
    """The limits for so many frames that wait, where so many batches are at work at once.

    Batches grow so that one round of them takes what waits; the wait shrinks in step, since frames are not rare then.
    """
    size = min(high.size, max(low.size, -(-waiting // batches)))
    span = high.size - low.size
    share = (size - low.size) / span if span else float(waiting > batches * size)
    return Limits(size, (1 - share) * low.wait_s + share * high.wait_s)


class Batcher:
    """Times are seconds of one monotonic clock. Not thread-safe."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[CameraFrame]] = {}
        self._ready: deque[str] = deque()
        """Streams that have frames waiting and none at work, in the order of their turns."""
        self._busy: set[str] = set()
        self._waiting = self._eligible = 0

    def __len__(self) -> int:
        """Frames that wait."""
        return self._waiting

    def add(self, frames: Iterable[CameraFrame]) -> None:
        """Frames as they were read, each camera's in order."""
        for frame in frames:
            stream = frame.origin.stream
            line = self._lines.get(stream)
            if line is None:
                line = self._lines[stream] = deque()
            if stream not in self._busy:
                if not line:
                    self._ready.append(stream)
                self._eligible += 1
            line.append(frame)
            self._waiting += 1

    def take(self, limits: Limits, now: float) -> list[CameraFrame]:
        """The next batch, a frame of each camera before a second of any; empty while none is due."""
        if not self._eligible or (self._eligible < limits.size and self._first() + limits.wait_s > now):
            return []
        batch: list[CameraFrame] = []
        while self._ready and len(batch) < limits.size:
            stream = self._ready.popleft()
            line = self._lines[stream]
            batch.append(line.popleft())
            if line:
                self._ready.append(stream)
            else:
                del self._lines[stream]
        self._waiting -= len(batch)
        self._eligible -= len(batch)
        taken = {frame.origin.stream for frame in batch}
        self._busy |= taken
        held = [stream for stream in self._ready if stream in taken]
        if held:
            self._eligible -= sum(len(self._lines[stream]) for stream in held)
            self._ready = deque(stream for stream in self._ready if stream not in taken)
        return batch

    def done(self, batch: Sequence[CameraFrame]) -> None:
        """Its cameras' next frames may be taken."""
        for stream in {frame.origin.stream: None for frame in batch}:
            self._busy.discard(stream)
            if line := self._lines.get(stream):
                self._ready.append(stream)
                self._eligible += len(line)

    def due(self, limits: Limits) -> float | None:
        """When the next batch is due at the latest; None where no frame waits that may be taken."""
        return self._first() + limits.wait_s if self._eligible else None

    def _first(self) -> float:
        """When the frame arrived that has waited longest, of those that may be taken."""
        return min(self._lines[stream][0].arrived for stream in self._ready)
