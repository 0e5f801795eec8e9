"""The benchmark itself, with tiny counts: it runs from end to end, and what it compares gives the same answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from app.settings import ROOT, TritonSettings
from benchmarks import canned, live
from benchmarks.harness import BenchmarkError
from benchmarks.load import masked
from tests.support.service import require_environment


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`live.json` of a run of a blink, and what was printed."""
    require_environment(TritonSettings().triton_python, "make triton-env")
    folder = tmp_path_factory.mktemp("bench")
    counts = ["--seconds", "0.6", "--turns", "1", "--sessions", "2", "--variants", "ours,naive,floor,floor-together"]
    done = bench("live", *counts, "--output", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "live.json").read_text())
    return {**found, "printed": done.stdout}


def test_every_variant_answers_frames(results: dict[str, Any]) -> None:
    for name in ("ours", "naive", "floor", "floor-together"):
        (turn,) = results["turns"][name]
        assert turn["frames"] >= 1, name
        assert turn["cpu_s"] > 0, name
        # The kernel counts in hundredths of a second: the naive service's few calls may take less.
        assert turn["triton_cpu_s"] > 0 or name == "naive", name
        assert 0 < turn["p50_ms"] <= turn["p99_ms"], name


def test_ratios_are_those_of_the_turns_and_judged(results: dict[str, Any]) -> None:
    ours, naive, floor = (results["turns"][name][0] for name in ("ours", "naive", "floor"))
    told = {ratio["label"].partition(", doing the naive one's work: ")[2]: ratio for ratio in results["ratios"]}
    rate = (ours["frames"] / ours["seconds"]) / (naive["frames"] / naive["seconds"])
    assert told["× a naive service, by rate"]["median"] == pytest.approx(rate)
    assert told["× a naive service, by rate"]["met"] is None
    for label, other, wanted in (("× a naive service", naive, 40), ("of the bare loop, a call a frame", floor, 0.7)):
        cpu = (other["cpu_s"] / other["frames"]) / (ours["cpu_s"] / ours["frames"])
        ratio = told[f"{label}, by CPU"]
        assert ratio["median"] == pytest.approx(cpu)
        assert ratio["target"] == f"≥ {wanted:g}"
        assert ratio["met"] is (cpu >= wanted)
    assert "of the bare loop, eight frames a call, by CPU" in told


def test_what_was_missed_is_said_at_the_end(results: dict[str, Any]) -> None:
    missed = [ratio["label"] for ratio in results["ratios"] if ratio["met"] is False]
    for label in missed:
        assert f"missed: live: {label}: " in results["printed"]
    assert ("every target met" in results["printed"]) is not bool(missed)


def test_the_machine_and_the_table_are_there(results: dict[str, Any]) -> None:
    machine = results["machine"]
    assert machine["cores"] >= 1
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.search(r"naive .*\d", results["printed"])


def test_all_find_the_boxes_that_the_canned_models_give(results: dict[str, Any]) -> None:
    """The canvas holds a 640x480 frame from row 80 on, at its own size."""
    x1, y1, x2, y2 = canned.PERSON[:4]
    for name in ("ours", "naive"):
        found = results["samples"][name]
        assert {detection["class_id"] for detection in found["objects"]} == {0, 16}, name
        person = next(detection["box"] for detection in found["objects"] if detection["class_id"] == 0)
        assert person == pytest.approx({"x1": x1, "y1": y1 - 80, "x2": x2, "y2": y2 - 80}, abs=0.05), name
        (pose,) = found["poses"]
        assert pose["keypoints"][16]["y"] == pytest.approx(y2 - 80, abs=0.05), name
    for name in ("floor", "floor-together"):
        assert results["samples"][name]["objects"][0][:4] == pytest.approx([x1, y1 - 80, x2, y2 - 80])


def test_a_wrong_answer_is_no_result() -> None:
    def sample(x1: float) -> dict[str, Any]:
        return {"objects": [{"box": {"x1": x1, "y1": 0, "x2": 9, "y2": 9}}], "poses": []}

    live.agree({"ours": sample(1.0), "naive": sample(1.01)})
    with pytest.raises(BenchmarkError, match="naive and ours"):
        live.agree({"ours": sample(1.0), "naive": sample(2.0)})
    live.agree({"ours": sample(1.0), "floor": {"objects": [[1.0, 0, 9, 9, 0.9, 0]], "poses": []}})
    with pytest.raises(BenchmarkError, match="floor and ours"):
        live.agree({"ours": sample(1.0), "floor": {"objects": [[2.0, 0, 9, 9, 0.9, 0]], "poses": []}})
    with pytest.raises(BenchmarkError, match="floor and ours"):
        live.agree({"ours": sample(1.0), "floor": {"objects": [], "poses": []}})


def test_an_unknown_name_is_refused_with_those_known() -> None:
    done = bench("lvie")
    assert done.returncode == 2
    assert "live" in done.stderr


@pytest.mark.parametrize(("size", "head"), [(5, 6), (200, 8), (70_000, 14)])
def test_the_load_clients_frames_are_rfc_6455s(size: int, head: int) -> None:
    frame = masked(b"x" * size, 2)
    assert len(frame) == head + size
    assert frame[0] == 0x82
    assert frame[1] & 0x80
    assert int.from_bytes(frame[2 : head - 4] or bytes([frame[1] & 0x7F]), "big") == size
