"""Memory of processes over time, and the slope of a straight line through it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import psutil

WARM_UP = 0.2
"""Share of a soak in which pools fill and libraries settle."""

Looks = Sequence[tuple[float, float]]
"""When, in seconds, and how much."""


def resident(pids: Iterable[int]) -> tuple[int, int]:
    """Bytes resident in these processes, and of them those that are a process's own; one that is gone has none.

    Memory shared with Triton is bounded by its budget, and how much of it, and of files, counts as resident is up to
    the kernel: a process's own is the sturdier figure.
    """
    whole = own = 0
    for pid in pids:
        try:
            memory = psutil.Process(pid).memory_info()
        except psutil.NoSuchProcess:
            continue
        whole += memory.rss
        own += memory.rss - memory.shared
    return whole, own


def slope(looks: Looks) -> float:
    """A second, of a straight line by least squares."""
    seconds, amounts = np.array(looks).T
    return float(np.polyfit(seconds, amounts, 1)[0])
