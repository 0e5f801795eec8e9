"""From the turns of `live` to its figures, ratios and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import turns
from benchmarks.harness import Spread
from benchmarks.measure import Measured
from benchmarks.noise import warn
from benchmarks.turns import Figures, Ratio


def _ratios(variant: str, what: str, *, judged: bool = False) -> Iterator[Ratio]:
    """The ratios to the naive service and to the bare loops. Targets apply to the CPU time."""
    of = "of the bare loop, a call a frame"
    for words, loop, low in ((f"{what}: × a naive service", "naive", 40.0), (f"{what}: {of}", "floor", 0.7)):
        yield Ratio(f"{words}, by CPU", "cpu_us_per_frame", loop, variant, at_least=low if judged else None)
        if judged:
            yield Ratio(f"{words}, by rate", "frames_per_s", variant, loop)
    yield Ratio(f"{what}: of the bare loop, eight frames a call, by CPU", "cpu_us_per_frame", "floor-together", variant)


RATIOS = (
    *_ratios("ours", "the whole service, doing the naive one's work", judged=True),
    *_ratios("tracking", "… with tracking"),
    *_ratios("grpc", "… and tensors over gRPC"),
    Ratio("the bare loop, a call a frame: × a naive service, by CPU", "cpu_us_per_frame", "naive", "floor"),
)


def figures(turn: Measured) -> Figures:
    """The figures of one turn."""
    return {
        "frames_per_s": turn.rate,
        "cpu_us_per_frame": turn.cpu_us,
        "p50_ms": turn.p50_ms,
        "p99_ms": turn.p99_ms,
        "core_busy": turn.cpu_s / turn.seconds,
        "triton_busy": turn.triton_cpu_s / turn.seconds,
        "load_busy": turn.load_cpu_s / turn.seconds,
        "others_busy": others_s(turn) / turn.seconds,
        "stolen": turn.stolen_s / turn.seconds,
        "page_faults_per_frame": turn.page_faults / max(1, turn.frames),
    }


def summary(measured: Sequence[Measured]) -> dict[str, Any]:
    """Every figure over the turns."""
    return turns.summary([figures(turn) for turn in measured])


def others_s(turn: Measured) -> float:
    """CPU seconds of other programs on the machine. Clocks count in ticks, so a value slightly below 0 means none."""
    return max(0.0, turn.machine_busy_s - turn.cpu_s - turn.triton_cpu_s - turn.load_cpu_s)


def compared(measured: Mapping[str, Sequence[Measured]]) -> list[dict[str, Any]]:
    """The ratios of what was run, turn by turn, with their targets."""
    return turns.compared({name: [figures(turn) for turn in found] for name, found in measured.items()}, RATIOS)


def bottleneck(summary: dict[str, Any]) -> str:
    """The bottleneck: which of the two cores was full."""
    core, far = (summary["core_busy"]["median"], summary["triton_busy"]["median"] + summary["load_busy"]["median"])
    return "its core" if core > 0.9 else "Triton's core" if far > 0.9 else "neither"


def show(results: dict[str, Any], titles: Mapping[str, str], console: Console) -> None:
    """Prints the tables."""
    plan = results["plan"]
    title = f"live: {plan['sessions']} sessions, 640x480, {plan['mean_jpeg_bytes'] / 1000:.0f} KB a JPEG"
    rates = Table(title=title, box=SIMPLE, caption="busy: shares of one core, by who used it")
    columns = ("frames/s", "CPU µs a frame", "p50 / p99 ms", "service", "Triton", "load", "others", "full")
    rates.add_column("", no_wrap=True)
    for column in columns:
        rates.add_column(column, justify="right")
    for name, variant in results["variants"].items():
        latency = f"{variant['p50_ms']['median']:,.1f} / {variant['p99_ms']['median']:,.1f}"
        shares = [f"{variant[part]['median']:.0%}" for part in ("core_busy", "triton_busy", "load_busy", "others_busy")]
        rate, cpu = (str(Spread(**variant[figure])) for figure in ("frames_per_s", "cpu_us_per_frame"))
        rates.add_row(titles[name], rate, cpu, latency, *shares, bottleneck(variant))
    console.print(rates)
    turns.show_ratios(results["ratios"], console)
    warn(results["noise"], console)
