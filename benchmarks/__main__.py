"""`python -m benchmarks [NAME]`: runs one benchmark, or all; prints tables and writes everything measured as JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from app.settings import ROOT
from benchmarks import backlog, fleet, live, summaries
from benchmarks.harness import BenchmarkError

BENCHMARKS = {"backlog": backlog, "fleet": fleet, "live": live, "summaries": summaries}


def main(
    name: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}. Default: all.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Measured, of each variant and turn.")] = None,
    turns: Annotated[int | None, typer.Option(min=1, help="Times that every variant is run.")] = None,
    sessions: Annotated[int | None, typer.Option(min=1, max=64, help="Sessions at once.")] = None,
    variants: Annotated[str | None, typer.Option(help="Only these variants, comma-separated.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for NAME.json.")] = ROOT / ".state" / "bench",
) -> None:
    """Measures what README.md in this folder describes."""
    console = Console()
    console.width = max(console.width, 132)
    chosen = [name] if name else list(BENCHMARKS)
    if unknown := [one for one in chosen if one not in BENCHMARKS]:
        raise typer.BadParameter(f"{unknown[0]!r} is none; there are: {', '.join(BENCHMARKS)}", param_hint="NAME")
    wanted = tuple(variants.split(",")) if variants else None
    for one in chosen:
        benchmark = BENCHMARKS[one]
        if strange := set(wanted or ()) - set(benchmark.VARIANTS):
            known = ", ".join(benchmark.VARIANTS)
            raise typer.BadParameter(f"{min(strange)!r} is none; {one} has: {known}", param_hint="--variants")
        plan = benchmark.plan_from(seconds=seconds, turns=turns, sessions=sessions, variants=wanted)
        try:
            results = benchmark.measure(plan, lambda line: console.print(line, style="dim", highlight=False))
        except BenchmarkError as error:
            console.print(str(error), style="red", markup=False)
            sys.exit(1)
        benchmark.show(results, console)
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{one}.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
        console.print(f"everything: {output / f'{one}.json'}")


if __name__ == "__main__":
    typer.run(main)
