"""Counts added up over a hundred frames, or a second, before they touch a metric, which takes a lock and a lookup."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping

from app import metrics

DOOR = "fleet"
FRAMES = 100
"""Frames that are added up."""
PERIOD_S = 1.0


class Tally:
    """Counters of one worker; any thread may add.

    What came in and what became of it are written in one go, so that received = processed + dropped + failed + in
    flight holds whenever the metrics are read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pace = metrics.Pace(DOOR)
        self._written = time.monotonic()
        self._begin()

    def _begin(self) -> None:
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
        """One result was delivered, this long after its frame was captured."""
        with self._lock:
            self._processed += 1
            self._ages.append(age_s)
            self._add(1)

    def dropped(self, reason: str, count: int = 1) -> None:
        with self._lock:
            self._dropped[reason] += count
            self._add(count)

    def failed(self, stage: str) -> None:
        with self._lock:
            self._failed[stage] += 1
            self._add(1)

    def batch(self, fill: float) -> None:
        """One batch was begun: its frames over the most it could have held."""
        with self._lock:
            self._fill.append(fill)

    def timed(self, timings: Mapping[str, float]) -> None:
        """How long each stage of one frame took, seconds; kept, and not to be changed any more."""
        with self._lock:
            self._timings.append(timings)

    def _add(self, count: int) -> None:
        # A frame counts twice, coming in and going out.
        self._frames += count
        if self._frames >= 2 * FRAMES:
            self._write()

    def tick(self) -> None:
        """Called several times a second; writes once a period what has come together."""
        with self._lock:
            if time.monotonic() - self._written >= PERIOD_S:
                self._write()
                self._pace.publish()

    def flush(self) -> None:
        """Writes everything now."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        if self._received:
            metrics.FRAMES_RECEIVED.labels(DOOR).inc(self._received)
            metrics.LAST_ACTIVITY.set_to_current_time()
        if self._processed:
            metrics.FRAMES_PROCESSED.labels(DOOR).inc(self._processed)
            self._pace.add(self._processed)
        for reason, count in self._dropped.items():
            metrics.FRAMES_DROPPED.labels(DOOR, reason).inc(count)
        for stage, count in self._failed.items():
            metrics.FRAMES_FAILED.labels(DOOR, stage).inc(count)
        metrics.observe_all(metrics.FRAME_AGE.labels(DOOR), self._ages)
        metrics.observe_stages(DOOR, self._timings)
        if self._fill:
            metrics.FLEET_BATCH_FILL.set(sum(self._fill) / len(self._fill))
        self._begin()
