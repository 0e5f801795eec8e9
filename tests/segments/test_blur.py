"""Faces in a film are hidden for good, also in the frames in which nobody finds them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from app.pipeline.opening import opened
from app.protocol.result import KEYPOINT_NAMES, Box, Detection, FrameResult, Image, Keypoint, Pose
from app.segments.analyze import analyze_film, stream_settings
from app.segments.blur import CELLS, HOLD_S, Faces
from app.segments.keys import Mode
from app.segments.sheet import Sheet
from app.settings import Settings, TritonSettings
from tests.segments.test_analyze import analyzed
from tests.support.clip import Pixels
from tests.support.movie import movie, shown
from tests.support.seeing import Sight
from tests.support.service import require_environment

NOISE = np.random.default_rng(2).integers(0, 255, (240, 320, 3), np.uint8)


def sheet() -> Sheet:
    """Noise: whatever is blurred is seen to be."""
    return Sheet(av.VideoFrame.from_ndarray(NOISE, format="rgb24"))


def detail(one: Sheet) -> Pixels:
    """Of each 8x8 block, how rough it is: rows and columns of blocks."""
    y = one.planes[0].astype(float)
    return y.reshape(30, 8, 40, 8).std(axis=(1, 3)) > 10


def result(*, face: Box | None = None, nose: tuple[float, float] | None = None) -> FrameResult:
    found = FrameResult(Image(320, 240))
    if face is not None:
        found.objects.append(Detection(1, "face", 0.8, face))
    if nose is not None:
        x, y = nose
        spots = {"nose": (x, y), "left_eye": (x + 10, y - 10), "right_eye": (x - 10, y - 10)}
        points = tuple(Keypoint(n, *spots.get(n, (0.0, 0.0)), 0.9 if n in spots else 0.0) for n in KEYPOINT_NAMES)
        found.poses.append(Pose(0.9, Box(x - 50, y - 50, x + 50, y + 150), points))
    return found


def test_a_detected_face_is_blurred_with_a_margin_and_nothing_else_is() -> None:
    one = sheet()
    Faces().hide(one, result(face=Box(80, 80, 120, 128)), 0.0)
    rough = detail(one)
    assert not rough[10:16, 10:15].any()
    assert rough[:5].all()
    assert rough[21:].all()
    assert rough[:, 20:].all()
    for plane, half in zip(one.planes, (1, 2, 2), strict=True):
        part = plane[80 // half : 128 // half, 80 // half : 120 // half].astype(float)
        assert np.abs(np.diff(part, axis=0)).max() < 16, "no detail is left, also in the colours"


def test_a_head_is_known_by_its_pose_alone() -> None:
    one = sheet()
    Faces().hide(one, result(nose=(160, 120)), 0.0)
    rough = detail(one)
    assert not rough[11:17, 17:23].any()
    assert rough[:, :10].all()
    assert rough[26:].all()


def test_a_face_that_flickers_stays_blurred_a_while_and_no_longer() -> None:
    faces, face = Faces(), result(face=Box(80, 80, 120, 120))
    faces.hide(sheet(), face, 1.0)
    for at, hidden in ((1.04, True), (1.0 + HOLD_S - 0.01, True), (1.0 + HOLD_S + 0.01, False)):
        one = sheet()
        faces.hide(one, result(), at)
        assert bool(detail(one)[11:14, 11:14].any()) is not hidden, at


def test_a_face_that_moves_is_not_blurred_where_it_was() -> None:
    faces = Faces()
    faces.hide(sheet(), result(face=Box(80, 80, 140, 140)), 1.0)
    one = sheet()
    faces.hide(one, result(face=Box(90, 80, 150, 140)), 1.04)
    assert detail(one)[:, :8].all()


def test_edges_of_the_picture_and_boxes_beyond_it() -> None:
    for box in (Box(-50, -50, 20, 20), Box(300, 220, 400, 400), Box(500, 500, 600, 600), Box(5, 5, 5, 5)):
        one = sheet()
        Faces().hide(one, result(face=box), 0.0)
        assert detail(one)[8:20, 8:30].all()


def test_a_frame_that_was_not_analysed_is_blurred_as_a_whole(tmp_path: Path) -> None:
    film = movie(tmp_path / "in.mp4", seconds=0.4)
    calls: list[int] = []

    def fails(_: int) -> bool:
        calls.append(1)
        return len(calls) > 4

    report, out, lines = analyzed(film, tmp_path, "blur_faces", client=Sight(fails=fails))
    assert report.failed > 0
    for line, (_, picture) in zip(lines, shown(out), strict=True):
        if "error" in line:
            steps = np.abs(np.diff(picture.astype(int), axis=1)).max()
            assert steps < 30, "nothing but some cells is to be seen"
            assert len(picture) / CELLS > 30


def test_the_real_detector_finds_no_face_where_one_was(tmp_path: Path) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    film = movie(tmp_path / "in.mp4", seconds=0.4, width=480, height=360)

    async def run() -> list[set[str]]:
        settings = Settings(ocr="off", state_dir=tmp_path / "state")
        found = []
        async with opened(settings, settings.ocr) as one:

            async def look(source: Path, name: str, mode: Mode) -> set[str]:
                target, lines = tmp_path / f"{name}.mp4", tmp_path / f"{name}.jsonl"
                wish = stream_settings(settings.pipeline, mode)
                await analyze_film(source, target, lines, mode, one.pipeline, wish)
                return names(lines)

            found.append(await look(film, "before", "results_only"))
            found.append(await look(film, "blurred", "blur_faces"))
            found.append(await look(tmp_path / "blurred.mp4", "after", "results_only"))
        return found

    before, blurred, after = asyncio.run(run())
    assert "face" in before & blurred
    assert "face" not in after


def names(lines: Path) -> set[str]:
    every: list[dict[str, Any]] = [json.loads(line) for line in lines.read_bytes().splitlines()]
    assert len(every) == 10
    return {one["class_name"] for line in every for one in line["objects"]}


@pytest.mark.parametrize("size", [(16, 16), (64, 2)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    one = Sheet(av.VideoFrame.from_ndarray(np.zeros((*size, 3), np.uint8), format="rgb24"))
    Faces().hide(one, result(face=Box(0, 0, 10, 10), nose=(3, 3)), 0.0)
    Faces().hide(one, None, 0.0)
    assert one.planes[0].shape == size
