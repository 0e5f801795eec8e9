"""The cost of a session's backlog: the time of an `offer`, and the event loop's stalls while it spills.

One event loop offers observations in small groups, with turns of the loop in between, as many sessions would; a
probe on the same loop is due every millisecond and records its delays. Then all observations are taken back. Every
variant runs in a fresh process on all cores, in turns.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from benchmarks import harness, turns
from benchmarks.turns import Figures, Ratio

VARIANTS = {"memory": "spilling off", "spill": "spilling"}
RATIOS = (
    Ratio("a session's backlog on disk: offering an observation, µs", "offer_p50_us", "spill", at_most=20),
    Ratio("… the event loop's longest stall meanwhile, ms", "lag_max_ms", "spill", at_most=5),
    Ratio("… that stall over the one with all in memory", "lag_max_ms", "spill", "memory"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    observations: int = 10_000
    turns: int = 5
    variants: tuple[str, ...] = tuple(VARIANTS)


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements.

    Raises:
        BenchmarkError: a process failed, or did not return the observations that it was offered.
    """
    everywhere = frozenset(os.sched_getaffinity(0))

    def measure_turn(variant: str) -> Figures:
        arguments = ["benchmarks.backlog_run", "--variant", variant, "--observations", str(plan.observations)]
        return harness.answer(arguments, everywhere, timeout_s=120)

    return turns.run("backlog", plan, measure_turn, RATIOS, say, shown="lag_max_ms")


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {
        "offer_p50_us": "offer p50 µs",
        "offer_p99_us": "p99",
        "lag_p99_ms": "lag p99 ms",
        "lag_max_ms": "longest ms",
        "wall_lag_max_ms": "wall ms",
        "take_lag_max_ms": "taking ms",
        "spilled": "spilled",
        "merged": "merged",
    }
    title = f"backlog: {results['plan']['observations']:,} observations"
    caption = "lag: how late a probe on the event loop ran, without the time that it waited for a core; wall: with"
    turns.show(results, title, VARIANTS, columns, console, caption)


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, given)
