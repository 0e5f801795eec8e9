"""Twice as many frames as can be answered: the newest wins, against a queue that keeps them all.

Both are the same service: `realtime`, where a new frame takes the place of the one that waits, and `lossless`, where
frames wait in the socket in the order they came (first in, first out). The model takes 20 ms a frame, one at a time,
so that it is the limit on every machine. First the capacity is measured, closed loop; then twice that comes in, open
loop. Ages are given in rounds: a round is the time that a session waits for its answer at capacity, the median of four
that share the model, a frame in flight each. It is about four times what the model takes for one frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import canned, service, turns
from benchmarks.measure import Measured
from benchmarks.turns import Figures, Ratio

SESSIONS = 4
MODEL_S = 0.02
PARTS = 6
"""Parts of the window. The p99 ages of the first and the last show whether ages grow."""
VARIANTS = {"newest": "newest wins (`realtime`)", "fifo": "first in, first out (`lossless`)"}
RATIOS = (
    # The design says "service times"; a model that takes one frame at a time serves four sessions in a round.
    Ratio(
        "overload: p99 age over a session's round at capacity, four sessions; newest wins",
        "p99_services",
        "newest",
        at_most=4,
    ),
    Ratio("… over the time of one frame at capacity", "p99_frames", "newest"),
    Ratio("overload: p99 age at the end over the beginning, newest wins", "growth", "newest", at_most=1.5),
    Ratio("overload: the same, first in, first out", "growth", "fifo"),
)


@dataclass(frozen=True, slots=True)
class Plan(turns.Plan):
    seconds: float = 8.0
    warm_up_s: float = 1.0
    turns: int = 3
    variants: tuple[str, ...] = tuple(VARIANTS)


def repository(folder: Path) -> Path:
    """Models that take MODEL_S a frame, one frame at a time."""
    return canned.write(folder, frame_s=MODEL_S)


def capacity(stand: service.Bench) -> Figures:
    """Frames a second, and a session's round in milliseconds (`service_ms`): closed loop, one frame in flight each."""
    with service.served(stand, stand.cores.tested) as running:
        found = service.pressed(stand, running, service.init("lossless"), 1.0, 2.0, credits=1)
    return {"rate": found["frames"] / found["seconds"], "service_ms": found["p50_ms"]}


def measure_turn(stand: service.Bench, plan: Plan, variant: str, able: Figures) -> tuple[Figures, list[list[float]]]:
    """Measures one turn: its figures, and for each frame its due time (seconds) and its result's age (milliseconds)."""
    mode = "realtime" if variant == "newest" else "lossless"
    with service.served(stand, stand.cores.tested) as running:
        options = {"sessions": SESSIONS, "rate": 2 * able["rate"], "rest": 1.0}
        found = service.paced(stand, running, service.init(mode), plan.warm_up_s, plan.seconds, **options)
    measured = Measured(**{field.name: found[field.name] for field in fields(Measured)})
    p99 = over_time(found["ages"], plan.seconds)
    figures = {
        **turns.of(measured),
        "p99_services": measured.p99_ms / able["service_ms"],
        "p99_frames": measured.p99_ms * able["rate"] / 1000,
        "p99_first_ms": p99[0],
        "p99_last_ms": p99[-1],
        "growth": p99[-1] / p99[0],
        "late_ms": found["late_ms"],
    }
    return figures, found["ages"]


def over_time(ages: Sequence[Sequence[float]], seconds: float) -> list[float]:
    """The p99 age of each part of the window, by when a result came; parts without one are left out."""
    parts: list[list[float]] = [[] for _ in range(PARTS)]
    for due, age_ms in ages:
        part = int((due + age_ms / 1000) / seconds * PARTS)
        if part < PARTS:
            parts[part].append(age_ms)
    return [sorted(part)[math.ceil(0.99 * len(part)) - 1] for part in parts if part]


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements."""
    ages: dict[str, list[list[float]]] = {}
    with service.bench(repository, SESSIONS) as stand:
        able = capacity(stand)
        say(f"capacity: {able['rate']:,.1f} frames/s, {able['service_ms']:,.1f} ms a frame of a session")

        def turn(variant: str) -> Figures:
            figures, ages[variant] = measure_turn(stand, plan, variant, able)
            return figures

        found = turns.run("overload", plan, turn, RATIOS, say, shown="p99_ms")
    return {**found, "capacity": able, "samples": {"ages": ages}}


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    able = results["capacity"]
    columns = {
        "rate": "results/s",
        "p50_ms": "age p50 ms",
        "p99_ms": "p99 ms",
        "p99_services": "p99, rounds",
        "p99_first_ms": "p99 at the beginning",
        "p99_last_ms": "at the end",
        "cpu_us": "CPU µs a result",
    }
    title = f"overload: {2 * able['rate']:,.0f} frames a second, twice the capacity"
    caption = f"a round: {able['service_ms']:,.1f} ms, what a session of {SESSIONS} waits for an answer at capacity"
    turns.show(results, title, VARIANTS, columns, console, caption)


def draw(results: dict[str, Any], axes: Any) -> None:
    """The ages over time."""
    for variant, ages in results["samples"]["ages"].items():
        came = sorted((due + age / 1000, age) for due, age in ages)
        axes.plot([at for at, _ in came], [age for _, age in came], ".", markersize=2, label=VARIANTS[variant])
    limit = 4 * results["capacity"]["service_ms"]
    axes.axhline(limit, linestyle="--", linewidth=1, color="grey", label="four rounds")
    axes.set(xlabel="seconds", ylabel="age of a result, ms", yscale="log")
    axes.legend()


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, given)
