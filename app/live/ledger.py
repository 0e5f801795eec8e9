"""What became of a session's frames: received = processed + dropped + failed + in flight, at every moment."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Mapping

from app import metrics
from app.protocol.messages import Dropped, Report, StageTimes, Summary

_SAMPLES = 512
DOOR = "live"
_received = metrics.FRAMES_RECEIVED.labels(DOOR)
_processed = metrics.FRAMES_PROCESSED.labels(DOOR)
_ages = metrics.ages(DOOR)
PACE = metrics.Pace(DOOR)


class Ledger:
    """Counts for the session's report and for the service's metrics in one place, so that they agree."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._received = self._processed = self._failed = self._bytes = 0
        self._dropped: Counter[str] = Counter()
        self._dropped_total = self._dropped_told = 0
        self._times: dict[str, deque[float]] = {}

    def received(self, size: int) -> None:
        self._received += 1
        self._bytes += size
        _received.inc()
        metrics.LAST_ACTIVITY.set_to_current_time()

    def dropped(self, reason: str, count: int = 1) -> None:
        self._dropped[reason] += count
        self._dropped_total += count
        metrics.FRAMES_DROPPED.labels(DOOR, reason).inc(count)

    def failed(self, stage: str) -> None:
        self._failed += 1
        metrics.FRAMES_FAILED.labels(DOOR, stage).inc()

    def processed(self, age_s: float, timings_ms: Mapping[str, float]) -> None:
        self._processed += 1
        _processed.inc()
        PACE.add()
        _ages.add(age_s)
        for name, value in timings_ms.items():
            times = self._times.get(name)
            if times is None:
                times = self._times[name] = deque(maxlen=_SAMPLES)
            times.append(value)

    @property
    def in_flight(self) -> int:
        return self._received - self._processed - self._failed - self._dropped_total

    def settle(self, reason: str) -> None:
        """The session is over: whatever is still in flight is dropped."""
        if self.in_flight:
            self.dropped(reason, self.in_flight)

    def tell_dropped(self) -> Dropped:
        """For the next result."""
        since = self._dropped_total - self._dropped_told
        self._dropped_told = self._dropped_total
        return Dropped(since, self._dropped_total)

    def report(self, summary: Summary | None = None) -> Report:
        return Report(
            received=self._received,
            processed=self._processed,
            dropped=dict(self._dropped),
            failed=self._failed,
            bytes=self._bytes,
            duration_s=round(time.monotonic() - self._started, 3),
            summary=summary,
            stages={name: StageTimes(_at(times, 0.50), _at(times, 0.95)) for name, times in self._times.items()},
        )


def _at(values: deque[float], quantile: float) -> float:
    """The quantile of the last samples, nearest rank."""
    ordered = sorted(values)
    return round(ordered[math.ceil(quantile * len(ordered)) - 1], 3)
