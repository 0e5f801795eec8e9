"""The way of a live frame through `app/`, as `python -m benchmarks.frame_way` counts it."""

from __future__ import annotations

import pytest

from benchmarks import frame_way

FILES, CALLS = 26, 190
"""The most that a frame visits. A change that shortens the way lowers them."""


def test_a_live_frame_visits_few_files_and_calls_few_functions(capsys: pytest.CaptureFixture[str]) -> None:
    frame_way.main()
    first, _, functions = capsys.readouterr().out.partition("\n")
    files, calls = (int(part.split()[0]) for part in first.split(", "))
    assert 5 < files <= FILES
    assert 50 < calls <= CALLS
    for visited in ("live/session.py", "pipeline/multimodal.py", "Pipeline.analyze"):
        assert visited in functions
