"""What a session pays for its backlog: the time of an `offer`, and how long the event loop stalls while it spills.

One event loop offers observations in small groups, with turns of the loop in between, as many sessions would; a
probe on the same loop wants to run every millisecond, and notes how late it was. Then everything is taken back. Every
variant is a fresh process on all cores, in turns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import harness
from benchmarks.backlog_run import Measured
from benchmarks.harness import Spread, spread

VARIANTS = {"memory": "spilling off", "spill": "spilling"}


@dataclass(frozen=True, slots=True)
class Plan:
    observations: int = 10_000
    turns: int = 5
    variants: tuple[str, ...] = tuple(VARIANTS)


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan; everything that was measured.

    Raises:
        BenchmarkError: a process failed, or did not give back what it was offered.
    """
    turns: dict[str, list[Measured]] = {name: [] for name in plan.variants}
    everywhere = frozenset(os.sched_getaffinity(0))
    for turn in range(plan.turns):
        for variant in plan.variants:
            arguments = ["benchmarks.backlog_run", "--variant", variant, "--observations", str(plan.observations)]
            one = Measured(**harness.answer(arguments, everywhere, timeout_s=120))
            turns[variant].append(one)
            say(f"turn {turn + 1}: {variant}: offer {one.offer_p50_us:.1f} µs, longest stall {one.lag_max_ms:.2f} ms")
    return {
        "benchmark": "backlog",
        "machine": harness.machine(),
        "plan": asdict(plan),
        "variants": {name: _summary(measured) for name, measured in turns.items()},
        "turns": {name: [asdict(one) for one in measured] for name, measured in turns.items()},
    }


def _summary(measured: Sequence[Measured]) -> dict[str, Any]:
    names = [field.name for field in fields(Measured)]
    return {name: asdict(spread([getattr(one, name) for one in measured])) for name in names}


def show(results: dict[str, Any], console: Console) -> None:
    """The table."""
    plan = results["plan"]
    table = Table(
        title=f"backlog: {plan['observations']:,} observations, median (least–most) of {plan['turns']} turns",
        caption="lag: how late a probe on the event loop ran, without the time that it waited for a core; wall: with",
        box=SIMPLE,
    )
    table.add_column("", no_wrap=True)
    columns = {
        "offer_p50_us": "offer p50 µs",
        "offer_p99_us": "p99",
        "lag_p99_ms": "lag p99 ms",
        "lag_max_ms": "longest ms",
        "wall_lag_max_ms": "wall ms",
        "take_lag_max_ms": "taking ms",
    }
    for title in (*columns.values(), "spilled", "merged"):
        table.add_column(title, justify="right")
    for name, figures in results["variants"].items():
        cells = [str(Spread(**figures[column])) for column in columns]
        table.add_row(VARIANTS[name], *cells, *(f"{figures[count]['median']:,.0f}" for count in ("spilled", "merged")))
    console.print(table)


def plan_from(**given: Any) -> Plan:
    """The plan with what was asked for; None leaves a default."""
    known = {field.name for field in fields(Plan)}
    return Plan(**{name: value for name, value in given.items() if name in known and value is not None})
