"""The benchmark `segments`, short: a video's way and the bare pipeline see the same frames."""

from __future__ import annotations

import io

from rich.console import Console

from app.settings import TritonSettings
from benchmarks import segments
from benchmarks.segments import Plan
from tests.support.service import require_environment


def test_a_short_run_gives_a_ratio_and_a_table() -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    lines: list[str] = []
    variants = ("canned-pipeline", "canned-annotate")
    found = segments.measure(Plan(frames=15, turns=1, variants=variants), lines.append)
    assert len(lines) == 2
    for variant in variants:
        (turn,) = found["turns"][variant]
        assert turn["frames"] == 60
        assert turn["rate"] > 0
    rate, processor = found["ratios"]
    assert rate["label"] == "canned models: video in, drawn video out, over the pipeline alone"
    assert rate["median"] > 0
    assert 0 < processor["median"] < 1, "what is done more costs more"
    out = io.StringIO()
    segments.show(found, Console(file=out, width=132))
    assert "drawn video out" in out.getvalue()
