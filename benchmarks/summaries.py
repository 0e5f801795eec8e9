"""The cost of summaries to frames: the same load with summaries off, by rules, and with models that hang or answer.

The service and the load are those of `live`; so is the way of measuring. Summaries should not slow frames down.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import harness, live, photographs, turns
from benchmarks.live import Stand
from benchmarks.measure import Measured
from benchmarks.model import serving
from benchmarks.turns import Figures, Ratio

SUMMARISED: dict[str, Any] = {"stages": {"ocr": False, "summary": True}}
OFTEN = {"SUMMARY_MIN_INTERVAL_S": "1", "SUMMARY_MAX_INTERVAL_S": "2", "LLM_TIMEOUT_S": "600"}
"""Settings with which every session sends its first summary in the warm-up, and further ones after that."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    seconds: float = 4.0
    warm_up_s: float = 3.0
    turns: int = 5
    sessions: int = 8
    variants: tuple[str, ...] = ("off", "digest", "hanging", "answering")


@dataclass(frozen=True, slots=True)
class Variant:
    title: str
    run: Callable[[Stand], dict[str, Any]]


def _with_model(stand: Stand, answer_s: float | None) -> dict[str, Any]:
    with serving(answer_s) as model:
        settings = {"LLM_MODEL": "openai:bench", "LLM_BASE_URL": model.url, **OFTEN}
        found = live.ours(stand, SUMMARISED, **settings)
        if not model.requests:
            raise harness.BenchmarkError("the service asked the model for nothing: there is nothing to compare")
    return found


VARIANTS = {
    "off": Variant("summaries off", lambda stand: live.ours(stand, live.DEFAULTS)),
    "digest": Variant("by rule, no model", lambda stand: live.ours(stand, SUMMARISED, **OFTEN)),
    "hanging": Variant("a model that hangs", lambda stand: _with_model(stand, None)),
    "answering": Variant("a model that answers in 0.5 s", lambda stand: _with_model(stand, 0.5)),
}
RATIOS = (
    Ratio("summaries: p95 with a model that hangs, over summaries off", "p95_ms", "hanging", "off", at_most=1.05),
    *(
        Ratio(f"summaries: CPU time a frame, {VARIANTS[name].title}, over summaries off", "cpu_us", name, "off")
        for name in ("digest", "hanging", "answering")
    ),
)


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements.

    Raises:
        BenchmarkError: a process failed, or nothing was summarised.
    """
    places = harness.cores()
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        folder = Path(name)
        photographs.write(folder / "frames", plan.sessions)
        models = live.repository(folder / "repository")
        with harness.triton(models, folder / "state", places.triton) as (url, pids):
            stand = Stand(plan, places, folder, url, pids)

            def measure_turn(variant: str) -> Figures:
                found = VARIANTS[variant].run(stand)
                found.pop("sample")
                return turns.of(Measured(**found))

            return turns.run("summaries", plan, measure_turn, RATIOS, say, shown="p95_ms")


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {"p50_ms": "p50 ms", "p95_ms": "p95 ms", "p99_ms": "p99 ms"}
    columns |= {"rate": "frames/s", "cpu_us": "CPU µs a frame"}
    titles = {name: variant.title for name, variant in VARIANTS.items()}
    turns.show(results, "summaries", titles, columns, console)


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, given)
