"""The durations of the last five starts, kept in one tag of the instance as `1764000000=48 1764090000=52`.

Each entry is a start: the time of the request (epoch seconds), and the seconds until the service answered. The time is
the key, so that a start that is reported twice counts once.
"""

from __future__ import annotations

from statistics import median

KEPT = 5
_LONGEST_S = 1800.0


def read(tag: str) -> dict[int, float]:
    """Duration by time of the request, oldest first. Ignores invalid entries, because a user may edit the tag."""
    found: dict[int, float] = {}
    for entry in tag.split():
        at, _, took = entry.partition("=")
        if at.isdecimal() and took.isdecimal() and float(took) <= _LONGEST_S:
            found[int(at)] = float(took)
    return dict(sorted(found.items())[-KEPT:])


def add(tag: str, started_at: float, took_s: float) -> str:
    """The tag with one more start; the oldest is removed if there are more than `KEPT`."""
    starts = read(tag)
    starts.setdefault(int(started_at), took_s)
    return " ".join(f"{at}={took:.0f}" for at, took in sorted(starts.items())[-KEPT:])


def left_s(tag: str, gone_s: float = 0.0) -> int | None:
    """Estimated seconds until a start that began `gone_s` ago is done, by the median; None while no start is known."""
    starts = read(tag)
    return max(0, round(median(starts.values()) - gone_s)) if starts else None
