"""The committed results, and the README's table that is made of them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from app.settings import ROOT
from benchmarks import figures, record
from benchmarks.__main__ import ALONE, BENCHMARKS, BRIEF

MACHINE = {"cpu": "A CPU", "cores": 2, "memory_gib": 8.0, "kernel": "6.1", "python": "3.11.7", "packages": {}}
NOISE = {"others": 0.25, "others_most": 0.5, "stolen": 0.0, "stolen_most": 0.0, "load_average": 1.0}


def results(name: str, median: float, *, met: bool = True) -> dict[str, Any]:
    ratio = {"label": "new over old", "median": median, "least": 3.0, "most": 120.0, "target": "≥ 4", "met": met}
    return {
        "benchmark": name,
        "machine": MACHINE,
        "noise": NOISE,
        "plan": {"turns": 1},
        "variants": {},
        "ratios": [ratio],
        "turns": {"new": [{"x": 1.0}]},
        "samples": {"new": "long"},
    }


def test_the_readme_says_what_was_measured() -> None:
    text = (ROOT / "README.md").read_text()
    assert "<!-- figures -->" in text
    assert figures.fill(text) == text, "run: python -m benchmarks.figures README.md"


def test_what_is_committed_is_of_benchmarks_that_there_are() -> None:
    known = record.load()
    assert known
    assert set(known) <= set(BENCHMARKS)
    for name, one in known.items():
        assert one["benchmark"] == name
        assert one["machine"]["cpu"]
        assert not {"turns", "samples"} & set(one)


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_can_be_recorded(name: str) -> None:
    """Its ratios have places in the README's table, or it is `live`, which has rows of its own."""
    module = import_module(f"benchmarks.{name}")
    if name != "live":
        labels = [ratio.label for ratio in module.RATIOS]
        assert labels
        assert len(set(labels)) == len(labels)
        variants = {one for ratio in module.RATIOS for one in (ratio.over, ratio.under)}
        assert variants <= {*module.VARIANTS, None}
    plan = module.plan_from(**BRIEF.get(name, {}))
    assert plan.turns >= (1 if name in ALONE else 2), "a figure without a spread says little"


def test_a_run_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for one in (results("flow", 4.0), results("live", 5.0) | {"ratios": {}}, results("flow", 6.0)):
        record.merge(one, path)
    known = record.load(path)
    assert set(known) == {"flow", "live"}
    assert known["flow"]["ratios"][0]["median"] == 6.0
    assert "turns" not in known["flow"]


def test_the_table_names_targets_misses_and_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    record.merge(results("flow", 4.256), path)
    record.merge(results("wire", 123.4, met=False), path)
    lines = figures.table(path).splitlines()
    assert "| `flow` | new over old | 4.26 (3.00–120.00) | ≥ 4 |" in lines
    assert "| `wire` | new over old | 123 (3–120) – **missed** | ≥ 4 |" in lines
    assert lines[-1].startswith("Measured on ")
    assert "A CPU, 2 cores" in lines[-1]
    assert "`flow` (others used 25% of a core), `wire`" in lines[-1]


def test_only_what_stands_between_the_marks_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = "# Speed\n<!-- figures -->\n", "<!-- end -->\nmore <!-- end -->\n"
    text = figures.fill(f"{before}old{after}")
    assert text.startswith(before)
    assert text.endswith(after)
    assert "old" not in text
