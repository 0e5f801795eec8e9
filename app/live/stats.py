"""The counts of a session's frames: received = processed + dropped + failed + in flight, at every moment."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Mapping

from app import metrics
from app.protocol.messages import Dropped, Report, StageTimes, Summary

ENTRY = "live"
"""This entry point's value of the metrics' label `entry`."""
_SAMPLES = 512
"""Latest times that are kept for each stage, for the report's quantiles."""
_received = metrics.FRAMES_RECEIVED.labels(ENTRY)
_processed = metrics.FRAMES_PROCESSED.labels(ENTRY)
_ages = metrics.ages(ENTRY)
RATE = metrics.RateGauge(ENTRY)


class FrameStats:
    """Counts for the session's report and for the service's metrics in one place, so that the two agree."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._received = self._processed = self._failed = self._bytes = 0
        self._dropped: Counter[str] = Counter()
        self._dropped_total = self._dropped_reported = 0
        self._times: dict[str, deque[float]] = {}

    def received(self, size: int) -> None:
        """Counts a frame of so many bytes."""
        self._received += 1
        self._bytes += size
        _received.inc()
        metrics.LAST_ACTIVITY.set_to_current_time()

    def dropped(self, reason: str, count: int = 1) -> None:
        """Counts frames that are not analysed, or whose result is not sent."""
        self._dropped[reason] += count
        self._dropped_total += count
        metrics.FRAMES_DROPPED.labels(ENTRY, reason).inc(count)

    def failed(self, stage: str) -> None:
        """Counts a frame whose analysis raised an exception."""
        self._failed += 1
        metrics.FRAMES_FAILED.labels(ENTRY, stage).inc()

    def processed(self, age_s: float, timings_ms: Mapping[str, float]) -> None:
        """Counts a frame whose result was sent `age_s` after the frame came."""
        self._processed += 1
        _processed.inc()
        RATE.add()
        _ages.add(age_s)
        for name, value in timings_ms.items():
            times = self._times.get(name)
            if times is None:
                times = self._times[name] = deque(maxlen=_SAMPLES)
            times.append(value)

    @property
    def in_flight(self) -> int:
        """Frames without an outcome yet."""
        return self._received - self._processed - self._failed - self._dropped_total

    def settle(self, reason: str) -> None:
        """Counts all frames that are still in flight as dropped, because the session is over."""
        if self.in_flight:
            self.dropped(reason, self.in_flight)

    def report_dropped(self) -> Dropped:
        """Frames dropped since the last call, and in all; for the next result."""
        since = self._dropped_total - self._dropped_reported
        self._dropped_reported = self._dropped_total
        return Dropped(since, self._dropped_total)

    def report(self, summary: Summary | None = None) -> Report:
        """The report in `bye`."""
        return Report(
            received=self._received,
            processed=self._processed,
            dropped=dict(self._dropped),
            failed=self._failed,
            bytes=self._bytes,
            duration_s=round(time.monotonic() - self._started, 3),
            summary=summary,
            stages={
                name: StageTimes(_quantile(times, 0.50), _quantile(times, 0.95)) for name, times in self._times.items()
            },
        )


def _quantile(values: deque[float], quantile: float) -> float:
    """The quantile by nearest rank."""
    ordered = sorted(values)
    return round(ordered[math.ceil(quantile * len(ordered)) - 1], 3)
