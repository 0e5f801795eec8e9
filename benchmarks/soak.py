"""The live service for a long time, its clients coming and going: whether its memory stays as it is.

`sightline serve` on canned models on the embedded Triton, with OCR where its environment is there. `sightline load`
plays cameras (realtime, some without headers, some that hardly read) whose sessions end and begin, `unruly.py` those
that are lossless, vanish, or send garbage. The slope is that of a straight line by least squares through the service's
resident memory after the first fifth of the time; Triton's and OCR's are looked at apart. In the end every frame must
be accounted for, and the load must have counted what the service counted. 20 minutes; not among all benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console

from app.settings import OcrSettings
from benchmarks import canned, harness, memory, service, turns
from benchmarks.noise import Noise
from benchmarks.soak_load import GROUPS, Plan, loaded, settled
from benchmarks.turns import Figures, Ratio

VARIANTS = GROUPS
RATIOS = (
    Ratio("resident memory of the service, MB a minute after warm-up", "slope_mb", "service", at_most=1),
    Ratio("… its own, without what it shares", "own_slope_mb", "service", at_most=1),
)
STRICT = True
"""A missed target fails the run."""


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements.

    Raises:
        BenchmarkError: a process failed, a frame is unaccounted for, or client and service do not agree.
    """
    noise = Noise()
    ocr = "on" if plan.ocr and OcrSettings().ocr_python.exists() else "off"
    most = str(plan.sessions + plan.unruly + 16)
    settings = {"OCR": ocr, "MAX_SESSIONS": most, "MAX_SESSIONS_PER_ADDRESS": most}
    with service.bench(canned.write, 1) as stand, noise.watched():
        with service.served(stand, stand.cores.tested, **settings) as running:
            looks, seen = loaded(stand, running, plan, say)
            final = settled(running)
        log = (stand.folder / "service.log").read_text(errors="replace").splitlines()
    steady = [look for look in looks if memory.WARM_UP * plan.seconds < look["at_s"] <= plan.seconds]
    groups = [name for name in plan.variants if any(look.get(name) for look in steady)]
    turns_of = {name: memory.slopes(steady, {"slope_mb": name, "own_slope_mb": f"own_{name}"}) for name in groups}
    return {
        "benchmark": "soak",
        "machine": harness.machine(),
        "noise": noise.told(),
        "plan": asdict(plan),
        "variants": {name: {**_amounts(name, steady), **memory.trend(turns_of[name])} for name in groups},
        "ratios": memory.judged(RATIOS, turns_of),
        "ledger": asdict(final),
        "clients": seen,
        "samples": {"looks": looks, "log": log[-100:]},
        "turns": turns_of,
    }


def _amounts(name: str, steady: list[Figures]) -> dict[str, Any]:
    spreads = {"resident_mb": name, "own_mb": f"own_{name}"}
    return {label: asdict(harness.spread([look[key] for look in steady])) for label, key in spreads.items()}


def show(results: dict[str, Any], console: Console) -> None:
    """The tables, and the books."""
    minutes = round(results["plan"]["seconds"] / 60, 1)
    columns = {
        "resident_mb": "resident MB",
        "own_mb": "its own MB",
        "slope_mb": "MB a minute",
        "own_slope_mb": "its own",
    }
    caption, looks = "slopes: over all looks (over either half)", "the looks after the warm-up"
    turns.show(results, f"soak: {minutes:g} minutes", VARIANTS, columns, console, caption, spread_of=looks)
    books, others = results["ledger"], results["clients"]["others"]["came"]
    visits = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    cameras = results["clients"]["cameras"]
    sessions = cameras["sessions"] + cameras.get("slow", {}).get("sessions", 0)  # once they were counted together
    console.print(
        f"{books['received']:,} frames received = {books['processed']:,} processed + {books['dropped']:,} dropped "
        f"+ {books['failed']:,} failed; {sessions} sessions of cameras, {visits}",
        highlight=False,
    )


def draw(results: dict[str, Any], axes: Any) -> None:
    """Memory over time; the service's line by least squares."""
    titles = {name: VARIANTS[name] for name in results["variants"]}
    memory.draw(axes, results["samples"]["looks"], titles, "service", results["plan"]["seconds"])


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, {**given, "turns": None, "variants": None})
