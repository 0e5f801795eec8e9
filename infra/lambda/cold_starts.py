"""How long starts take, from the last five: kept in one tag of the instance, as `1764000000=48 1764090000=52`.

Each entry is a start: when it was asked for (epoch seconds), and after how many seconds the service
answered. Its time is its name, so that a start that is told twice counts once.
"""

from __future__ import annotations

from statistics import median

KEPT = 5
_LONGEST_S = 1800.0


def read(tag: str) -> dict[int, float]:
    """Start by start, oldest first. What is no entry is passed over: anybody may edit a tag."""
    found: dict[int, float] = {}
    for entry in tag.split():
        at, _, took = entry.partition("=")
        if at.isdecimal() and took.isdecimal() and float(took) <= _LONGEST_S:
            found[int(at)] = float(took)
    return dict(sorted(found.items())[-KEPT:])


def add(tag: str, started_at: float, took_s: float) -> str:
    """The tag with one start more, the oldest left out where there are too many."""
    starts = read(tag)
    starts.setdefault(int(started_at), took_s)
    return " ".join(f"{at}={took:.0f}" for at, took in sorted(starts.items())[-KEPT:])


def left_s(tag: str, gone_s: float = 0.0) -> int | None:
    """Seconds until a start that is `gone_s` old should be done, by the median; None while no start is known."""
    starts = read(tag)
    return max(0, round(median(starts.values()) - gone_s)) if starts else None
