"""The benchmark `backlog`, short: everything offered comes back, and only the variant that spills spills."""

from __future__ import annotations

import io

from rich.console import Console

from benchmarks import backlog
from benchmarks.backlog import Plan


def test_a_short_run_gives_both_variants_and_a_table() -> None:
    lines: list[str] = []
    found = backlog.measure(Plan(observations=600, turns=1), lines.append)
    assert len(lines) == 2
    assert found["variants"]["memory"]["spilled"]["median"] == 0
    assert found["variants"]["spill"]["spilled"]["median"] >= 300
    for (turn,) in found["turns"].values():
        assert 0 < turn["offer_p50_us"] <= turn["offer_p99_us"]
        assert 0 <= turn["lag_p99_ms"] <= turn["lag_max_ms"] <= turn["wall_lag_max_ms"]
    assert found["noise"]["others"] >= 0
    assert [ratio["target"] for ratio in found["ratios"]] == ["≤ 20", "≤ 5", ""]
    out = io.StringIO()
    backlog.show(found, Console(file=out, width=132))
    assert "600 observations" in out.getvalue()
