"""The benchmark `fleet`, short: every frame it measures is answered, and its ratios are those of its figures."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks import fleet
from benchmarks.fleet import Measured, Plan
from tests.support.redis import require_program


def test_a_short_run_answers_every_frame_and_prints_its_tables() -> None:
    require_program("redis-server", "redis-server")
    lines: list[str] = []
    plan = Plan(seconds=0.3, warm_up_s=0.2, turns=1, variants=("cameras-32", "plain-32", "floor"))
    found = fleet.measure(plan, lines.append)
    assert len(lines) == 3
    assert {name: row["frames_per_s"]["median"] > 0 for name, row in found["variants"].items()} == {
        "cameras-32": True,
        "plain-32": True,
        "floor": True,
    }
    out = io.StringIO()
    fleet.show(found, Console(file=out, width=132))
    assert "32 cameras over the plain loop" in out.getvalue()


def test_ratios_are_taken_turn_by_turn() -> None:
    turns = {
        "cameras-32": [Measured(300, 1.0, 0.3), Measured(100, 1.0, 0.2)],
        "plain-32": [Measured(100, 1.0, 0.4), Measured(50, 1.0, 0.2)],
    }
    found = fleet.ratios(turns)["cameras-32"]["over_plain"]
    assert found["by_rate"] == {"median": 2.5, "least": 2.0, "most": 3.0}
    assert found["by_cpu"] == pytest.approx({"median": 3.0, "least": 2.0, "most": 4.0})
