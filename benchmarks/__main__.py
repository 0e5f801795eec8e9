"""`python -m benchmarks [NAME]`: runs one benchmark or all; prints tables, writes JSON and a chart."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from app.settings import ROOT
from benchmarks import chart, plans, record, turns
from benchmarks.harness import BenchmarkError
from benchmarks.plans import ALONE, BENCHMARKS, TOGETHER

OUTPUT = ROOT / ".state" / "bench"


def main(
    name: Annotated[
        str | None, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}. Default: all but {' and '.join(ALONE)}.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Measured, of each variant and turn.")] = None,
    turns: Annotated[int | None, typer.Option(min=1, help="Times that every variant is run.")] = None,
    sessions: Annotated[int | None, typer.Option(min=1, max=64, help="Sessions at once (live, summaries).")] = None,
    variants: Annotated[str | None, typer.Option(help="Only these variants, comma-separated.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of what is written.")] = OUTPUT,
    strict: Annotated[
        bool, typer.Option("--strict", help="A missed target ends it with 1; of the soaks always.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--record", help="Whole runs; put the figures into benchmarks/results.json, too.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Record even short or partial runs, and those of a noisy machine.")
    ] = False,
) -> None:
    """Runs the benchmarks that README.md in this folder describes."""
    console = Console()
    console.width = max(console.width, 132)
    if name is not None and name not in BENCHMARKS:
        raise typer.BadParameter(f"{name!r} is no benchmark; there are: {', '.join(BENCHMARKS)}", param_hint="NAME")
    told: dict[str, Any] = {"seconds": seconds, "turns": turns, "sessions": sessions}
    told["variants"] = tuple(variants.split(",")) if variants else None
    told = {key: value for key, value in told.items() if value is not None}
    chosen = [name] if name else TOGETHER
    given = {
        benchmark_name: plans.given(benchmark_name, told, brief=name is None and not keep) for benchmark_name in chosen
    }
    for benchmark_name in chosen:
        _check(benchmark_name, given[benchmark_name], recorded=keep and not force)
    failed: list[str] = []
    found: list[dict[str, Any]] = []
    begun = perf_counter()
    for benchmark_name in chosen:
        since = perf_counter()
        benchmark = import_module(f"benchmarks.{benchmark_name}")
        try:
            results = _measured(benchmark, given[benchmark_name], console)
        except BenchmarkError as error:
            console.print(f"{benchmark_name}: {error}", style="red", markup=False)
            failed.append(benchmark_name)
            continue
        found.append(results)
        _write(benchmark, results, output, console)
        if keep and not _record(results, console, force=force):
            failed.append(f"{benchmark_name} (not recorded)")
        console.print(f"{benchmark_name}: {perf_counter() - since:,.0f} s", style="dim", highlight=False)
    if name is None:
        console.print(f"all: {(perf_counter() - begun) / 60:.1f} minutes", highlight=False)
    missed = _verdict(found, console, whole=not failed)
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red", highlight=False)
    if failed or any(
        strict or getattr(import_module(f"benchmarks.{benchmark_name}"), "STRICT", False) for benchmark_name in missed
    ):
        sys.exit(1)


def _check(name: str, given: dict[str, Any], *, recorded: bool) -> None:
    """Checks the options before any benchmark runs.

    Raises:
        typer.BadParameter: a variant is unknown, or the plan may not be recorded.
    """
    known = import_module(f"benchmarks.{name}").VARIANTS
    if strange := set(given.get("variants", ())) - set(known):
        raise typer.BadParameter(
            f"{min(strange)!r} is no variant; {name} has: {', '.join(known)}", param_hint="--variants"
        )
    if recorded and (against := record.objections(asdict(plans.plan(name, **given)), asdict(plans.plan(name)))):
        raise typer.BadParameter(f"{name}: {'; '.join(against)}; or --force", param_hint="--record")


def _measured(benchmark: ModuleType, given: dict[str, Any], console: Console) -> dict[str, Any]:
    results: dict[str, Any] = benchmark.measure(
        benchmark.plan_from(**given), lambda line: console.print(line, style="dim", highlight=False)
    )
    benchmark.show(results, console)
    return results


def _write(benchmark: ModuleType, results: dict[str, Any], output: Path, console: Console) -> None:
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{results['benchmark']}.json"
    path.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    drawn = chart.draw(benchmark, results, path.with_suffix(".png"))
    record.merge(results, output / "results.json")
    console.print(f"everything: {path}{f'; a chart: {drawn}' if drawn else ''}", highlight=False)


def _record(results: dict[str, Any], console: Console, *, force: bool) -> bool:
    """Records the results; returns False if the machine was too noisy for that."""
    against = record.noise_objections(results["noise"])
    if against and not force:
        line = f"{results['benchmark']} is not recorded: {'; '.join(against)}; run it again, or with --force"
        console.print(line, style="red", highlight=False)
        return False
    record.merge(results, record.COMMITTED)
    return True


def _verdict(found: Sequence[dict[str, Any]], console: Console, *, whole: bool) -> list[str]:
    """Prints the missed targets, or that a whole run missed none; returns the benchmarks that missed one."""
    missed = {results["benchmark"]: lines for results in found if (lines := turns.missed(results))}
    for name, lines in missed.items():
        for line in lines:
            console.print(f"missed: {name}: {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    if whole and not missed and any(turns.judged(results) for results in found):
        console.print("every target met", style="green")
    return list(missed)


if __name__ == "__main__":
    typer.run(main)
