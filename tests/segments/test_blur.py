"""Faces in a video are blurred irreversibly, also in the frames in which they are not found."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from app.pipeline.stages.detect import Detection
from app.pipeline.stages.pose import KEYPOINT_NAMES, Keypoint, Pose
from app.pipeline.startup import open_pipeline
from app.protocol.result import Box, FrameResult, Image
from app.segments.blur import CELLS, HOLD_S, FaceBlur
from app.segments.keys import Mode
from app.segments.video import YuvFrame
from app.segments.video.processor import analyze_video, stream_settings
from app.settings import Settings, TritonSettings
from tests.segments.test_analyze import analyzed
from tests.support.clip import Pixels
from tests.support.movie import movie, shown
from tests.support.seeing import SIDE, Sight, place, squares
from tests.support.service import require_environment

NOISE = np.random.default_rng(2).integers(0, 255, (240, 320, 3), np.uint8)


def noise() -> YuvFrame:
    """A frame of noise, in which every blurred block shows."""
    return YuvFrame(av.VideoFrame.from_ndarray(NOISE, format="rgb24"))


def detail(frame: YuvFrame) -> Pixels:
    """Whether each 8x8 block has detail: rows and columns of blocks."""
    y = frame.planes[0].astype(float)
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
    """A result with boxes of one class; None stands for a face that is missed."""
    frame_result = FrameResult(Image(320, 240))
    frame_result.objects.extend(Detection(1, name, 0.8, box) for box in boxes if box is not None)
    return frame_result


def rough(frame: YuvFrame, box: Box) -> float:
    """The share of the blocks in the box that still have detail."""
    x1, y1, x2, y2 = (int(side) // 8 for side in (box.x1, box.y1, box.x2, box.y2))
    return float(detail(frame)[y1:y2, x1:x2].mean())


def test_a_detected_face_is_blurred_with_a_margin_and_nothing_else_is() -> None:
    frame = noise()
    FaceBlur().add(frame, result(face=Box(80, 80, 120, 128)), 0.0)
    rough = detail(frame)
    assert not rough[10:16, 10:15].any()
    assert rough[:5].all()
    assert rough[21:].all()
    assert rough[:, 20:].all()
    for plane, half in zip(frame.planes, (1, 2, 2), strict=True):
        part = plane[80 // half : 128 // half, 80 // half : 120 // half].astype(float)
        assert np.abs(np.diff(part, axis=0)).max() < 16, "no detail is left, also in the colours"


def test_a_head_is_known_by_its_pose_alone() -> None:
    frame = noise()
    FaceBlur().add(frame, result(nose=(160, 120)), 0.0)
    rough = detail(frame)
    assert not rough[11:17, 17:23].any()
    assert rough[:, :10].all()
    assert rough[26:].all()


def test_a_face_that_flickers_stays_blurred_a_while_and_no_longer() -> None:
    blur, face = FaceBlur(), result(face=Box(80, 80, 120, 120))
    blur.add(noise(), face, 1.0)
    for at, hidden in ((1.04, True), (1.0 + HOLD_S - 0.01, True), (1.0 + HOLD_S + 0.01, False)):
        frame = noise()
        blur.add(frame, result(), at)
        assert bool(detail(frame)[11:14, 11:14].any()) is not hidden, at


def test_a_face_that_moves_is_not_blurred_where_it_was() -> None:
    blur = FaceBlur()
    blur.add(noise(), result(face=Box(80, 80, 140, 140)), 1.0)
    frame = noise()
    blur.add(frame, result(face=Box(90, 80, 150, 140)), 1.04)
    assert detail(frame)[:, :8].all()


def test_a_face_that_is_found_late_is_blurred_where_it_was_before() -> None:
    blur, face = FaceBlur(), Box(80, 80, 120, 120)
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    frames = [noise() for _ in times]
    for at, frame in zip(times, frames, strict=True):
        blur.add(frame, found(face if at == 0.7 else None), at)
    for at, frame in zip(times, frames, strict=True):
        assert rough(frame, face) == (0 if 0.7 - at < HOLD_S else 1), at


def test_between_two_finds_a_face_is_blurred_and_not_before_the_first_of_them_again() -> None:
    blur, before, after = FaceBlur(), Box(80, 80, 120, 120), Box(88, 80, 128, 120)
    frames = [noise() for _ in range(4)]
    for number, frame in enumerate(frames):
        blur.add(frame, found({1: before, 3: after}.get(number)), 10 + number / 10)
    assert [rough(frame, Box(88, 88, 120, 112)) for frame in frames] == [0, 0, 0, 0]
    assert detail(frames[1])[:, 15:].all(), "where it was seen it is not looked for elsewhere"
    assert not detail(frames[2])[10:15, 10:16].any(), "in between it may be where it was, or where it comes to be"


def test_frames_are_handed_back_in_order_once_no_face_can_come_any_more() -> None:
    blur = FaceBlur()
    frames = [noise() for _ in range(8)]
    back = [blur.add(frame, found(), number / 8) for number, frame in enumerate(frames)]
    assert [len(some) for some in back] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [frame for some in (*back, blur.flush()) for frame in some] == frames
    assert blur.flush() == []


def test_no_more_frames_are_held_than_there_is_room_for() -> None:
    blur = FaceBlur(max_pixels=3 * 320 * 240)
    back = [len(blur.add(noise(), found(), number / 1000)) for number in range(6)]
    assert back == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("behind", [Box(176, 104, 232, 160), Box(174, 104, 220, 150)])
def test_a_face_beside_one_that_is_found_is_not_forgotten(behind: Box) -> None:
    blur, close = FaceBlur(), Box(20, 40, 180, 200)
    middle = Box(184, 112, 216, 144)
    blur.add(noise(), found(close, behind), 0.0)
    for number, boxes in enumerate([(close,), (Box(0, 40, 160, 200),), ()], 1):
        frame = noise()
        blur.add(frame, found(*boxes), number * 0.04)
        assert rough(frame, middle) == 0, number


def test_one_find_stands_for_one_face_alone() -> None:
    blur, left, right = FaceBlur(), Box(80, 80, 140, 140), Box(100, 80, 160, 140)
    blur.add(noise(), found(left, right), 0.0)
    frame = noise()
    blur.add(frame, found(right), 0.04)
    assert rough(frame, Box(72, 88, 152, 136)) == 0


def test_a_person_without_a_face_is_blurred_above() -> None:
    frame = noise()
    FaceBlur().add(frame, found(Box(120, 30, 200, 230), name="person"), 0.0)
    assert rough(frame, Box(128, 32, 192, 104)) == 0
    assert detail(frame)[16:].all()


@pytest.mark.parametrize("squat", [Box(40, 40, 280, 200), Box(80, 40, 240, 240)])
def test_of_a_person_seen_close_or_lying_more_is_blurred(squat: Box) -> None:
    frame = noise()
    FaceBlur().add(frame, found(squat, name="Person"), 0.0)
    assert rough(frame, Box(squat.x1 + 8, squat.y1 + 8, squat.x2 - 8, squat.y1 + 100)) == 0


def test_of_a_person_with_a_face_the_face_alone_is_blurred() -> None:
    with_pose, with_face = result(nose=(160, 120)), found(Box(120, 30, 200, 230), name="person")
    with_pose.objects.append(Detection(0, "person", 0.9, Box(105, 65, 215, 275)))
    with_face.objects.append(Detection(1, "face", 0.9, Box(144, 40, 176, 72)))
    for seen in (with_pose, with_face):
        frame = noise()
        FaceBlur().add(frame, seen, 0.0)
        assert 0.01 < 1 - detail(frame).mean() < 0.12


def test_a_face_hides_no_other_people() -> None:
    """Two people, one in front of the other: a pose with its head, and its face, belong to one of them only."""
    seen = result(nose=(160, 120), face=Box(145, 100, 175, 135))
    for x in (0, 60):
        seen.objects.append(Detection(0, "person", 0.9, Box(110 + x, 70, 210 + x, 270)))
    frame = noise()
    FaceBlur().add(frame, seen, 0.0)
    assert rough(frame, Box(184, 80, 256, 160)) == 0


def test_a_pose_without_a_head_is_blurred_above() -> None:
    seen = FrameResult(Image(320, 240))
    points = tuple(Keypoint(name, 160.0, 60.0, 0.1) for name in KEYPOINT_NAMES)
    seen.poses.append(Pose(0.9, Box(120, 30, 200, 230), points))
    frame = noise()
    FaceBlur().add(frame, seen, 0.0)
    assert rough(frame, Box(128, 32, 192, 104)) == 0


def test_edges_of_the_frame_and_boxes_beyond_it() -> None:
    for box in (Box(-50, -50, 20, 20), Box(300, 220, 400, 400), Box(500, 500, 600, 600), Box(5, 5, 5, 5)):
        frame = noise()
        FaceBlur().add(frame, result(face=box), 0.0)
        assert detail(frame)[8:20, 8:30].all()


def test_a_frame_that_was_not_analysed_is_blurred_as_a_whole(tmp_path: Path) -> None:
    video = movie(tmp_path / "in.mp4", seconds=0.4)
    calls: list[int] = []

    def fails(_: int) -> bool:
        calls.append(1)
        return len(calls) > 4

    report, out, lines = analyzed(video, tmp_path, "blur_faces", client=Sight(fails=fails))
    assert report.failed > 0
    for line, (_, frame) in zip(lines, shown(out), strict=True):
        if "error" in line:
            steps = np.abs(np.diff(frame.astype(int), axis=1)).max()
            assert steps < 30, "nothing but some cells is to be seen"
            assert len(frame) / CELLS > 30


def test_a_video_whose_face_is_found_late_shows_it_nowhere(tmp_path: Path) -> None:
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
    video = squares(tmp_path / "in.mp4", 30)
    report, out, lines = analyzed(video, tmp_path, "blur_faces", client=client)
    assert (report.frames, report.failed) == (30, 0)
    assert [bool(line["objects"]) for line in lines] == [n >= 5 and n % 5 != 0 for n in range(30)]
    frames = shown(out)
    assert [at for at, _ in frames] == pytest.approx(np.arange(30) / 25)
    for number, (_, frame) in enumerate(frames):
        x, y = place(number)
        edge = frame[y + 8 : y + SIDE - 8, x + SIDE - 8 : x + SIDE + 8].astype(int)
        steps = np.abs(np.diff(edge, axis=1)).max()
        assert steps < 60, f"frame {number}: its edge is to be seen"


def test_the_real_detector_finds_no_face_where_one_was(tmp_path: Path) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    video = movie(tmp_path / "in.mp4", seconds=0.4, width=480, height=360)

    async def run() -> list[set[str]]:
        settings = Settings(ocr="off", state_dir=tmp_path / "state")
        found = []
        async with open_pipeline(settings) as opened:

            async def look(source: Path, name: str, mode: Mode) -> set[str]:
                target, lines = tmp_path / f"{name}.mp4", tmp_path / f"{name}.jsonl"
                wish = stream_settings(settings.pipeline, mode)
                await analyze_video(source, target, lines, mode, opened.pipeline, wish)
                return names(lines)

            found.append(await look(video, "before", "results_only"))
            found.append(await look(video, "blurred", "blur_faces"))
            found.append(await look(tmp_path / "blurred.mp4", "after", "results_only"))
        return found

    before, blurred, after = asyncio.run(run())
    assert "face" in before & blurred
    assert "face" not in after


def names(lines: Path) -> set[str]:
    every: list[dict[str, Any]] = [json.loads(line) for line in lines.read_bytes().splitlines()]
    assert len(every) == 10
    return {found["class_name"] for line in every for found in line["objects"]}


@pytest.mark.parametrize("size", [(16, 16), (64, 2)])
def test_tiny_frames(size: tuple[int, int]) -> None:
    frame = YuvFrame(av.VideoFrame.from_ndarray(np.zeros((*size, 3), np.uint8), format="rgb24"))
    FaceBlur().add(frame, result(face=Box(0, 0, 10, 10), nose=(3, 3)), 0.0)
    FaceBlur().add(frame, None, 0.0)
    assert frame.planes[0].shape == size
