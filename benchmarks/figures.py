"""The tables of figures in both READMEs, made from the committed `results.json`.

    .venv/bin/python -m benchmarks.figures README.md benchmarks/README.md      # writes them between their marks

A test holds both to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import plans, record

_BLOCK = re.compile(r"(<!-- (headlines|figures) -->\n).*?(<!-- end -->)", re.S)
AMOUNTS = {
    "live": {"frames_per_s": "frames a second", "cpu_us_per_frame": "CPU µs a frame"},
    "cpu_models": {"frames_per_s": "frames a second", "cpu_ms": "CPU ms a frame"},
}
"""Figures of the variants themselves that the tables show beside the ratios."""


@dataclass(frozen=True, slots=True)
class Headline:
    """A row of the README: a ratio by its label, or a figure of a variant."""

    words: str
    benchmark: str
    label: str = ""
    variant: str = ""
    figure: str = ""

    def row(self, results: Mapping[str, Any]) -> tuple[str, str, str]:
        """The table's row. Raises KeyError if the record has no such figure."""
        if self.variant:
            return self.words, spread(results["variants"][self.variant][self.figure]), "–"
        for ratio in results["ratios"]:
            if ratio["label"] == self.label:
                return self.words, *_judged(ratio)
        raise KeyError(self.label)


_WHOLE = "the whole service, doing the naive one's work"
HEADLINES = (
    Headline(
        "the whole live service on one core, models that answer at once: frames a second, 640x480",
        "live",
        variant="ours",
        figure="frames_per_s",
    ),
    Headline("… times as many a CPU second as a naive service", "live", f"{_WHOLE}: × a naive service, by CPU"),
    Headline(
        "… of those of a bare loop that only decodes, flows and calls Triton, a call a frame",
        "live",
        f"{_WHOLE}: of the bare loop, a call a frame, by CPU",
    ),
    Headline(
        "twice the load that a model can take: p99 age of a result, over a session's round at capacity, four sessions",
        "overload",
        "overload: p99 age over a session's round at capacity, four sessions; newest wins",
    ),
    Headline(
        "a fleet worker, 32 cameras: times as many frames a CPU second as the plain loop",
        "fleet",
        "a fleet worker, 32 cameras: over the plain loop, by CPU",
    ),
    Headline(
        "20 minutes of clients that come and go: resident memory, MB a minute after warm-up",
        "soak",
        "resident memory of the service, MB a minute after warm-up",
    ),
)


def fill(text: str) -> str:
    """The text with the figures between its marks written anew."""
    made = {"headlines": headlines, "figures": table}
    return _BLOCK.sub(lambda found: f"{found[1]}{made[found[2]]()}\n{found[3]}", text)


def headlines(path: Path = record.COMMITTED) -> str:
    """Markdown: the most important figures."""
    known = record.load(path)
    rows = [headline.row(known[headline.benchmark]) for headline in HEADLINES]
    told = {name: known[name] for name in {headline.benchmark for headline in HEADLINES}}
    return "\n".join([*_lines(("what", "median (least–most)", "wanted"), rows), "", *_machines(told)])


def table(path: Path = record.COMMITTED) -> str:
    """Markdown: each comparison with its result and its target, then the machine of each run."""
    known = record.load(path)
    rows = [(f"`{name}`", *row) for name, results in sorted(known.items()) for row in _rows(results)]
    head = ("benchmark", "what", "median (least–most)", "wanted")
    return "\n".join([*_lines(head, rows), "", *_machines(known)])


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    told = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in told]


def _rows(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for ratio in results["ratios"]:
        yield ratio["label"], *_judged(ratio)
    amounts = AMOUNTS.get(results["benchmark"])
    if amounts:
        # In the benchmark's own order; a record is sorted by name.
        for variant, title in _titles(results["benchmark"]).items():
            figures = results["variants"].get(variant, {})
            for figure in (amount for amount in amounts if amount in figures):
                yield f"{title}: {amounts[figure]}", spread(figures[figure]), "–"


def _titles(benchmark: str) -> dict[str, str]:
    variants = import_module(f"benchmarks.{benchmark}").VARIANTS
    return {name: variant if isinstance(variant, str) else variant.title for name, variant in variants.items()}


def _judged(ratio: Mapping[str, Any]) -> tuple[str, str]:
    missed = " – **missed**" if ratio["met"] is False else ""
    return f"{spread(ratio)}{missed}", ratio["target"] or "–"


def spread(measured: Mapping[str, float]) -> str:
    """`4.1 (3.9–4.4)`, to three digits or so."""
    digits = 0 if abs(measured["median"]) >= 100 else 1 if abs(measured["median"]) >= 10 else 2
    return f"{measured['median']:,.{digits}f} ({measured['least']:,.{digits}f}–{measured['most']:,.{digits}f})"


def _machines(known: Mapping[str, Any]) -> Iterator[str]:
    """One line for all runs that share a machine and a day."""
    told: dict[str, list[str]] = {}
    for name, results in sorted(known.items()):
        machine, noise = results["machine"], results["noise"]
        text = (
            f"{results['at']}: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, "
            f"Linux {machine['kernel']}, Python {machine['python']}"
        )
        turns = "one long run" if name in plans.ALONE else f"{results['plan']['turns']} turns"
        told.setdefault(text, []).append(f"`{name}` ({turns}, others used up to {noise['others_most']:.0%} of a core)")
    for text, names in told.items():
        yield f"Measured on {text}: {', '.join(names)}."


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main()
