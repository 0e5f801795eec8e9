"""Which observations are folded when there are too many. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from app.summary.observation import Observation, merge


class Row(NamedTuple):
    """An observation as the backlog holds it, in memory and on disk."""

    seq: int
    """Its number in the session; of a folded one, that of its first part."""
    frames: int
    data: bytes


def neighbours(frames: Sequence[int], wanted: int) -> list[int]:
    """Indices `i` of at most `wanted` pairs `i, i + 1` to fold, in order; no index is in two pairs.

    Those that are the smallest for their age, the oldest first. Both are counted in frames, the age up to the newest.
    What waits thus gets coarser the older it is, and the newest keep their detail.
    """
    age = 0
    ordered = []
    for i in range(len(frames) - 1, 0, -1):
        age += frames[i]
        both = frames[i - 1] + frames[i]
        ordered.append((both / (age + frames[i - 1]), i - 1))
    ordered.sort()
    return sorted(i for i, _ in disjoint(((i, i + 1) for _, i in ordered), wanted))


def disjoint(pairs: Iterable[tuple[int, int]], wanted: int) -> list[tuple[int, int]]:
    """The first pairs that share nothing with one chosen before; at least a third of those offered, or `wanted`."""
    chosen: list[tuple[int, int]] = []
    used: set[int] = set()
    for pair in pairs:
        if len(chosen) == wanted:
            break
        if used.isdisjoint(pair):
            used.update(pair)
            chosen.append(pair)
    return chosen


def fold(a: Row, b: Row) -> Row:
    """Both in one; `a` comes before `b`.

    Raises:
        DamagedRecord: one of them cannot be read.
    """
    both = merge(Observation.decode(a.data), Observation.decode(b.data))
    return Row(a.seq, both.frames, both.encode())
