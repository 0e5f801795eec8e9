"""The benchmarks of single pieces, short: every variant runs, what they compare gives the same answers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from app.pipeline.boxes import letterbox
from app.pipeline.decode import decode_into, inspect
from benchmarks import chart, flow, frame_path, inner, overload, plans, postprocess, sessions, turns
from benchmarks.harness import BenchmarkError
from benchmarks.photographs import write


def shown(benchmark: Any, results: dict[str, Any]) -> str:
    out = io.StringIO()
    benchmark.show(results, Console(file=out, width=150))
    return out.getvalue()


def test_frame_path_runs_and_counts_the_faults_of_glibcs_defaults(tmp_path: Path) -> None:
    plan = frame_path.Plan(seconds=0.1, warm_up_s=0.05, turns=1, variants=("naive", "ours"))
    results = frame_path.measure(plan, lambda line: None)
    naive, ours = (results["variants"][name] for name in plan.variants)
    assert naive["faults"]["median"] > 100 > ours["faults"]["median"]
    (ratio,) = results["ratios"]
    assert ratio["median"] == pytest.approx(naive["cpu_us"]["median"] / ours["cpu_us"]["median"])
    assert ratio["target"] == "≥ 4"
    text = shown(frame_path, results)
    assert "imdecode, numpy to FP32" in text
    assert "page faults a frame" in text
    drawn = chart.draw(frame_path, results, tmp_path / "frame_path.png")
    assert drawn is not None
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_all_ways_to_an_input_give_the_same_picture(tmp_path: Path) -> None:
    """Their decoders and their tensors' layouts differ, not what is seen."""
    (jpeg,) = [clip.read_bytes() for clip in write(tmp_path, 1).rglob("000.jpg")]
    canvas = np.full((640, 640, 3), 114, np.uint8)
    ours = frame_path._ours()
    ours(jpeg)
    info = inspect(jpeg, max_bytes=2**21, max_pixels=2**24)
    decode_into(jpeg, info, letterbox(info.width, info.height, 640, 640), canvas, border=False)
    tensor, *_ = frame_path._naive(jpeg)
    blob = frame_path._blob(jpeg)
    expected = canvas.transpose(2, 0, 1)[None] / 255
    assert np.abs(tensor - expected).mean() < 0.01
    assert np.abs(blob - expected).mean() < 0.01


def test_a_flow_that_is_true_has_no_error_and_none_at_all_has_the_motions() -> None:
    (matrix, *_) = flow.warps()
    true = flow.truth(matrix)
    assert flow.error(true, true) == pytest.approx(0, abs=1e-6)
    still = np.zeros((120, 160, 2), np.float32)
    assert flow.error(still, true) == pytest.approx(float(np.hypot(*np.moveaxis(true, -1, 0)).mean()), rel=0.1)


@pytest.mark.parametrize("variant", ["farneback-160", "dis-160"])
def test_flow_finds_the_known_motion(variant: str) -> None:
    step, known = flow.work(variant, [])
    step(0)
    assert known["epe_px"] < 1.5
    assert known["epe_px"] <= known["epe_worst_px"]


@pytest.mark.parametrize("count", postprocess.COUNTS)
def test_every_way_of_postprocess_finds_the_same_objects(count: int) -> None:
    expected = postprocess.rows(postprocess.work(f"loop-{count}", [])[0](0))
    assert len(expected) == {0: 0, 240: 30, 1500: 184}[count]
    for reader in postprocess.READERS:
        step, known = postprocess.work(f"{reader}-{count}", [])
        found = postprocess.rows(step(0))
        assert known["objects"] == len(found) == len(expected), reader
        assert found == pytest.approx(expected, abs=0.01), reader


def test_postprocess_takes_no_variant_that_finds_other_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = postprocess.picked
    monkeypatch.setattr(postprocess, "picked", lambda raw: whole(raw)[:20])  # fewer rows than there are objects
    with pytest.raises(BenchmarkError, match="picked-240: 19 objects, of the Python loop 30"):
        postprocess.work("picked-240", [])
    monkeypatch.setattr(postprocess, "picked", lambda raw: whole(raw) + np.float32([3, 0, 3, 0, 0, 0]))
    with pytest.raises(BenchmarkError, match="or other boxes"):
        postprocess.work("picked-240", [])


