"""The benchmark `fleet`, short: every frame it measures is answered, and its ratios are those of its figures."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks import fleet, turns
from benchmarks.fleet import Measured, Plan
from tests.support.redis import require_program


def test_a_short_run_answers_every_frame_and_prints_its_tables() -> None:
    require_program("redis-server", "redis-server")
    lines: list[str] = []
    plan = Plan(seconds=0.3, warm_up_s=0.2, turns=1, variants=("cameras-32", "plain-32", "floor"))
    found = fleet.measure(plan, lines.append)
    assert len(lines) == 3
    assert set(found["variants"]) == set(plan.variants)
    assert all(row["rate"]["median"] > 0 for row in found["variants"].values())
    assert found["noise"]["others"] >= 0
    out = io.StringIO()
    fleet.show(found, Console(file=out, width=132))
    assert "32 cameras: over the plain loop, by CPU" in out.getvalue()


def test_every_worker_is_held_against_the_plain_loop_and_the_floor() -> None:
    turns_of = {
        "cameras-32": [Measured(300, 1.0, 0.3).figures, Measured(100, 1.0, 0.2).figures],
        "plain-32": [Measured(100, 1.0, 0.4).figures, Measured(50, 1.0, 0.2).figures],
    }
    by_cpu, by_rate = turns.compared(turns_of, fleet.RATIOS)
    assert (by_cpu["median"], by_cpu["least"], by_cpu["most"]) == pytest.approx((3.0, 2.0, 4.0))
    assert by_cpu["target"] == "≥ 3"
    assert by_cpu["met"] is (by_cpu["median"] >= 3)
    assert (by_rate["median"], by_rate["least"], by_rate["most"]) == pytest.approx((2.5, 2.0, 3.0))
    assert by_rate["target"] == ""
    assert {ratio.over for ratio in fleet.RATIOS} | {ratio.under for ratio in fleet.RATIOS} <= set(fleet.VARIANTS)
