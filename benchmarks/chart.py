"""A chart of a benchmark's results: its module's own chart, or else bars of the main figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from matplotlib.figure import Figure

FIGURES = {
    "cpu_us": "CPU µs",
    "cpu_us_per_frame": "CPU µs a frame",
    "rate": "a second",
    "frames_per_s": "frames a second",
    "p95_ms": "p95 ms",
    "offer_p50_us": "µs",
}
"""Figures and their names. The first one that the variants have is drawn."""


def draw(module: ModuleType, results: Mapping[str, Any], path: Path) -> Path | None:
    """Writes a PNG and returns its path; None if there is nothing to draw."""
    own = getattr(module, "draw", None)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    if own is not None:
        own(results, axes)
    elif not bars(module, results, axes):
        return None
    machine = results["machine"]
    figure.suptitle(results["benchmark"])
    axes.set_title(f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}", fontsize=8)
    figure.savefig(path, dpi=110)
    return path


def bars(module: ModuleType, results: Mapping[str, Any], axes: Any) -> bool:
    """Draws a bar for each variant with its spread as a line; logarithmic if the variants are far apart."""
    variants: Mapping[str, Any] = results.get("variants", {})
    shared = [name for name in FIGURES if variants and all(name in figures for figures in variants.values())]
    if not shared:
        return False
    name = shared[0]
    spreads = [figures[name] for figures in variants.values()]
    middles = [spread["median"] for spread in spreads]
    errors = [
        [spread["median"] - spread["least"] for spread in spreads],
        [spread["most"] - spread["median"] for spread in spreads],
    ]
    places = range(len(spreads))
    axes.barh(places, middles, xerr=errors, height=0.6, color="#4878cf", ecolor="#333333", capsize=3)
    axes.set_yticks(places, [_title(module, variant) for variant in variants])
    axes.invert_yaxis()
    if max(middles) > 20 * min(middle for middle in middles if middle > 0):
        axes.set_xscale("log")
    axes.set_xlabel(FIGURES[name])
    return True


def _title(module: ModuleType, variant: str) -> str:
    title = module.VARIANTS[variant]
    return title if isinstance(title, str) else str(getattr(title, "title", variant))
