"""`python -m benchmarks [NAME]`: runs one benchmark, or all; tables on the terminal, everything as JSON, a chart."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from app.settings import ROOT
from benchmarks import chart, record
from benchmarks.harness import BenchmarkError

NAMES = (
    "frame_path",
    "flow",
    "postprocess",
    "triton_wire",
    "live",
    "sessions",
    "overload",
    "workers",
    "to_the_limit",
    "cpu_models",
    "fleet",
    "segments",
    "backlog",
    "summaries",
    "soak",
    "fleet_soak",
)
"""In the order in which they run: from the pieces to the whole."""
BENCHMARKS = [name for name in NAMES if find_spec(f"benchmarks.{name}") is not None]
OUTPUT = ROOT / ".state" / "bench"
ALONE = ("soak", "fleet_soak")
"""Too long to be run with all; by name only."""
BRIEF: dict[str, dict[str, Any]] = {
    "postprocess": {"turns": 2},
    "live": {"turns": 2, "seconds": 2.5},
    "sessions": {"turns": 2, "seconds": 4.0},
    "overload": {"turns": 2, "seconds": 6.0},
    "workers": {"turns": 2},
    "to_the_limit": {"turns": 2},
    "cpu_models": {
        "turns": 2,
        "seconds": 1.0,
        # Those that its ratios compare.
        "variants": (
            *(f"{runtime}-square" for runtime in ("onnxruntime-f32", "openvino-f32", "openvino-bf16", "openvino-int8")),
            "openvino-bf16-wide",
        ),
    },
    "fleet": {"turns": 2, "seconds": 2.0},
    "segments": {"turns": 2, "frames": 100},
    "backlog": {"turns": 3},
    "summaries": {"turns": 2, "seconds": 3.0},
}
"""Where all are run: together they stay under 15 minutes on two quiet cores. No benchmark has fewer than two turns."""


def main(
    name: Annotated[
        str | None, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}. Default: all but {' and '.join(ALONE)}.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Measured, of each variant and turn.")] = None,
    turns: Annotated[int | None, typer.Option(min=1, help="Times that every variant is run.")] = None,
    sessions: Annotated[int | None, typer.Option(min=1, max=64, help="Sessions at once (live, summaries).")] = None,
    variants: Annotated[str | None, typer.Option(help="Only these variants, comma-separated.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of what is written.")] = OUTPUT,
    keep: Annotated[bool, typer.Option("--record", help="Put the figures into benchmarks/results.json, too.")] = False,
) -> None:
    """Measures what README.md in this folder describes."""
    console = Console()
    console.width = max(console.width, 132)
    if name is not None and name not in BENCHMARKS:
        raise typer.BadParameter(f"{name!r} is none; there are: {', '.join(BENCHMARKS)}", param_hint="NAME")
    asked: dict[str, Any] = {"seconds": seconds, "turns": turns, "sessions": sessions}
    asked["variants"] = tuple(variants.split(",")) if variants else None
    failed, begun = [], perf_counter()
    for one in [name] if name else [one for one in BENCHMARKS if one not in ALONE]:
        since = perf_counter()
        benchmark = import_module(f"benchmarks.{one}")
        told = {key: value for key, value in asked.items() if value is not None}
        try:
            results = _measured(one, benchmark, told if name else {**BRIEF.get(one, {}), **told}, console)
        except BenchmarkError as error:
            console.print(f"{one}: {error}", style="red", markup=False)
            failed.append(one)
            continue
        _write(benchmark, results, output, console, keep=keep)
        if getattr(benchmark, "STRICT", False) and any(ratio["met"] is False for ratio in results["ratios"]):
            failed.append(one)
        console.print(f"{one}: {perf_counter() - since:,.0f} s", style="dim", highlight=False)
    if name is None:
        console.print(f"all: {(perf_counter() - begun) / 60:.1f} minutes", highlight=False)
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red")
        sys.exit(1)


def _measured(name: str, benchmark: ModuleType, asked: dict[str, Any], console: Console) -> dict[str, Any]:
    if strange := set(asked.get("variants", ())) - set(benchmark.VARIANTS):
        known = ", ".join(benchmark.VARIANTS)
        raise typer.BadParameter(f"{min(strange)!r} is none; {name} has: {known}", param_hint="--variants")
    results: dict[str, Any] = benchmark.measure(
        benchmark.plan_from(**asked), lambda line: console.print(line, style="dim", highlight=False)
    )
    benchmark.show(results, console)
    return results


def _write(benchmark: ModuleType, results: dict[str, Any], output: Path, console: Console, *, keep: bool) -> None:
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{results['benchmark']}.json"
    path.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    drawn = chart.draw(benchmark, results, path.with_suffix(".png"))
    record.merge(results, output / "results.json")
    if keep:
        record.merge(results, record.COMMITTED)
    console.print(f"everything: {path}{f'; a chart: {drawn}' if drawn else ''}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
