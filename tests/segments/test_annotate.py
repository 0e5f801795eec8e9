"""Results are drawn on the planes of a frame."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest

from app.pipeline.stages.detect import Detection
from app.pipeline.stages.ocr.policy import Text
from app.pipeline.stages.pose import KEYPOINT_NAMES, Keypoint, Pose
from app.protocol.result import Box, FrameResult, Image
from app.protocol.stages import STAGES, Part, Shape, StageInfo
from app.segments.annotate import annotate
from app.segments.video import YuvFrame
from tests.support.clip import Pixels


def drawn(found: FrameResult, width: int = 320, height: int = 240) -> Pixels:
    """Draws on a grey frame; returns it as RGB."""
    yuv = YuvFrame(av.VideoFrame.from_ndarray(np.full((height, width, 3), 100, np.uint8), format="rgb24"))
    annotate(yuv, found)
    frame: Pixels = yuv.frame.to_ndarray(format="rgb24")
    return frame


def touched(frame: Pixels) -> Pixels:
    return np.abs(frame.astype(int) - 100).max(axis=2) > 12


def test_a_box_its_label_a_skeleton_and_a_text() -> None:
    sure = [0.1 if name == "left_wrist" else 0.9 for name in KEYPOINT_NAMES]
    points = tuple(Keypoint(name, 60 + 8 * i, 150 + 4 * i, sure[i]) for i, name in enumerate(KEYPOINT_NAMES))
    found = FrameResult(
        Image(320, 240),
        objects=[Detection(0, "person", 0.87, Box(50, 60, 220, 230), track_id=3)],
        poses=[Pose(0.9, Box(50, 60, 220, 230), points)],
        texts=[Text("Ausgang → Ä7", 0.9, ((230, 20), (310, 20), (310, 40), (230, 40)))],
    )
    marks = touched(drawn(found))
    assert marks[60:230, 50].all(), "the box's left side"
    assert marks[228:232, 60:210].any(axis=0).all(), "its lower side"
    assert marks[44:58, 52:120].mean() > 0.8, "its label above it"
    assert marks[150 + 4 * 16, 60 + 8 * 16], "an ankle"
    assert not marks[184:188, 135:137].all(), "an unsure wrist is left out"
    assert marks[20, 232:308].all(), "the text's outline"
    assert marks[44:56, 240:300].mean() > 0.7, "and what it says, below"
    assert not marks[100:140, 230:].any(), "nothing else"


def test_each_track_keeps_a_colour_of_its_own() -> None:
    def colour(track: int | None, class_id: int = 0) -> list[int]:
        found = FrameResult(Image(320, 240), objects=[Detection(class_id, "x", 0.5, Box(100, 100, 200, 200), track)])
        return [int(v) for v in drawn(found)[150, 100]]

    assert colour(1) == colour(1)
    assert len({tuple(colour(track)) for track in range(1, 9)}) == 8
    assert colour(None, 2) == colour(2, 0)


def test_labels_at_the_edges_stay_in_the_frame() -> None:
    boxes = [Box(0, 0, 40, 40), Box(300, 0, 320, 240), Box(0, 235, 320, 240)]
    for box in boxes:
        marks = touched(drawn(FrameResult(Image(320, 240), objects=[Detection(0, "person", 0.9, box, 12)])))
        assert marks.sum() > 1000, box


RING = [[100.0, 60.0], [200.0, 60.0], [200.0, 160.0], [100.0, 160.0]]
RED = (255, 0, 0)


def drawn_by(shape: Shape, monkeypatch: pytest.MonkeyPatch, *entries: object) -> Pixels:
    """The picture of entries of a stage that is drawn by this shape."""
    part = Part("things", list[Any], shapes=(shape,))
    monkeypatch.setitem(STAGES, "things", StageInfo("things", "Things", "", part))
    return drawn(FrameResult(Image(320, 240), things=list(entries)))


def near(frame: Pixels, colour: tuple[int, int, int]) -> Pixels:
    """Where the frame has about this colour."""
    return np.abs(frame.astype(int) - colour).max(axis=2) < 12


def test_a_mask_is_half_transparent_with_an_outline(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = drawn_by(
        Shape("mask", "polygons", colour="#ff0000"),
        monkeypatch,
        {"polygons": [RING, [[310, 230], [400, 300], [310, 300]]]},
    )
    assert near(frame, (178, 50, 50))[64:156, 104:196].all()
    assert near(frame, RED)[60:62, 104:196].all()
    assert not touched(frame)[10:50].any()


def test_oriented_boxes_lines_and_points_of_any_stage_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    tilted = [[160.0, 40.0], [220.0, 120.0], [160.0, 200.0], [100.0, 120.0]]
    frame = drawn_by(Shape("polygon", "corners", colour="#ff0000"), monkeypatch, {"corners": tilted})
    assert touched(frame)[40:44, 158:162].any()
    assert touched(frame)[196:200, 158:162].any()
    assert not touched(frame)[100:140, 130:190].any()
    open_ = drawn_by(Shape("polyline", "line", colour="#ff0000"), monkeypatch, {"line": RING})
    assert touched(open_)[60, 104:196].all()
    assert not touched(open_)[70:150, 95:106].any()
    points = [{"x": 60.0 * n, "y": 100.0, "confidence": 0.9} for n in range(1, 5)]
    dots = touched(drawn_by(Shape("points", "points"), monkeypatch, {"points": points}))
    assert [dots[100, 60 * n] for n in range(1, 5)] == [True] * 4
    assert not dots[:, 70:110].any()
    arrow = touched(drawn_by(Shape("arrow", colour="#ff0000"), monkeypatch, {"dx": 80.0, "dy": 0.0}))
    assert arrow[120, 165:235].all()
    assert not arrow[:, :155].any()


def test_labels_of_classifications_stand_in_the_corner_or_below_their_box(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape("label", label="{top.0.class_name} {top.0.confidence}")
    top = [{"class_id": 1, "class_name": "beach", "confidence": 0.7}]
    box = {"x1": 150, "y1": 60, "x2": 200, "y2": 100}
    marks = touched(
        drawn_by(shape, monkeypatch, {"top": top, "box": None}, {"top": top, "box": None}, {"top": top, "box": box})
    )
    assert marks[2:30, 2:60].mean() > 0.9
    assert not marks[50:, :140].any()
    assert marks[102:112, 152:200].mean() > 0.9


@pytest.mark.parametrize("size", [(16, 16), (2, 64), (1920, 1080)])
def test_all_sizes_of_frames(size: tuple[int, int]) -> None:
    found = FrameResult(Image(*size), objects=[Detection(0, "person", 0.9, Box(0, 0, *size), 1)])
    assert touched(drawn(found, *size)).any()