def test_timed_counts_what_ran() -> None:
    calls: list[int] = []
    figures = inner.timed(calls.append, 0.01, 0.02)
    assert calls == list(range(len(calls)))
    assert 1 <= figures["steps"] < len(calls)
    assert figures["cpu_us"] > 0
    assert figures["p50_us"] <= figures["p99_us"]


def test_a_variant_that_fails_is_quoted() -> None:
    with pytest.raises(BenchmarkError, match="KeyError: 'nothing'"):
        inner.ask("postprocess", "nothing-0", turns.Plan(seconds=0.1, warm_up_s=0.1))


def test_ratios_and_targets_turn_by_turn() -> None:
    found = {"a": [{"x": 6.0}, {"x": 8.0}, {"x": 9.0}], "b": [{"x": 2.0}, {"x": 2.0}, {"x": 9.0}]}
    ratios = (turns.Ratio("a over b", "x", "a", "b", at_least=4), turns.Ratio("a over c", "x", "a", "c"))
    (ratio,) = turns.compared(found, ratios)
    assert ratio == {"label": "a over b", "median": 3.0, "least": 1.0, "most": 4.0, "target": "≥ 4", "met": False}
    both = turns.Ratio("", "x", "a", "b", at_least=1, at_most=2)
    assert both.target == "≥ 1 and ≤ 2"
    assert [both.met(value) for value in (0.9, 1, 2, 2.1)] == [False, True, True, False]


def test_missed_targets_are_named() -> None:
    found = {"a": [{"x": 6.0}], "b": [{"x": 2.0}]}
    ratios = (
        turns.Ratio("a over b", "x", "a", "b", at_least=4),
        turns.Ratio("b over a", "x", "b", "a", at_least=0.1),
        turns.Ratio("untold", "x", "a"),
    )
    results = {"ratios": turns.compared(found, ratios)}
    assert [ratio["label"] for ratio in turns.judged(results)] == ["a over b", "b over a"]
    assert turns.missed(results) == ["a over b: 3, wanted ≥ 4"]


def test_a_figure_alone_may_have_a_target() -> None:
    (ratio,) = turns.compared({"a": [{"x": 6.0}, {"x": 8.0}]}, (turns.Ratio("a", "x", "a", at_most=7),))
    assert ratio == {"label": "a", "median": 7.0, "least": 6.0, "most": 8.0, "target": "≤ 7", "met": True}


@pytest.mark.parametrize("count", sessions.COUNTS)
def test_first_and_second_frames_of_all_sessions_lie_before_the_window(count: int) -> None:
    for plan in (sessions.Plan(), sessions.plan_from(**plans.BRIEF["sessions"])):
        assert sessions.warm_up(plan, count) > 2 * count / plan.rate
        assert plan.seconds > count / plan.rate, "every session has a frame in it"


def test_overload_ages_are_cut_by_when_results_came() -> None:
    ages = [[0.0, 100.0], [0.5, 200.0], [3.9, 300.0], [5.8, 400.0]]
    assert overload.over_time(ages, 6.0) == [200.0, 300.0]
    assert overload.over_time([[0.9, 150.0]], 6.0) == [150.0]


@pytest.mark.parametrize(("height", "width"), [(480, 640), (720, 1280), (1080, 1920)])
def test_c1_frame_path_holds_exact_against_fast_at_three_sizes(tmp_path: Path, height: int, width: int) -> None:
    clips = [[path.read_bytes()] for path in write(tmp_path, 1).rglob("000.jpg")]
    enlarged = clips[0][0] if height == 480 else frame_path._enlarged(clips[0][0], height)
    info = inspect(enlarged, max_bytes=2**21, max_pixels=2**24)
    assert (info.width, info.height) == (width, height)
    for variant in frame_path.VARIANTS:
        if height != 480 and variant.endswith(str(height)):
            step, _ = frame_path.work(variant, clips)
            step(0)
