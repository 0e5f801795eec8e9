"""A chart can be drawn of every benchmark with committed results."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import chart, record

DRAWN_FROM_SAMPLES = {"overload", "soak", "fleet_soak"}
"""Their charts are looked at where they are run: samples are not committed."""


@pytest.mark.parametrize("name", sorted(set(record.load()) - DRAWN_FROM_SAMPLES))
def test_what_is_committed_can_be_drawn(name: str, tmp_path: Path) -> None:
    drawn = chart.draw(import_module(f"benchmarks.{name}"), record.load()[name], tmp_path / f"{name}.png")
    assert drawn is not None
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_nothing_is_drawn_of_figures_that_variants_do_not_share(tmp_path: Path) -> None:
    results = {"variants": {"a": {"cpu_us": {}}, "b": {"rate": {}}}, "machine": {}}
    assert chart.draw(import_module("benchmarks.flow"), results, tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()
