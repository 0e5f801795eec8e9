"""Faces in a film are hidden for good, also in the frames in which nobody finds them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from app.pipeline.startup import open_pipeline
from app.protocol.result import KEYPOINT_NAMES, Box, Detection, FrameResult, Image, Keypoint, Pose
from app.segments.analyze import analyze_film, stream_settings
from app.segments.blur import CELLS, HOLD_S, Faces
from app.segments.keys import Mode
from app.segments.sheet import Sheet
from app.settings import Settings, TritonSettings
from tests.segments.test_analyze import analyzed
from tests.support.clip import Pixels
from tests.support.movie import movie, shown
from tests.support.seeing import SIDE, Sight, place, squares
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


def found(*boxes: Box | None, name: str = "face") -> FrameResult:
    """Boxes of one class; None: one that is missed."""
    one = FrameResult(Image(320, 240))
    one.objects.extend(Detection(1, name, 0.8, box) for box in boxes if box is not None)
    return one


def rough(one: Sheet, box: Box) -> float:
    """Share of the blocks in the box that can be made out."""
    x1, y1, x2, y2 = (int(side) // 8 for side in (box.x1, box.y1, box.x2, box.y2))
    return float(detail(one)[y1:y2, x1:x2].mean())


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


def test_a_face_that_is_found_late_is_blurred_where_it_was_before() -> None:
    faces, face = Faces(), Box(80, 80, 120, 120)
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    sheets = [sheet() for _ in times]
    for at, one in zip(times, sheets, strict=True):
        faces.hide(one, found(face if at == 0.7 else None), at)
    for at, one in zip(times, sheets, strict=True):
        assert rough(one, face) == (0 if 0.7 - at < HOLD_S else 1), at


def test_between_two_finds_a_face_is_blurred_and_not_before_the_first_of_them_again() -> None:
    faces, before, after = Faces(), Box(80, 80, 120, 120), Box(88, 80, 128, 120)
    sheets = [sheet() for _ in range(4)]
    for number, one in enumerate(sheets):
        faces.hide(one, found({1: before, 3: after}.get(number)), 10 + number / 10)
    assert [rough(one, Box(88, 88, 120, 112)) for one in sheets] == [0, 0, 0, 0]
    assert detail(sheets[1])[:, 15:].all(), "where it was seen it is not looked for elsewhere"
    assert not detail(sheets[2])[10:15, 10:16].any(), "in between it may be where it was, or where it comes to be"


def test_pictures_are_handed_back_in_order_once_no_face_can_come_any_more() -> None:
    faces = Faces()
    sheets = [sheet() for _ in range(8)]
    back = [faces.hide(one, found(), number / 8) for number, one in enumerate(sheets)]
    assert [len(some) for some in back] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [one for some in (*back, faces.rest()) for one in some] == sheets
    assert faces.rest() == []


def test_no_more_pictures_are_kept_than_there_is_room_for() -> None:
    faces = Faces(most_pixels=3 * 320 * 240)
    back = [len(faces.hide(sheet(), found(), number / 1000)) for number in range(6)]
    assert back == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("behind", [Box(176, 104, 232, 160), Box(174, 104, 220, 150)])
def test_a_face_beside_one_that_is_found_is_not_forgotten(behind: Box) -> None:
    faces, close = Faces(), Box(20, 40, 180, 200)
    middle = Box(184, 112, 216, 144)
    faces.hide(sheet(), found(close, behind), 0.0)
    for number, boxes in enumerate([(close,), (Box(0, 40, 160, 200),), ()], 1):
        one = sheet()
        faces.hide(one, found(*boxes), number * 0.04)
        assert rough(one, middle) == 0, number


def test_one_find_stands_for_one_face_alone() -> None:
    faces, left, right = Faces(), Box(80, 80, 140, 140), Box(100, 80, 160, 140)
    faces.hide(sheet(), found(left, right), 0.0)
    one = sheet()
    faces.hide(one, found(right), 0.04)
    assert rough(one, Box(72, 88, 152, 136)) == 0


def test_a_person_without_a_face_is_blurred_above() -> None:
    one = sheet()
    Faces().hide(one, found(Box(120, 30, 200, 230), name="person"), 0.0)
    assert rough(one, Box(128, 32, 192, 104)) == 0
    assert detail(one)[16:].all()


@pytest.mark.parametrize("squat", [Box(40, 40, 280, 200), Box(80, 40, 240, 240)])
def test_of_a_person_seen_close_or_lying_more_is_blurred(squat: Box) -> None:
    one = sheet()
    Faces().hide(one, found(squat, name="Person"), 0.0)
    assert rough(one, Box(squat.x1 + 8, squat.y1 + 8, squat.x2 - 8, squat.y1 + 100)) == 0


def test_of_a_person_with_a_face_the_face_alone_is_blurred() -> None:
    with_pose, with_face = result(nose=(160, 120)), found(Box(120, 30, 200, 230), name="person")
    with_pose.objects.append(Detection(0, "person", 0.9, Box(105, 65, 215, 275)))
    with_face.objects.append(Detection(1, "face", 0.9, Box(144, 40, 176, 72)))
    for seen in (with_pose, with_face):
        one = sheet()
        Faces().hide(one, seen, 0.0)
        assert 0.01 < 1 - detail(one).mean() < 0.12


def test_a_face_hides_no_other_persons() -> None:
    """Two persons, one before the other: a pose with its head, and its face, are one's alone."""
    seen = result(nose=(160, 120), face=Box(145, 100, 175, 135))
    for x in (0, 60):
        seen.objects.append(Detection(0, "person", 0.9, Box(110 + x, 70, 210 + x, 270)))
    one = sheet()
    Faces().hide(one, seen, 0.0)
    assert rough(one, Box(184, 80, 256, 160)) == 0


