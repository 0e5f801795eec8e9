"""The soak, seconds instead of minutes: it runs, every frame is accounted for, and it says what the memory did."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from app.settings import TritonSettings
from benchmarks import chart, fleet_soak, memory, soak
from benchmarks.plans import ALONE
from tests.support.redis import require_program
from tests.support.service import require_environment


def test_a_short_soak_runs_and_reports(tmp_path: Path) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    lines: list[str] = []
    plan = soak.Plan(seconds=4.0, sessions=3, fps=5, churn_s=1.0, unruly=3, look_s=0.2, ocr=False)
    found = soak.measure(plan, lines.append)
    assert lines
    assert all("the service" in line and "frames" in line for line in lines)
    books = found["ledger"]
    assert books["received"] == books["processed"] + books["dropped"] + books["failed"] > 0
    assert books["sessions"] == 0
    assert sum(found["clients"]["others"]["came"].values()) >= 3
    assert found["clients"]["cameras"]["disagreements"] == []
    assert set(found["variants"]) == {"service", "triton"}
    amounts = found["variants"]["service"]
    assert 50 < amounts["own_mb"]["median"] < amounts["resident_mb"]["median"] < 1000
    for ratio, figure in zip(found["ratios"], ("slope_mb", "own_slope_mb"), strict=True):
        assert ratio["target"] == "≤ 1"
        assert ratio["median"] == amounts[figure]["median"]
        assert ratio["met"] is (ratio["median"] <= 1)
    out = io.StringIO()
    soak.show(found, Console(file=out, width=150))
    assert "frames received" in out.getvalue()
    drawn = chart.draw(soak, found, tmp_path / "soak.png")
    assert drawn is not None
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_a_slope_is_that_of_the_line() -> None:
    assert memory.slope([(0.0, 5.0), (1.0, 7.0), (2.0, 9.0), (4.0, 13.0)]) == pytest.approx(2)
    own = memory.resident([1 << 22])  # nobody's
    assert own == (0, 0)


def test_a_slope_over_the_target_is_a_miss() -> None:
    slopes = [{"slope_mb": value, "own_slope_mb": -value} for value in (1.5, 0.2, 3.0)]
    over, own = memory.judged(soak.RATIOS, {"service": slopes})
    assert (over["median"], over["least"], over["most"], over["met"]) == (1.5, 0.2, 3.0, False)
    assert own["met"] is True


def test_soaks_are_not_among_all_and_a_miss_fails_them() -> None:
    assert set(ALONE) == {"soak", "fleet_soak"}
    assert soak.STRICT
    assert fleet_soak.STRICT


def test_a_short_soak_of_a_fleet_worker_runs_and_reports(tmp_path: Path) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    require_program("redis-server", "redis-server")
    lines: list[str] = []
    plan = fleet_soak.Plan(seconds=5.0, rate=40, cameras=4, look_s=0.2)
    found = fleet_soak.measure(plan, lines.append)
    books = found["ledger"]
    assert books["received"] == books["processed"] + books["dropped"] + books["failed"] > 50
    assert lines
    (ratio,) = found["ratios"]
    assert ratio["median"] == found["variants"]["worker"]["own_slope_mb"]["median"]
    out = io.StringIO()
    fleet_soak.show(found, Console(file=out, width=150))
    assert "frames received" in out.getvalue()
    drawn = chart.draw(fleet_soak, found, tmp_path / "fleet_soak.png")
    assert drawn is not None
    assert drawn.read_bytes().startswith(b"\x89PNG")
