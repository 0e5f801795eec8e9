"""What else the machine did meanwhile: the CPU time of others, and what the hypervisor took away."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from rich.console import Console

from benchmarks.measure import cpu_s, machine_s

QUIET = 0.1
"""Of a core, used by others or stolen: more, and times are not to be trusted."""


class Noise:
    """Looked at while each variant runs; processes that it starts and waits for are its own."""

    def __init__(self, beside: Sequence[int] = ()) -> None:
        """`beside`: long-lived processes that take part."""
        self._beside = beside
        self._others: list[float] = []
        self._stolen: list[float] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """One variant in one turn."""
        before = self._clocks()
        yield
        seconds, busy, stolen, own = (b - a for a, b in zip(before, self._clocks(), strict=True))
        self._others.append(max(0.0, busy - own) / seconds)
        self._stolen.append(stolen / seconds)

    def told(self) -> dict[str, float]:
        """The most in any turn and the median, as shares of one core."""
        others, stolen = sorted(self._others), sorted(self._stolen)
        return {
            "others": round(others[len(others) // 2], 3),
            "others_most": round(others[-1], 3),
            "stolen": round(stolen[len(stolen) // 2], 3),
            "stolen_most": round(stolen[-1], 3),
            "load_average": round(os.getloadavg()[0], 2),
        }

    def _clocks(self) -> tuple[float, float, float, float]:
        own = 0.0
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            used = resource.getrusage(who)
            own += used.ru_utime + used.ru_stime
        busy, stolen = machine_s()
        return perf_counter(), busy, stolen, own + sum(map(cpu_s, self._beside))


def warn(noise: Mapping[str, Any], console: Console) -> None:
    """Says so when the machine was not quiet."""
    most = noise["others_most"] + noise["stolen_most"]
    if most > QUIET:
        console.print(f"others used up to {most:.0%} of a core: trust CPU time and ratios, not rates", style="yellow")
