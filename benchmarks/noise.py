"""CPU time that other programs and the hypervisor took during a benchmark."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import psutil
from rich.console import Console

from benchmarks.measure import lifetime_s, machine_s

QUIET = 0.1
"""Share of a core that others may use or the hypervisor may take. With more, times cannot be trusted."""


class Noise:
    """Measures other programs' CPU time while variants run. This process and its descendants do not count as others."""

    def __init__(self) -> None:
        self._others: list[float] = []
        self._stolen: list[float] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Measures while one variant runs in one turn."""
        before = self._clocks()
        yield
        seconds, busy, stolen, own = (b - a for a, b in zip(before, self._clocks(), strict=True))
        self._others.append(max(0.0, busy - own) / seconds)
        self._stolen.append(stolen / seconds)

    def told(self) -> dict[str, float]:
        """The maximum over the turns and the median, as shares of one core."""
        others, stolen = sorted(self._others), sorted(self._stolen)
        return {
            "others": round(others[len(others) // 2], 3),
            "others_most": round(others[-1], 3),
            "stolen": round(stolen[len(stolen) // 2], 3),
            "stolen_most": round(stolen[-1], 3),
            "load_average": round(os.getloadavg()[0], 2),
        }

    def _clocks(self) -> tuple[float, float, float, float]:
        """Now; CPU seconds of the machine, those stolen, and those of our own processes, including ended ones."""
        own = 0.0
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            used = resource.getrusage(who)
            own += used.ru_utime + used.ru_stime
        own += sum(lifetime_s(process.pid) for process in psutil.Process().children(recursive=True))
        return perf_counter(), *machine_s(), own


def others(noise: Mapping[str, Any]) -> str:
    """A sentence on what other programs took; empty if the machine was quiet in every turn."""
    most = noise["others_most"] + noise["stolen_most"]
    if most <= QUIET:
        return ""
    return f"other programs and the hypervisor took up to {most:.0%} of a core, want {QUIET:.0%} or less"


def warn(noise: Mapping[str, Any], console: Console) -> None:
    """Prints a warning if the machine was not quiet."""
    if text := others(noise):
        console.print(f"{text}: trust CPU time and ratios, not rates", style="yellow", highlight=False)
