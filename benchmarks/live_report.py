"""From the turns of `live` to its figures, ratios and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Spread, spread
from benchmarks.measure import Measured

QUIET = 0.1
"""Of a core, used by others: more, and the rates of one turn cannot be compared."""


def summary(measured: Sequence[Measured]) -> dict[str, Any]:
    """Every figure over the turns."""
    figures: dict[str, Callable[[Measured], float]] = {
        "frames_per_s": lambda one: one.rate,
        "cpu_us_per_frame": lambda one: one.cpu_us,
        "p50_ms": lambda one: one.p50_ms,
        "p99_ms": lambda one: one.p99_ms,
        "core_busy": lambda one: one.cpu_s / one.seconds,
        "triton_busy": lambda one: one.triton_cpu_s / one.seconds,
        "load_busy": lambda one: one.load_cpu_s / one.seconds,
        "others_busy": lambda one: others_s(one) / one.seconds,
        "stolen": lambda one: one.stolen_s / one.seconds,
        "page_faults_per_frame": lambda one: one.page_faults / max(1, one.frames),
    }
    return {name: asdict(spread([figure(one) for one in measured])) for name, figure in figures.items()}


def others_s(one: Measured) -> float:
    """CPU time of whatever else ran on the machine. Its clocks count in ticks: a little under 0 is none."""
    return max(0.0, one.machine_busy_s - one.cpu_s - one.triton_cpu_s - one.load_cpu_s)


def ratios(turns: dict[str, list[Measured]]) -> dict[str, Any]:
    """Of every variant of ours: how many times the naive service, and what share of the floor. Turn by turn."""
    out: dict[str, Any] = {}
    for name in ("ours", "tracking", "grpc"):
        for other, label in (("naive", "over_naive"), ("floor", "of_floor")):
            if name in turns and other in turns:
                pairs = list(zip(turns[name], turns[other], strict=True))
                out.setdefault(name, {})[label] = {
                    "by_rate": asdict(spread([a.rate / b.rate for a, b in pairs])),
                    "by_cpu": asdict(spread([b.cpu_us / a.cpu_us for a, b in pairs])),
                }
    return out


def bottleneck(summary: dict[str, Any]) -> str:
    """Which of the two cores was full."""
    core, far = (summary["core_busy"]["median"], summary["triton_busy"]["median"] + summary["load_busy"]["median"])
    return "its core" if core > 0.9 else "Triton's core" if far > 0.9 else "neither"


def show(results: dict[str, Any], titles: Mapping[str, str], console: Console) -> None:
    """The tables."""
    plan = results["plan"]
    title = f"live: {plan['sessions']} sessions, 640x480, {plan['mean_jpeg_bytes'] / 1000:.0f} KB a JPEG"
    rates = Table(title=title, box=SIMPLE, caption="busy: shares of one core, by who used it")
    columns = ("frames/s", "CPU µs a frame", "p50 / p99 ms", "service", "Triton", "load", "others", "full")
    rates.add_column("", no_wrap=True)
    for column in columns:
        rates.add_column(column, justify="right")
    for name, one in results["variants"].items():
        latency = f"{one['p50_ms']['median']:,.1f} / {one['p99_ms']['median']:,.1f}"
        shares = [f"{one[part]['median']:.0%}" for part in ("core_busy", "triton_busy", "load_busy", "others_busy")]
        rate, cpu = (str(Spread(**one[figure])) for figure in ("frames_per_s", "cpu_us_per_frame"))
        rates.add_row(titles[name], rate, cpu, latency, *shares, bottleneck(one))
    console.print(rates)
    compared = Table(title="turn by turn: median (least–most)", box=SIMPLE)
    for column in ("", "× naive, by rate", "× naive, by CPU", "of floor, by rate", "of floor, by CPU"):
        compared.add_column(column, justify="right" if column else "left")
    for name, one in results["ratios"].items():
        cells = [
            str(Spread(**one[label][by])) if label in one else "–"
            for label in ("over_naive", "of_floor")
            for by in ("by_rate", "by_cpu")
        ]
        compared.add_row(titles[name], *cells)
    console.print(compared)
    noise = max(one["others_busy"]["most"] + one["stolen"]["most"] for one in results["variants"].values())
    if noise > QUIET:
        console.print(
            f"others used up to {noise:.0%} of a core: rates are not to be trusted, go by CPU", style="yellow"
        )
