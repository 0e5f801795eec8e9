"""Masks, oriented boxes and classifications in the videos of `segments` and `send -o`, and in supervision's types.

The models are the tiny ones of tests/pipeline/test_model_stages.py on a real Triton.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import pytest
import simplejpeg
from supervision.config import ORIENTED_BOX_COORDINATES

from app.client import to_supervision
from app.settings import ROOT
from tests.pipeline.test_model_stages import BLUE, HEIGHT, RED, WIDTH, frame, url
from tests.segments.films import FPS, assert_lines, run
from tests.support import clip
from tests.support.movie import shown
from tests.support.service import Service, serving
from tests.test_send import send

__all__ = ["url"]
FRAMES = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = np.asarray(simplejpeg.decode_jpeg(frame(), "RGB"))
    return clip.write_mp4(tmp_path_factory.mktemp("films") / "still.mp4", [picture] * FRAMES, fps=FPS)


@pytest.fixture(scope="module")
def service(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), {"TRITON_URL": url, "OCR": "off"}) as service:
        yield service


def assert_all_is_drawn(video: Path, source: Path) -> None:
    """Asserts what the last frame shows, where it differs from the source's."""
    before, after = [list(shown(path))[-1][1].astype(int) for path in (source, video)]
    changed = np.abs(after - before).max(axis=2) > 12
    for x1, _, x2, y2 in (RED, BLUE):
        # Within the outline and apart from lines and labels: half of the mask's colour, half of the frame's.
        inside = (slice(y2 - 12, y2 - 6), slice(x1 + 12, x2 - 12))
        assert changed[inside].mean() > 0.9
        tint = 2 * after[inside] - before[inside]
        assert np.abs(tint - np.median(tint, axis=(0, 1))).mean() < 12  # one colour
    tilted = cv2.boxPoints(((160.0, 120.0), (120.0, 40.0), np.degrees(0.5))).astype(int)
    for (x1, y1), (x2, y2) in zip(tilted, np.roll(tilted, 1, axis=0), strict=True):
        x, y = (x1 + x2) // 2, (y1 + y2) // 2
        assert changed[y - 3 : y + 4, x - 3 : x + 4].any()  # each side of the oriented box
    assert changed[2:12, 2:40].mean() > 0.8  # what the whole frame shows, in its corner
    assert not changed[200:, :60].any()


def test_segments_draws_what_every_stage_found(url: str, source: Path, tmp_path: Path) -> None:
    final = Path(run(["submit", str(source)], {"TRITON_URL": url}, tmp_path / "log", folder=tmp_path / "out"))
    lines = assert_lines(final.with_suffix(".jsonl"), FRAMES)
    for line in lines:
        assert [len(line[part]) for part in ("segments", "oriented", "classifications")] == [2, 2, 1]
        assert all(line["stages"][stage]["status"] == "ok" for stage in ("detect", "segment", "obb", "classify"))
    assert_all_is_drawn(final, source)


def test_send_writes_and_draws_what_every_stage_found(service: Service, source: Path, tmp_path: Path) -> None:
    assert send(service, source, "-o", tmp_path / "out.mp4").code == 0
    assert_all_is_drawn(tmp_path / "out.mp4", source)
    results = send(service, source).results
    assert len(results) == FRAMES
    found = results[-1].frame
    masks, _ = to_supervision(found, "segments")
    assert masks.mask.shape == (2, HEIGHT, WIDTH)
    assert masks.data["class_name"].tolist() == ["person", "dog"]
    for mask, (x1, y1, x2, y2) in zip(masks.mask, (RED, BLUE), strict=True):
        right = np.zeros((HEIGHT, WIDTH), bool)
        right[y1:y2, x1:x2] = True
        assert (mask & right).sum() / (mask | right).sum() > 0.9
    oriented, _ = to_supervision(found, "oriented")
    assert oriented.data[ORIENTED_BOX_COORDINATES].shape == (2, 4, 2)
    assert oriented.data[ORIENTED_BOX_COORDINATES][0].mean(axis=0) == pytest.approx((160, 120), abs=0.1)
    every, _ = to_supervision(found)
    assert set(every.data["field"].tolist()) == {"objects", "segments", "oriented"}


def assert_outlined(video: Path, line: dict[str, Any]) -> None:
    """Asserts that in the last frame each object's box has the colour that the stage from outside found for it."""
    picture = list(shown(video))[-1][1].astype(int)
    assert len(line["colours"]) == len(line["objects"]) == 2
    for found in line["colours"]:
        x, y1, y2 = (round(found["box"][side]) for side in ("x1", "y1", "y2"))
        side = picture[y1 + 40 : y2 - 40, max(0, x - 1) : x + 2]
        assert np.abs(side - found["rgb"]).max(axis=2).min(axis=1).mean() < 30


def test_parts_of_stages_from_outside_are_drawn_too(canned_triton: str, tmp_path: Path) -> None:
    source = clip.write_mp4(tmp_path / "pan.mp4", clip.Pan(step=(4, 2), count=8).pictures(), fps=FPS)
    plugins = {"TRITON_URL": canned_triton, "OCR": "off", "PLUGINS": str(ROOT / "examples/stages/average_colour")}
    final = Path(run(["submit", str(source)], plugins, tmp_path / "log", folder=tmp_path / "out"))
    assert_outlined(final, assert_lines(final.with_suffix(".jsonl"), 8)[-1])
    (tmp_path / "service").mkdir()
    with serving(
        tmp_path / "service", plugins
    ) as service:  # the sender has no plug-ins: `ready.stages` says how to draw
        assert send(service, source, "-o", tmp_path / "out.mp4").code == 0
        last = orjson.loads(send(service, source).out.splitlines()[-1])
    assert_outlined(tmp_path / "out.mp4", last)
