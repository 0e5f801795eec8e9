"""The committed results, the rules for committing results, and the tables made of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from app.settings import ROOT
from benchmarks import __main__ as main
from benchmarks import figures, plans, record
from benchmarks.plans import ALONE, BENCHMARKS, BRIEF

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


@pytest.mark.parametrize(("name", "block"), [("README.md", "headlines"), ("benchmarks/README.md", "figures")])
def test_the_readmes_say_what_was_measured(name: str, block: str) -> None:
    text = (ROOT / name).read_text()
    assert re.findall(r"<!-- (headlines|figures) -->", text) == [block]
    assert figures.fill(text) == text, "run: python -m benchmarks.figures README.md benchmarks/README.md"


def test_a_headline_is_a_judged_ratio_or_a_figure_of_the_benchmark_that_it_names() -> None:
    assert 5 <= len(figures.HEADLINES) <= 8
    for headline in figures.HEADLINES:
        module = import_module(f"benchmarks.{headline.benchmark}")
        if headline.variant:
            assert headline.variant in module.VARIANTS
        else:
            assert [ratio.target != "" for ratio in module.RATIOS if ratio.label == headline.label] == [True], (
                headline.label
            )


def test_what_is_committed_is_of_benchmarks_that_there_are() -> None:
    known = record.load()
    assert known
    assert set(known) <= set(BENCHMARKS)
    for name, recorded in known.items():
        assert recorded["benchmark"] == name
        assert recorded["machine"]["cpu"]
        assert not {"turns", "samples"} & set(recorded)


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_can_be_recorded(name: str) -> None:
    """Its ratios have places in the tables; its plan by name is one that is recorded, its brief one has its spread."""
    module = import_module(f"benchmarks.{name}")
    labels = [ratio.label for ratio in module.RATIOS]
    assert labels
    assert len(set(labels)) == len(labels)
    variants = {variant for ratio in module.RATIOS for variant in (ratio.over, ratio.under)}
    assert variants <= {*module.VARIANTS, None}
    whole = asdict(plans.plan(name))
    assert record.objections(whole, whole) == []
    assert set(module.VARIANTS) == set(whole["variants"])
    assert whole["turns"] >= (1 if name in ALONE else record.TURNS)
    brief = plans.plan(name, **plans.given(name, {}, brief=True))
    assert brief.turns >= (1 if name in ALONE else 2), "a figure without a spread says little"


BEFORE_THE_RULES = {"fleet_soak", "soak"}
"""Recorded before short and noisy runs were refused. Who records one of them again takes it out."""


def test_what_is_committed_was_recorded_by_the_rules() -> None:
    found = {
        name
        for name, recorded in record.load().items()
        if record.objections(recorded["plan"], asdict(plans.plan(name))) or record.noise_objections(recorded["noise"])
    }
    assert found <= BEFORE_THE_RULES


def test_short_partial_and_noisy_runs_are_not_recorded() -> None:
    whole = {"seconds": 2.0, "turns": 5, "variants": ("a", "b")}
    assert record.objections({**whole, "turns": 3, "seconds": 3.0, "variants": ["b", "a", "c"]}, whole) == []
    against = record.objections({"seconds": 1.0, "turns": 2, "variants": ["b"]}, whole)
    assert against == ["seconds=1.0, want 2 or more", "turns=2, want 3 or more", "variants left out: a"]
    assert record.objections({"seconds": 60.0, "turns": 1}, {"seconds": 1200.0, "turns": 1}) == [
        "seconds=60.0, want 1200 or more"
    ]
    quiet = {"others_most": 0.04, "stolen_most": 0.05}
    assert record.noise_objections(quiet) == []
    (told,) = record.noise_objections({**quiet, "stolen_most": 0.2})
    assert "24% of a core, want 10% or less" in told


class Canned:
    """A benchmark that takes no time, in the place of a real one."""

    VARIANTS: ClassVar = {"new": "new", "old": "old"}

    @dataclass(frozen=True)
    class Plan:
        seconds: float = 1.0
        turns: int = 3
        variants: tuple[str, ...] = ("new", "old")

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self.runs: list[Canned.Plan] = []

    def plan_from(self, **given: Any) -> Plan:
        return self.Plan(**given)

    def measure(self, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
        self.runs.append(plan)
        return self.found | {"plan": asdict(plan)}

    def show(self, found: dict[str, Any], console: Console) -> None: ...


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, Canned, bool]]:
    """The command line with a canned `flow`: exit code, what was printed, the benchmark, whether it was recorded."""

    def run(*arguments: str, met: bool = True, others: float = 0.0) -> tuple[int, str, Canned, bool]:
        found = results("flow", 4.0, met=met) | {"noise": NOISE | {"others_most": others}}
        canned, committed = Canned(found), tmp_path / "committed.json"
        for module in (main, plans):
            monkeypatch.setattr(module, "import_module", lambda name: canned)
        monkeypatch.setattr(main, "TOGETHER", ["flow"])
        monkeypatch.setattr(record, "COMMITTED", committed)
        app = typer.Typer()
        app.command()(main.main)
        done = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out")])
        return done.exit_code, re.sub(r"[│\s]+", " ", done.output), canned, committed.exists()

    return run


def test_the_brief_run_of_all_says_what_was_missed(run: Callable[..., Any]) -> None:
    code, said, canned, recorded = run()
    assert (code, recorded) == (0, False)
    assert "every target met" in said
    assert canned.runs
    code, said, *_ = run(met=False)
    assert code == 0
    assert "missed: flow: new over old: 4, wanted ≥ 4" in said
    assert "every target met" not in said


@pytest.mark.parametrize("name", [(), ("flow",)])
def test_a_strict_run_fails_on_a_miss(run: Callable[..., Any], name: tuple[str, ...]) -> None:
    assert run(*name, "--strict")[0] == 0
    assert run(*name, "--strict", met=False)[0] == 1


def test_only_whole_runs_of_a_quiet_machine_are_recorded(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BRIEF, "flow", {"turns": 2})
    for short, why in (("--turns=2", "turns=2, want 3"), ("--variants=new", "variants left out: old")):
        code, said, canned, recorded = run("flow", "--record", short)
        assert (code, canned.runs, recorded) == (2, [], False)
        assert f"flow: {why}" in said
    code, said, canned, recorded = run("flow", "--record", others=0.5)
    assert (code, len(canned.runs), recorded) == (1, 1, False)
    assert "flow is not recorded: other programs and the hypervisor took up to 50% of a core" in said
    code, _, canned, recorded = run("--record")
    assert (code, canned.runs[0].turns, recorded) == (0, 3, True), "all are recorded as they run by name"


def test_a_noisy_run_is_recorded_when_forced(run: Callable[..., Any]) -> None:
    code, _, _, recorded = run("flow", "--record", "--force", "--turns=2", others=0.5)
    assert (code, recorded) == (0, True)


def test_a_run_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for recorded in (results("flow", 4.0), results("live", 5.0), results("flow", 6.0)):
        record.merge(recorded, path)
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
    assert "`flow` (1 turns, others used up to 50% of a core), `wire`" in lines[-1]


def test_what_variants_cost_is_told_in_the_benchmarks_own_order(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    amounts = {name: {"median": 20.0, "least": 18.0, "most": 22.0} for name in ("cpu_ms", "frames_per_s", "p50_ms")}
    variants = {"openvino-f32-square": amounts, "onnxruntime-f32-square": amounts}
    record.merge(results("cpu_models", 4.0) | {"variants": variants}, path)
    told = [line for line in figures.table(path).splitlines() if "640x640" in line]
    assert told == [
        f"| `cpu_models` | {title}, FP32, 640x640: {what} | 20.0 (18.0–22.0) | – |"
        for title in ("ONNX Runtime", "OpenVINO")
        for what in ("frames a second", "CPU ms a frame")
    ]


def test_only_what_stands_between_the_marks_is_written() -> None:
    before, after = "# Speed\n<!-- figures -->\n", "<!-- end -->\nmore <!-- end -->\n"
    text = figures.fill(f"{before}old{after}")
    assert text.startswith(before)
    assert text.endswith(after)
    assert "old" not in text
