"""`--workers 2` against one: the same load on as many cores of the service's own as it has workers.

Closed loop, enough sessions that the kernel spreads them over both. Where the machine has no core left for Triton and
the load beside two workers, they share: the rate then says what the machine gives, and CPU time a frame what workers
would.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Console

from benchmarks import canned, service, turns
from benchmarks.measure import Measured
from benchmarks.turns import Figures, Ratio

SESSIONS = 24
VARIANTS = {"1": "one worker, one core", "2": "two workers, two cores"}
RATIOS = (
    Ratio("two workers over one, each with a core of its own", "per_cores", "2", "1", at_least=1.8),
    Ratio("two workers over one, by rate", "rate", "2", "1"),
)


@dataclass(frozen=True, slots=True)
class Plan(turns.Plan):
    seconds: float = 3.0
    warm_up_s: float = 1.5
    turns: int = 2
    variants: tuple[str, ...] = tuple(VARIANTS)


def one(stand: service.Bench, plan: Plan, workers: int) -> Figures:
    """One turn."""
    mine = sorted(os.sched_getaffinity(0))
    on = frozenset(mine[:workers])
    limits = {"MAX_SESSIONS": str(SESSIONS), "MAX_SESSIONS_PER_ADDRESS": str(SESSIONS), "WORKERS": str(workers)}
    with service.served(stand, on, **limits) as running:
        first = service.init("lossless")
        found = service.pressed(stand, running, first, plan.warm_up_s, plan.seconds)
    measured = Measured(**{field.name: found[field.name] for field in fields(Measured)})
    # What the workers would give with their cores full: their CPU time a frame is all that they need.
    return {**turns.of(measured), "per_cores": workers / measured.cpu_us * 1e6}


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan; everything that was measured."""
    with service.bench(canned.write, SESSIONS) as stand:
        return turns.run(
            "workers", plan, lambda variant: one(stand, plan, int(variant)), RATIOS, say, beside=stand.triton_pids
        )


def show(results: dict[str, Any], console: Console) -> None:
    """The tables."""
    columns = {
        "rate": "frames/s",
        "cpu_us": "CPU µs a frame",
        "per_cores": "frames/s if its cores were full",
        "busy": "cores busy",
        "p99_ms": "p99 ms",
    }
    shared = results["machine"]["cores"] < 4
    caption = "Triton and the load share the workers' cores here: go by CPU time" if shared else None
    turns.show(results, f"workers: {SESSIONS} sessions", VARIANTS, columns, console, caption)


def plan_from(**given: Any) -> Plan:
    """The plan with what was asked for; None leaves a default."""
    return turns.plan_from(Plan, given)
