"""Memory of processes over time, and the slope of a straight line through it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import psutil

from benchmarks import turns
from benchmarks.harness import BenchmarkError
from benchmarks.turns import Figures, Ratio

WARM_UP = 0.2
"""Share of a soak in which pools fill and libraries settle."""

Looks = Sequence[tuple[float, float]]
"""Samples: a time in seconds, and the value at that time."""


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
    """The slope per second of a least-squares line through the samples."""
    seconds, amounts = np.array(looks).T
    return float(np.polyfit(seconds, amounts, 1)[0])


def slopes(steady: Sequence[Mapping[str, float]], of: Mapping[str, str]) -> list[Figures]:
    """Slopes per minute over all samples, their first half and their second half, which show whether memory levels off.

    Args:
        steady: samples after the warm-up, each with `at_s`, seconds.
        of: a slope's name -> the figure of the samples that it is computed from.

    Raises:
        BenchmarkError: there are too few samples.
    """
    half = len(steady) // 2
    if half < 2:
        raise BenchmarkError(f"{len(steady)} samples after the warm-up are too few for a slope: set a larger --seconds")
    return [
        {name: 60 * slope([(look["at_s"], look[figure]) for look in part]) for name, figure in of.items()}
        for part in (steady, steady[:half], steady[half:])
    ]


def trend(found: list[Figures]) -> dict[str, Any]:
    """The slopes over all samples, with those of the halves as their spread."""
    return {name: {**spread, "median": found[0][name]} for name, spread in turns.summary(found).items()}


def judged(ratios: Iterable[Ratio], slopes_of: Mapping[str, list[Figures]]) -> list[dict[str, Any]]:
    """Compares slopes with their targets."""
    out = []
    for ratio in ratios:
        found = trend(slopes_of[ratio.over])[ratio.figure]
        out.append({"label": ratio.label, **found, "target": ratio.target, "met": ratio.met(found["median"])})
    return out


def draw(
    axes: Any, looks: Sequence[Mapping[str, float]], titles: Mapping[str, str], line_of: str, seconds: float
) -> None:
    """Memory over `seconds`; the line by least squares of one of them."""
    minutes = [look["at_s"] / 60 for look in looks]
    for name, title in titles.items():
        axes.plot(minutes, [look[name] for look in looks], label=title)
    warm = WARM_UP * seconds
    steady = [(look["at_s"], look[line_of]) for look in looks if warm < look["at_s"] <= seconds]
    rise = slope(steady)
    middle_s, middle = (sum(values) / len(steady) for values in zip(*steady, strict=True))
    ends = steady[0][0], steady[-1][0]
    line = [middle + rise * (at - middle_s) for at in ends]
    axes.plot([at / 60 for at in ends], line, "k--", linewidth=1, label=f"{60 * rise:+.2f} MB a minute")
    axes.axvspan(0, warm / 60, color="#eef1f4", label="warm-up")
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, None))
    axes.legend()
