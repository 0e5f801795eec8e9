"""What a session has seen and not told yet: observed, kept in order, and due at an interval that adapts."""

from __future__ import annotations

import time

from app.protocol.result import FrameResult
from app.settings import SummarySettings
from app.summary.backlog import Backlog
from app.summary.format import MOST_BYTES, MOST_OBSERVATIONS, fold
from app.summary.observation import Observation
from app.summary.observer import Observer
from app.summary.rate import Pace
from app.summary.spill import Spill


class Gathering:
    """One session's, from its results to the observations of the next summary."""

    def __init__(self, session_id: str, settings: SummarySettings, spill: Spill) -> None:
        self.taken: list[Observation] = []
        """Out of the backlog, not told yet; at most one request's."""
        self.pace = Pace(settings, time.monotonic())
        self._observer = Observer()
        self._backlog = Backlog(session_id, settings, spill)

    def offer(self, frame_id: int, result: FrameResult, at_ms: float) -> None:
        """One result, in the order of its frames. Microseconds; never fails for load."""
        seen = self._observer.add(frame_id, result, at_ms)
        if seen is not None:
            self._add(seen)

    def flush(self) -> None:
        """What was seen counts as it is, without waiting for its second to be full."""
        seen = self._observer.flush()
        if seen is not None:
            self._add(seen)
        else:
            self._add_quiet()

    def _add(self, seen: Observation) -> None:
        self._add_quiet()
        self.pace.gathered(time.monotonic())
        self._backlog.offer(seen)

    def _add_quiet(self) -> None:
        """Frames that showed nothing are told with what was there before them; alone they are no news."""
        quiet = self._observer.quiet()
        if quiet is not None and self.waiting:
            self._backlog.offer(quiet)

    @property
    def waiting(self) -> int:
        """Observations in the backlog, in memory and on disk."""
        counts = self._backlog.counts
        return counts.in_ram + counts.on_disk

    @property
    def backlog_pressure(self) -> float:
        """See `Backlog.pressure`."""
        return self._backlog.pressure

    @property
    def pressure(self) -> float:
        """0 to 1: how full the backlog is, or one request, whichever is fuller."""
        return max(self._backlog.pressure, min(1.0, self.waiting / MOST_OBSERVATIONS))

    @property
    def due(self) -> bool:
        """Whether it is time for a summary."""
        return self.pace.due(time.monotonic(), self.pressure)

    async def take(self, *, everything: bool) -> None:
        """Adds what waits to `taken`: as much as one request holds, or all of it, folded to that.

        Cancelling loses nothing.
        """
        self.pace.emptied()
        while self.waiting:
            more = await self._backlog.take(max_items=MOST_OBSERVATIONS, max_bytes=MOST_BYTES)
            self.taken = fold([*self.taken, *more], MOST_OBSERVATIONS)
            if not everything or not more:
                break
        if self.waiting:
            self.pace.gathered(time.monotonic())

    async def close(self) -> None:
        """What waits is kept on disk for the next start."""
        await self._backlog.close(keep=self.waiting > 0)
