"""One webcam alone against one of eight: the cost of a frame when no other session shares the wake-ups.

Open loop, `realtime`, with tracking, canned models. A lone session wakes every thread and process for one frame; of
eight that come together each pays a part of it. Its CPU time a frame should be at most 1.5 times that of one of eight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import orjson
from rich.console import Console

from benchmarks import canned, service, turns
from benchmarks.measure import Measured
from benchmarks.turns import Figures, Ratio

LOADS = {"lone15": (1, 15.0), "lone30": (1, 30.0), "eight": (8, 240.0)}
"""Sessions, and frames a second of all together."""
VARIANTS = {
    "lone15": "one session, 15 frames a second",
    "lone30": "one session, 30 frames a second",
    "eight": "eight sessions, 30 frames a second each",
}
RATIOS = tuple(
    Ratio(
        f"CPU time a frame: one session at {LOADS[name][1]:g} frames a second over one of eight",
        "cpu_us",
        name,
        "eight",
        at_most=1.5,
    )
    for name in ("lone30", "lone15")
)
FIRST = orjson.dumps({"type": "init", "mode": "realtime", "stages": {"ocr": False}}).decode()


@dataclass(frozen=True, slots=True)
class Plan(turns.Plan):
    seconds: float = 6.0
    warm_up_s: float = 2.0
    turns: int = 3
    variants: tuple[str, ...] = tuple(VARIANTS)


def measure_turn(stand: service.Bench, plan: Plan, variant: str) -> Figures:
    """Measures one turn on a fresh service."""
    count, rate = LOADS[variant]
    with service.served(stand, stand.cores.tested) as running:
        found = service.paced(stand, running, FIRST, plan.warm_up_s, plan.seconds, sessions=count, rate=rate)
    measured = Measured(**{field.name: found[field.name] for field in fields(Measured)})
    return {**turns.of(measured), "answered": sum(found["results"]) / sum(found["due"]), "late_ms": found["late_ms"]}


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements."""
    with service.bench(canned.write, 8) as stand:
        return turns.run("lone", plan, lambda variant: measure_turn(stand, plan, variant), RATIOS, say)


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {
        "rate": "results/s",
        "answered": "of those due",
        "cpu_us": "CPU µs a frame",
        "triton_us": "Triton's µs",
        "p50_ms": "age p50 ms",
        "p99_ms": "p99 ms",
    }
    turns.show(results, "lone: one webcam alone, and one of eight", VARIANTS, columns, console)


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, {**given, "sessions": None})
