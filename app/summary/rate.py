"""How long to wait between two summaries of a session. Pure.

What has gathered asks for a summary: a busy scene fills its backlog faster and has more to tell, and what waits too
long is merged and loses detail. So more waiting means sooner, from the longest interval down to the shortest.

That holds only while the model keeps up. A model that fails, or that takes long, is not helped by being asked more
often: every failure in a row doubles the interval, and a session leaves the model alone for at least twice as long as
its last answer took, so that it keeps a slow model busy for a third of the time at most. This brake is stronger than
the pull of the backlog: what gathers meanwhile waits, spills and merges, and one summary tells all of it in the end.
"""

from __future__ import annotations

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
