"""How long to wait between two summaries of a session. Pure.

What has gathered asks for a summary: a busy scene fills its backlog faster and has more to tell, and what waits too
long is merged and loses detail. So more waiting means sooner, from the longest interval down to the shortest.

That holds only while the model keeps up. A model that fails, or that takes long, is not helped by being asked more
often: every failure in a row doubles the interval, and a session leaves the model alone for at least twice as long as
its last answer took, so that it keeps a slow model busy for a third of the time at most. This brake is stronger than
the pull of the backlog: what gathers meanwhile waits, spills and merges, and one summary tells all of it in the end.
"""

from __future__ import annotations

from app.settings import SummarySettings

EAGER_AT = 0.5
"""Pressure from which a session asks as often as it may: half full is time enough to act before things are merged."""
REST = 2.0
"""Least pause over the seconds of the last answer."""
_MOST_DOUBLINGS = 16


def interval_s(pressure: float, *, failures: int, answer_s: float, least_s: float, most_s: float) -> float:
    """Seconds from the end of one summary to the start of the next.

    Args:
        pressure: what waits, 0 (nothing) to 1 (the bounds are reached).
        failures: requests for this session that failed in a row.
        answer_s: seconds that the last answer took; 0 for a digest.
        least_s: SUMMARY_MIN_INTERVAL_S.
        most_s: SUMMARY_MAX_INTERVAL_S; taken as `least_s` where it is smaller.

    Returns:
        Between `least_s` and `most_s`, always.
    """
    most_s = max(least_s, most_s)
    pull = min(1.0, max(0.0, pressure) / EAGER_AT)
    wanted = most_s - (most_s - least_s) * pull
    wanted = max(wanted * 2.0 ** min(max(0, failures), _MOST_DOUBLINGS), answer_s * REST)
    return float(min(most_s, max(least_s, wanted)))


class Pace:
    """When a session's next summary is due. `now`: seconds of a monotonic clock."""

    def __init__(self, settings: SummarySettings, now: float) -> None:
        self._least_s = settings.summary_min_interval_s
        self._most_s = settings.summary_max_interval_s
        self._since: float | None = None
        self._told_at = now
        self._told = False
        self._failures = 0
        self._answer_s = 0.0

    def gathered(self, now: float) -> None:
        """Something waits. The first of it starts the clock."""
        if self._since is None:
            self._since = now

    def emptied(self) -> None:
        """Nothing waits any more."""
        self._since = None

    def told(self, now: float, *, failed: bool = False, answer_s: float = 0.0) -> None:
        """A summary was made. `failed`: the model should have written it, and did not."""
        self._told, self._told_at, self._answer_s = True, now, answer_s
        self._failures = self._failures + 1 if failed else 0

    def interval_s(self, pressure: float) -> float:
        """Seconds between two summaries as things stand. The first comes as soon as any may."""
        if not self._told:
            return self._least_s
        return interval_s(
            pressure, failures=self._failures, answer_s=self._answer_s, least_s=self._least_s, most_s=self._most_s
        )

    def due(self, now: float, pressure: float) -> bool:
        """Whether to tell now: the interval is over, and what waits is more than its first moment."""
        if self._since is None or now - self._since < self._least_s:
            return False
        return now - self._told_at >= self.interval_s(pressure)
