"""What summaries cost the frames: the same load with summaries off, by rule, and with models that hang or answer.

The service and the load are those of `live`; so is the way of measuring. A frame must not notice who writes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import harness, live, photographs
from benchmarks.harness import Spread, spread
from benchmarks.live import Stand
from benchmarks.measure import Measured
from benchmarks.model import serving

SUMMARISED: dict[str, Any] = {"stages": {"ocr": False, "summary": True}}
OFTEN = {"SUMMARY_MIN_INTERVAL_S": "1", "SUMMARY_MAX_INTERVAL_S": "2", "LLM_TIMEOUT_S": "600"}
"""Every session has something to tell within the warm-up, and goes on telling."""
TARGET = 1.05
"""p95 with a model that hangs, over p95 with summaries off."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    seconds: float = 4.0
    warm_up_s: float = 3.0
    turns: int = 5
    sessions: int = 8
    variants: tuple[str, ...] = ("off", "digest", "hanging", "answering")


@dataclass(frozen=True, slots=True)
class Variant:
    title: str
    run: Callable[[Stand], dict[str, Any]]


def _with_model(stand: Stand, answer_s: float | None) -> dict[str, Any]:
    with serving(answer_s) as model:
        settings = {"LLM_MODEL": "openai:bench", "LLM_BASE_URL": model.url, **OFTEN}
        found = live.ours(stand, SUMMARISED, **settings)
        if not model.requests:
            raise harness.BenchmarkError("the service asked the model for nothing: there is nothing to compare")
    return found


VARIANTS = {
    "off": Variant("summaries off", lambda stand: live.ours(stand, live.DEFAULTS)),
    "digest": Variant("by rule, no model", lambda stand: live.ours(stand, SUMMARISED, **OFTEN)),
    "hanging": Variant("a model that hangs", lambda stand: _with_model(stand, None)),
    "answering": Variant("a model that answers in 0.5 s", lambda stand: _with_model(stand, 0.5)),
}


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan; everything that was measured.

    Raises:
        BenchmarkError: a process failed, or nothing was summarised.
    """
    places = harness.cores()
    turns: dict[str, list[Measured]] = {name: [] for name in plan.variants}
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        folder = Path(name)
        photographs.write(folder / "frames", plan.sessions)
        models = live.repository(folder / "repository")
        with harness.triton(models, folder / "state", places.triton) as (url, pids):
            stand = Stand(plan, places, folder, url, pids)
            for turn in range(plan.turns):
                for variant in plan.variants:
                    found = VARIANTS[variant].run(stand)
                    found.pop("sample")
                    one = Measured(**found)
                    turns[variant].append(one)
                    say(f"turn {turn + 1}: {variant}: p95 {one.p95_ms:,.1f} ms, {one.rate:,.1f} frames/s")
    return {
        "benchmark": "summaries",
        "machine": harness.machine(),
        "plan": asdict(plan),
        "target": {"hanging_over_off_p95": TARGET},
        "variants": {name: figures(measured) for name, measured in turns.items()},
        "over_off": over_off(turns),
        "turns": {name: [asdict(one) for one in measured] for name, measured in turns.items()},
    }


FIGURES: dict[str, Callable[[Measured], float]] = {
    "p50_ms": lambda one: one.p50_ms,
    "p95_ms": lambda one: one.p95_ms,
    "p99_ms": lambda one: one.p99_ms,
    "frames_per_s": lambda one: one.rate,
    "cpu_us_per_frame": lambda one: one.cpu_us,
}


def figures(measured: list[Measured]) -> dict[str, Any]:
    """Every figure over the turns."""
    return {name: asdict(spread([figure(one) for one in measured])) for name, figure in FIGURES.items()}


def over_off(turns: dict[str, list[Measured]]) -> dict[str, Any]:
    """Every variant's figures over those of `off`, turn by turn; empty without `off`."""
    if "off" not in turns:
        return {}
    return {
        name: {
            label: asdict(spread([figure(a) / figure(b) for a, b in zip(measured, turns["off"], strict=True)]))
            for label, figure in FIGURES.items()
        }
        for name, measured in turns.items()
        if name != "off"
    }


def show(results: dict[str, Any], console: Console) -> None:
    """The tables."""
    _table(console, "summaries", results["variants"], ("p50 ms", "p95 ms", "p99 ms", "frames/s", "CPU µs a frame"))
    if results["over_off"]:
        caption = f"p95 with a model that hangs: at most {TARGET:g} wanted"
        columns = ("× p50", "× p95", "× p99", "× frames/s", "× CPU")
        _table(console, "over summaries off, turn by turn: median (least–most)", results["over_off"], columns, caption)


def _table(
    console: Console, title: str, rows: dict[str, Any], columns: tuple[str, ...], caption: str | None = None
) -> None:
    table = Table(title=title, box=SIMPLE, caption=caption)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(VARIANTS[name].title, *(str(Spread(**row[figure])) for figure in FIGURES))
    console.print(table)


def plan_from(**given: Any) -> Plan:
    """The plan with what was asked for; None leaves a default."""
    known = {field.name for field in fields(Plan)}
    return Plan(**{name: value for name, value in given.items() if name in known and value is not None})
