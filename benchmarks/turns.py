"""Variants in turns A B A B, each a fresh process: figures with their spread, ratios turn by turn, targets.

A figure of one turn is a plain number; what a benchmark measures is a flat mapping of names to such numbers.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import harness
from benchmarks.harness import Spread, spread
from benchmarks.measure import Measured
from benchmarks.noise import Noise, warn

Figures = dict[str, float]
P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    seconds: float = 0.8
    warm_up_s: float = 0.4
    turns: int = 3
    variants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure of two variants, divided turn by turn; or of one variant alone."""

    label: str
    figure: str
    over: str
    """The variant whose figure is above the line."""
    under: str | None = None
    """The variant whose figure is below the line; None for the figure of `over` itself."""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def target(self) -> str:
        """In signs; empty where there is none."""
        low = "" if self.at_least is None else f"≥ {self.at_least:g}"
        high = "" if self.at_most is None else f"≤ {self.at_most:g}"
        return " and ".join(filter(None, (low, high)))

    def met(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


def plan_from(kind: type[P], given: Mapping[str, Any]) -> P:
    """A benchmark's plan with what was asked for; None, and what the plan does not know, leave its defaults."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in given.items() if name in known and value is not None})


def of(found: Measured) -> Figures:
    """A window's figures, a frame or a call."""
    count = max(1, found.frames)
    return {
        "rate": found.rate,
        "cpu_us": found.cpu_us,
        "triton_us": found.triton_cpu_s / count * 1e6,
        "p50_ms": found.p50_ms,
        "p95_ms": found.p95_ms,
        "p99_ms": found.p99_ms,
        "faults": found.page_faults / count,
        "busy": found.cpu_s / found.seconds,
    }


def run(
    name: str,
    plan: Any,
    measure_turn: Callable[[str], Figures],
    ratios: Sequence[Ratio],
    say: Callable[[str], None],
    *,
    shown: str = "cpu_us",
) -> dict[str, Any]:
    """Runs every variant of the plan in every turn.

    Args:
        one: one turn of a variant.
        shown: the figure that is printed while the benchmark runs.
    """
    turns: dict[str, list[Figures]] = {variant: [] for variant in plan.variants}
    noise = Noise()
    for turn in range(plan.turns):
        for variant in plan.variants:
            with noise.watched():
                found = measure_turn(variant)
            turns[variant].append(found)
            say(f"turn {turn + 1}: {variant}: {shown} {found[shown]:,.1f}")
    return {
        "benchmark": name,
        "machine": harness.machine(),
        "noise": noise.told(),
        "plan": asdict(plan),
        "variants": {variant: summary(found) for variant, found in turns.items()},
        "ratios": compared(turns, ratios),
        "turns": turns,
    }


def summary(found: Sequence[Figures]) -> dict[str, Any]:
    """Every figure over the turns."""
    return {name: asdict(spread([turn[name] for turn in found])) for name in found[0]}


def compared(turns: Mapping[str, Sequence[Figures]], ratios: Sequence[Ratio]) -> list[dict[str, Any]]:
    """The ratios whose variants were run, with their targets."""
    out = []
    for ratio in ratios:
        if ratio.over in turns and (ratio.under is None or ratio.under in turns):
            values = [turn[ratio.figure] for turn in turns[ratio.over]]
            if ratio.under is not None:
                values = [a / b[ratio.figure] for a, b in zip(values, turns[ratio.under], strict=True)]
            met = ratio.met(statistics.median(values)) if ratio.target else None
            out.append({"label": ratio.label, **asdict(spread(values)), "target": ratio.target, "met": met})
    return out


def judged(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ratios of a run that have a target."""
    return [ratio for ratio in results["ratios"] if ratio["met"] is not None]


def missed(results: Mapping[str, Any]) -> list[str]:
    """The targets that a run missed, in words."""
    return [
        f"{ratio['label']}: {ratio['median']:.3g}, wanted {ratio['target']}"
        for ratio in judged(results)
        if not ratio["met"]
    ]


def show(
    results: Mapping[str, Any],
    title: str,
    names: Mapping[str, str],
    columns: Mapping[str, str],
    console: Console,
    caption: str | None = None,
    *,
    spread_of: str | None = None,
) -> None:
    """The figures of every variant, then the ratios.

    Args:
        names: of the variants, in words.
        columns: figures to be shown, and their headings.
        spread_of: what the spread is over; turns by default.
    """
    spread_of = spread_of or f"{results['plan']['turns']} turns"
    table = Table(title=f"{title}: median (least–most) of {spread_of}", box=SIMPLE, caption=caption)
    table.add_column("", no_wrap=True)
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for variant, figures in results["variants"].items():
        cells = [str(Spread(**figures[name])) if name in figures else "–" for name in columns]
        table.add_row(names[variant], *cells)
    console.print(table)
    show_ratios(results["ratios"], console)
    warn(results["noise"], console)


def show_ratios(ratios: Sequence[Mapping[str, Any]], console: Console) -> None:
    """What was compared, and whether it is what it should be."""
    if not ratios:
        return
    table = Table(title="turn by turn: median (least–most)", box=SIMPLE)
    table.add_column("", no_wrap=True)
    table.add_column("ratio", justify="right")
    table.add_column("target", justify="right")
    for ratio in ratios:
        value = str(Spread(ratio["median"], ratio["least"], ratio["most"]))
        verdict = "" if ratio["met"] is None else " met" if ratio["met"] else " [yellow]missed[/]"
        table.add_row(ratio["label"], value, ratio["target"] + verdict)
    console.print(table)
