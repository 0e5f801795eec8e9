"""The frames that a worker has in flight, and the buffer of its frame counters."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from app import metrics
from app.fleet.streams import CameraFrame, FrameOrigin

ENTRY_POINT = "fleet"
"""The fleet's value of the metrics' label `entry`."""
MOST_RESULTS = 1024
"""Most results that wait for the sinks."""
_WEIGHT = 0.3
"""Weight of the newest batch in a moving average."""
FRAMES = 100
"""Frames after which the buffered counts are written to the metrics."""
PERIOD_S = 1.0
"""Seconds after which they are written in any case."""


class InFlight:
    """The frames that a worker has read from Redis and not acknowledged yet, and how many more it may read.

    There are two limits: frames that wait for the models or are with them (pixels, large), and results that a sink has
    not taken yet (a few kilobytes each). When either is reached the worker reads nothing more: unread frames wait in
    Redis, where MAXLEN bounds them.

    The limit of frames follows the models' speed, so that a frame is analysed within `within_s`: with slow models,
    frames in flight would get old while newer frames of their cameras wait. By Little's law, frames in flight are
    throughput times latency.

    The threads of one worker share it.
    """

    def __init__(
        self, frames: int, results: int = MOST_RESULTS, *, least_frames: int | None = None, within_s: float = math.inf
    ) -> None:
        """
        Args:
            frames: most frames.
            results: most results, including those of frames still being analysed.
            least_frames: the limit at the start, and however slow the models are; default: `frames`.
            within_s: seconds in which a frame should be analysed after it was read.
        """
        self._most_frames = frames
        self._least_frames = frames if least_frames is None else min(frames, least_frames)
        self._most_results = results
        self._within_s = within_s
        self._limit = float(self._least_frames)
        """The current limit of frames; compared rounded, because a moving average never quite reaches its maximum."""
        self.latency_s = 0.0
        """Seconds from reading a frame until it is analysed: a moving average."""
        self._frames = 0
        self._entries: set[tuple[str, str]] = set()
        self._paused = False
        self._least = 1
        """Frames that a caller of `room` waits for."""
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Entries read and not acknowledged."""
        return len(self._entries)

    def __contains__(self, at: tuple[str, str]) -> bool:
        """Whether the entry `(stream, id)` is in flight."""
        return at in self._entries

    def entries(self) -> frozenset[tuple[str, str]]:
        """All entries in flight, as `(stream, id)`."""
        with self._changed:
            return frozenset(self._entries)

    @property
    def frames(self) -> int:
        """Frames that are not analysed yet."""
        return self._frames

    def room(self, least: int, timeout_s: float) -> int:
        """How many frames may be read. Waits until it is at least `least`, or a quarter of the limit if that is less;
        returns 0 after `timeout_s`.
        """
        with self._changed:
            self._least = least
            self._changed.wait_for(self._has_room, timeout_s)
            return self._room() if self._has_room() else 0

    def _has_room(self) -> bool:
        return self._room() >= max(1, min(self._least, round(self._limit) // 4))

    def _room(self) -> int:
        if self._paused:
            return 0
        return min(round(self._limit) - self._frames, self._most_results - len(self._entries))

    def _notify(self) -> None:
        """Wakes waiting threads only when their condition holds, because waking them for every frame costs more."""
        if self._has_room() or not self._entries:
            self._changed.notify_all()

    def add(self, origins: Iterable[FrameOrigin]) -> None:
        """Records frames as read."""
        with self._changed:
            for origin in origins:
                self._entries.add((origin.stream, origin.entry))
                self._frames += 1

    def analyzed(self, frames: Sequence[CameraFrame]) -> None:
        """Records a batch as analysed: its pixels are gone; its results may still wait for the sinks."""
        now = time.perf_counter()
        latency_s = sum(now - frame.arrived for frame in frames) / len(frames)
        with self._changed:
            self.latency_s += _WEIGHT * (latency_s - self.latency_s)
            if self._within_s < math.inf:
                limit = self._frames * self._within_s / max(latency_s, 1e-6)
                limit = min(self._most_frames, max(self._least_frames, limit))
                self._limit += _WEIGHT * (limit - self._limit)
            self._frames -= len(frames)
            self._notify()

    def acknowledged(self, origins: Sequence[FrameOrigin]) -> None:
        """Records frames as acknowledged, or as no longer this worker's."""
        with self._changed:
            for origin in origins:
                self._entries.discard((origin.stream, origin.entry))
            self._notify()

    def pause(self, paused: bool) -> None:
        """Stops reading while a sink cannot take results; `False` resumes it."""
        with self._changed:
            self._paused = paused
            self._notify()

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Waits until nothing is in flight; False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._entries, timeout_s)

    def count_by_stream(self) -> dict[str, int]:
        """Entries in flight by stream."""
        with self._changed:
            return Counter(stream for stream, _ in self._entries)


class MetricsBuffer:
    """Adds up counts over `FRAMES` frames, or a second, because writing to a metric takes a lock and a lookup.

    Received frames and their outcomes are written together, so that received = processed + dropped + failed + in flight
    holds whenever the metrics are read. Any thread may add.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fps = metrics.RateGauge(ENTRY_POINT)
        self._written = time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self._frames = self._received = self._processed = 0
        self._dropped: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._ages: list[float] = []
        self._fill: list[float] = []
        self._timings: list[Mapping[str, float]] = []

    def received(self, count: int) -> None:
        with self._lock:
            self._received += count
            self._add(count)

    def processed(self, age_s: float) -> None:
        """Counts one delivered result, `age_s` seconds after its frame was captured."""
        with self._lock:
            self._processed += 1
            self._ages.append(age_s)
            self._add(1)

    def dropped(self, reason: str, count: int = 1) -> None:
        with self._lock:
            self._dropped[reason] += count
            self._add(count)

    def dropped_unread(self, reason: str, count: int) -> None:
        """Counts frames that this worker drops without reading them: as received and as dropped."""
        if count:
            self.received(count)
            self.dropped(reason, count)

    def failed(self, stage: str) -> None:
        with self._lock:
            self._failed[stage] += 1
            self._add(1)

    def batch(self, fill: float) -> None:
        """Records one batch: its frames divided by the largest batch's."""
        with self._lock:
            self._fill.append(fill)

    def timed(self, timings: Mapping[str, float]) -> None:
        """Records the seconds that each stage of one frame took. The mapping is kept and must not change any more."""
        with self._lock:
            self._timings.append(timings)

    def _add(self, count: int) -> None:
        # A frame counts twice: when it is received, and with its outcome.
        self._frames += count
        if self._frames >= 2 * FRAMES:
            self._write()

    def tick(self) -> None:
        """Writes once a period; call it several times a second."""
        with self._lock:
            if time.monotonic() - self._written >= PERIOD_S:
                self._write()
                self._fps.publish()

    def flush(self) -> None:
        """Writes everything now."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        if self._received:
            metrics.FRAMES_RECEIVED.labels(ENTRY_POINT).inc(self._received)
            metrics.LAST_ACTIVITY.set_to_current_time()
        if self._processed:
            metrics.FRAMES_PROCESSED.labels(ENTRY_POINT).inc(self._processed)
            self._fps.add(self._processed)
        for reason, count in self._dropped.items():
            metrics.FRAMES_DROPPED.labels(ENTRY_POINT, reason).inc(count)
        for stage, count in self._failed.items():
            metrics.FRAMES_FAILED.labels(ENTRY_POINT, stage).inc(count)
        metrics.observe_all(metrics.FRAME_AGE.labels(ENTRY_POINT), self._ages)
        metrics.observe_stages(ENTRY_POINT, self._timings)
        if self._fill:
            metrics.FLEET_BATCH_FILL.set(sum(self._fill) / len(self._fill))
        self._clear()
