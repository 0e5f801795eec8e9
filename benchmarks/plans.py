"""The list of benchmarks, those that run together, and their durations then."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

NAMES = (
    "frame_path",
    "flow",
    "postprocess",
    "triton_wire",
    "live",
    "sessions",
    "lone",
    "overload",
    "workers",
    "to_the_limit",
    "cpu_models",
    "fleet",
    "fleet_overload",
    "segments",
    "backlog",
    "summaries",
    "soak",
    "fleet_soak",
)
"""In the order in which they run: from the pieces to the whole."""
BENCHMARKS = [name for name in NAMES if find_spec(f"benchmarks.{name}") is not None]
ALONE = ("soak", "fleet_soak")
"""Too long to be run with all; by name only. They have no turns: one long run."""
TOGETHER = [name for name in BENCHMARKS if name not in ALONE]
BRIEF: dict[str, dict[str, Any]] = {
    "live": {"seconds": 2.0},
    "sessions": {"turns": 2, "seconds": 4.0},
    "lone": {"turns": 2, "seconds": 4.0},
    "overload": {"turns": 2, "seconds": 6.0},
    "workers": {"turns": 2},
    "to_the_limit": {"turns": 2},
    "cpu_models": {"turns": 2, "seconds": 0.6},
    "fleet": {"turns": 2, "seconds": 2.0},
    "fleet_overload": {"turns": 2, "seconds": 5.0, "warm_up_s": 2.0},
    "segments": {"turns": 2, "frames": 100},
    "backlog": {"turns": 3},
    "summaries": {"turns": 2, "seconds": 3.0},
}
"""Where all are run for a look: together they stay under 15 minutes on two quiet cores. No benchmark has fewer than two
turns. Nothing of it is recorded: with three turns each, and as long as by name, all take about 25 minutes."""


def given(name: str, told: dict[str, Any], *, brief: bool) -> dict[str, Any]:
    """The options for a benchmark's plan: those given, and with `brief` the brief ones for all others."""
    return {**BRIEF.get(name, {}), **told} if brief else told


def plan(name: str, **told: Any) -> Any:
    """A benchmark's plan."""
    return import_module(f"benchmarks.{name}").plan_from(**told)
