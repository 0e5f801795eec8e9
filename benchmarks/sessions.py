"""The same load over 1, 8, 64 and 256 sessions: what a session costs besides its frames, and whether all are served.

Open loop, `realtime`. Throughput within 10% either way and CPU time a frame at most 10% over that of one session are
wanted, and no session under half its fair share. More results from many sessions than from one is as much a miss as
fewer: it means that the one session did not keep up, so that the loads were not equal. Jain's index is 1 if all
sessions get equally much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Console

from app.loadtest.metrics import jain_index
from benchmarks import canned, service, turns
from benchmarks.measure import Measured
from benchmarks.turns import Figures, Ratio

COUNTS = (1, 8, 64, 256)
VARIANTS = {str(count): f"{count} session{'s' if count > 1 else ''}" for count in COUNTS}
RATIOS = (
    *(
        Ratio(f"results a second: {count} sessions over 1", "rate", str(count), "1", at_least=0.9, at_most=1.1)
        for count in (64, 256)
    ),
    *(
        Ratio(f"CPU time a frame: {count} sessions over 1", "cpu_us", str(count), "1", at_most=1.1)
        for count in (64, 256)
    ),
    Ratio("the worst session of 256, over its fair share", "worst_share", "256", at_least=0.5),
)


@dataclass(frozen=True, slots=True)
class Plan(turns.Plan):
    seconds: float = 6.0
    warm_up_s: float = 2.0
    """At least; see `warm_up`."""
    turns: int = 3
    rate: float = 100.0
    """Frames a second, of all sessions together."""
    variants: tuple[str, ...] = tuple(VARIANTS)


BEFORE = 2.2
"""Intervals of a session before the window: its first frame and its second, which starts its flow, are not in it."""


def warm_up(plan: Plan, count: int) -> float:
    """Seconds; of 256 sessions that share 100 frames a second, 5.6."""
    return max(plan.warm_up_s, BEFORE * count / plan.rate)


def measure_turn(stand: service.Bench, plan: Plan, count: int) -> Figures:
    """One turn: a fresh service, so many sessions."""
    limits = {"MAX_SESSIONS": str(count + 8), "MAX_CONNECTIONS": str(count + 64)}
    limits |= {name: str(count + 8) for name in ("MAX_SESSIONS_PER_ADDRESS", "MAX_SESSIONS_PER_TOKEN")}
    with service.served(stand, stand.cores.tested, **limits) as running:
        # An interval of a session may be seconds long: frames of all must fall into the window.
        first, before = service.init("realtime"), warm_up(plan, count)
        found = service.paced(stand, running, first, before, plan.seconds, sessions=count, rate=plan.rate)
    results, due = found["results"], found["due"]
    measured = Measured(**{field.name: found[field.name] for field in fields(Measured)})
    # A session may have two frames in the window or three: what counts is how many of its own were answered.
    shares = [answered / asked for answered, asked in zip(results, due, strict=True) if asked]
    return {
        **turns.of(measured),
        "rate": sum(results) / plan.seconds,
        "answered": sum(results) / sum(due),
        "jain": jain_index(shares),
        "worst_share": min(shares) * sum(due) / max(1, sum(results)),
        "late_ms": found["late_ms"],
    }


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements."""
    with service.bench(canned.write, 8) as stand:
        return turns.run("sessions", plan, lambda variant: measure_turn(stand, plan, int(variant)), RATIOS, say)


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {
        "rate": "results/s",
        "answered": "of those due",
        "cpu_us": "CPU µs a frame",
        "p50_ms": "age p50 ms",
        "p99_ms": "p99 ms",
        "jain": "Jain",
        "worst_share": "worst, of a fair share",
    }
    title = f"sessions: {results['plan']['rate']:g} frames a second in all"
    turns.show(results, title, VARIANTS, columns, console)


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, {**given, "sessions": None})
