"""The README's table of figures, made from the committed `results.json`.

    .venv/bin/python -m benchmarks.figures README.md      # writes it between its marks

A test holds the README to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import record

_BLOCK = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.S)
LIVE = {"ours": "the whole service, doing the naive one's work", "tracking": "… with tracking"}
LIVE_TARGETS = {"over_naive": ("× a naive service", 40.0), "of_floor": ("of the bare loop", 0.7)}


def fill(text: str) -> str:
    """The text with the figures made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}{table()}\n{found[2]}", text)


def table(path: Path = record.COMMITTED) -> str:
    """Markdown: what was compared, by how much, what was wanted; then the machine of each run."""
    known = record.load(path)
    rows = [("benchmark", "what", "median (least–most)", "wanted"), ("---",) * 4]
    for name, results in sorted(known.items()):
        rows += [(f"`{name}`", *row) for row in _rows(results)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", *_machines(known)])


def _rows(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    ratios = results.get("ratios")
    if results["benchmark"] == "live":
        yield from _live(results)
    elif isinstance(ratios, list):
        for one in ratios:
            missed = " – **missed**" if one["met"] is False else ""
            yield one["label"], f"{spread(one)}{missed}", one["target"] or "–"


def _live(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for variant, what in LIVE.items():
        for ratio, (against, wanted) in LIVE_TARGETS.items():
            if ratio in results["ratios"].get(variant, {}):
                found = results["ratios"][variant][ratio]["by_cpu"]
                aim = variant == "ours"
                missed = " – **missed**" if aim and found["median"] < wanted else ""
                yield f"{what}: {against}, by CPU", f"{spread(found)}{missed}", f"≥ {wanted:g}" if aim else "–"
    for variant, figures in results["variants"].items():
        yield f"CPU µs a frame, `{variant}`", spread(figures["cpu_us_per_frame"]), "–"


def spread(one: Mapping[str, float]) -> str:
    """`4.1 (3.9–4.4)`, to three digits or so."""
    digits = 0 if abs(one["median"]) >= 100 else 1 if abs(one["median"]) >= 10 else 2
    return f"{one['median']:,.{digits}f} ({one['least']:,.{digits}f}–{one['most']:,.{digits}f})"


def _machines(known: Mapping[str, Any]) -> Iterator[str]:
    """One line for all runs that share a machine and a day."""
    told: dict[str, list[str]] = {}
    for name, results in sorted(known.items()):
        machine, noise = results["machine"], results.get("noise")
        text = (
            f"{results['at']}: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, "
            f"Linux {machine['kernel']}, Python {machine['python']}"
        )
        others = "" if noise is None else f" (others used {noise['others']:.0%} of a core)"
        told.setdefault(text, []).append(f"`{name}`{others}")
    for text, names in told.items():
        yield f"Measured on {text}: {', '.join(names)}."


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main()
