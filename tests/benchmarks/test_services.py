"""The benchmarks that load a service or a Triton run in small, and their reports are complete."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from app.settings import TritonSettings
from benchmarks import (
    chart,
    harness,
    live,
    lone,
    overload,
    service,
    sessions,
    to_the_limit,
    triton_wire,
    turns,
    workers,
)
from benchmarks.measure import Measured
from tests.support.service import require_environment

STREAMS = 4


@pytest.fixture(scope="module")
def stand() -> Iterator[service.Bench]:
    """Models that take 5 ms a frame, and raw ones that answer at once."""
    require_environment(TritonSettings().triton_python, "make triton-env")

    def repository(folder: Path) -> Path:
        return live.repository(folder, frame_s=to_the_limit.MODEL_S)

    with service.bench(repository, STREAMS) as running:
        yield running


def shown(benchmark: Any, results: dict[str, Any]) -> str:
    out = io.StringIO()
    benchmark.show(results, Console(file=out, width=150))
    return out.getvalue()


def test_an_open_loop_reaches_every_session(stand: service.Bench) -> None:
    plan = sessions.Plan(seconds=1.0, warm_up_s=0.3, rate=40)
    found = sessions.measure_turn(stand, plan, 4)
    assert found["answered"] > 0.5
    assert found["jain"] > 0.8
    assert 0 < found["worst_share"] <= 1.0001
    assert found["cpu_us"] > 0


def test_only_a_queue_that_keeps_all_grows_old_under_twice_the_load(stand: service.Bench) -> None:
    able = {"rate": 0.8 / to_the_limit.MODEL_S, "service_ms": 4 * 1000 * to_the_limit.MODEL_S}
    plan = overload.Plan(seconds=1.5, warm_up_s=0.3, turns=1)
    kept: dict[str, Any] = {}

    def measure_turn(name: str) -> turns.Figures:
        figures, kept[name] = overload.measure_turn(stand, plan, name, able)
        return figures

    for _ in range(3):  # a machine that stands still for a second makes any result old: it has three tries
        found = turns.run("overload", plan, measure_turn, overload.RATIOS, lambda line: None, shown="p99_ms")
        found |= {"capacity": able, "samples": {"ages": kept}}
        newest, fifo = (found["turns"][name][0] for name in ("newest", "fifo"))
        if newest["p99_ms"] < fifo["p99_ms"] / 2 and fifo["growth"] > 1:
            break
    assert newest["p99_ms"] < fifo["p99_ms"] / 2
    assert fifo["p99_last_ms"] > fifo["p99_first_ms"]
    for name, figures in (("newest", newest), ("fifo", fifo)):
        assert all(0 <= due < plan.seconds and age > 0 for due, age in kept[name])
        assert figures["growth"] == figures["p99_last_ms"] / figures["p99_first_ms"]
        assert figures["p99_services"] == figures["p99_ms"] / able["service_ms"]
        assert figures["p99_frames"] == pytest.approx(figures["p99_ms"] / (1000 / able["rate"]))
    assert [ratio["target"] for ratio in found["ratios"]] == ["≤ 4", "", "≤ 1.5", ""]
    assert "p99, rounds" in shown(overload, found)
    drawn = chart.draw(overload, found, stand.folder / "overload.png")
    assert drawn is not None
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_models_pressed_directly_answer_in_every_way(stand: service.Bench) -> None:
    found = to_the_limit.pressed_directly(stand, to_the_limit.Plan(seconds=0.5), None)
    rates = [found[to_the_limit.figure(way)] for way in to_the_limit.WAYS]
    assert to_the_limit.WAYS == ((1, 8), (8, 1), (8, 2))
    assert all(1 < rate <= 1.05 / to_the_limit.MODEL_S for rate in rates)
    assert found["rate"] == max(rates)


@pytest.mark.parametrize("variant", ["fp32-raw", "shared"])
def test_calls_to_triton_are_counted(stand: service.Bench, variant: str) -> None:
    arguments = ["benchmarks.triton_wire", variant, f"--triton={stand.triton_url}", "--warm-up=0.1", "--seconds=0.3"]
    arguments += ["--triton-pids", *map(str, stand.triton_pids)]
    found = Measured(**harness.answer(arguments, stand.cores.tested, 60))
    figures = turns.of(found)
    assert found.frames >= 1
    assert set(triton_wire.VARIANTS) >= {variant}
    assert figures["rate"] > 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert {"cpu_us", "triton_us", "faults"} <= set(figures)


def test_two_workers_share_the_sessions(stand: service.Bench) -> None:
    plan = workers.Plan(seconds=0.8, warm_up_s=0.3, turns=1, variants=("2",))
    found = turns.run("workers", plan, lambda name: workers.measure_turn(stand, plan, int(name)), workers.RATIOS, print)
    (figures,) = found["turns"]["2"]
    assert 1 <= figures["fullest"] <= 2
    assert 1 <= figures["batch"] <= 8
    assert figures["per_cpu_s"] == pytest.approx(2e6 / figures["cpu_us"])
    (ratio,) = found["ratios"]
    assert ratio["label"].startswith("sessions of the fullest")
    assert "two workers, 24 sessions" in shown(workers, found)


def test_a_lone_session_is_measured_beside_one_of_eight(stand: service.Bench) -> None:
    plan = lone.Plan(seconds=1.0, warm_up_s=0.5)
    found = lone.measure_turn(stand, plan, "lone15")
    assert found["answered"] > 0.5
    assert found["cpu_us"] > 0
    assert {name for ratio in lone.RATIOS for name in (ratio.over, ratio.under)} == set(lone.LOADS)