def test_a_pose_without_a_head_is_blurred_above() -> None:
    seen = FrameResult(Image(320, 240))
    points = tuple(Keypoint(name, 160.0, 60.0, 0.1) for name in KEYPOINT_NAMES)
    seen.poses.append(Pose(0.9, Box(120, 30, 200, 230), points))
    one = sheet()
    Faces().hide(one, seen, 0.0)
    assert rough(one, Box(128, 32, 192, 104)) == 0


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


def test_a_film_whose_face_is_found_late_shows_it_nowhere(tmp_path: Path) -> None:
    """The square is the face; it is missed in the first six frames, and in some on the way."""

    class Late(Sight):
        def _look(self, images: Any) -> Any:
            said = super()._look(images)
            for image, detections in zip(images, said["detections"], strict=True):
                x = np.flatnonzero(image[..., 1].max(axis=0) > 180)[0]
                number = round((x / 2 - 8) / 3)
                detections[:, 5] = 1  # a face
                detections[:, 4] *= number >= 5 and number % 5 != 0
            said.pop("poses", None)
            return said

    client = Late()
    client._models = {"yolo": client._models["yolo"]}
    film = squares(tmp_path / "in.mp4", 30)
    report, out, lines = analyzed(film, tmp_path, "blur_faces", client=client)
    assert (report.frames, report.failed) == (30, 0)
    assert [bool(line["objects"]) for line in lines] == [n >= 5 and n % 5 != 0 for n in range(30)]
    pictures = shown(out)
    assert [at for at, _ in pictures] == pytest.approx(np.arange(30) / 25)
    for number, (_, picture) in enumerate(pictures):
        x, y = place(number)
        edge = picture[y + 8 : y + SIDE - 8, x + SIDE - 8 : x + SIDE + 8].astype(int)
        steps = np.abs(np.diff(edge, axis=1)).max()
        assert steps < 60, f"frame {number}: its edge is to be seen"


def test_the_real_detector_finds_no_face_where_one_was(tmp_path: Path) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    film = movie(tmp_path / "in.mp4", seconds=0.4, width=480, height=360)

    async def run() -> list[set[str]]:
        settings = Settings(ocr="off", state_dir=tmp_path / "state")
        found = []
        async with open_pipeline(settings, settings.ocr) as one:

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
