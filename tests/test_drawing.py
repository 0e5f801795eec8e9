"""Results drawn over their image, and converted to supervision's types."""

from __future__ import annotations

import numpy as np
import pytest

from app.drawing import annotate, to_supervision
from app.pipeline.stages.detect import Detection
from app.pipeline.stages.ocr.policy import Text
from app.pipeline.stages.pose import KEYPOINT_NAMES, Keypoint, Pose
from app.protocol.result import Box, FrameResult, Image

BOX = Box(100, 60, 300, 400)
GREY = np.full((480, 640, 3), 128, np.uint8)


def pose(confidence: float) -> Pose:
    """Keypoints down a line at x = 500, 20 pixels apart."""
    points = [Keypoint(name, 500, 100 + 20 * index, confidence) for index, name in enumerate(KEYPOINT_NAMES)]
    return Pose(0.9, Box(480, 90, 520, 430), tuple(points))


def changed(frame: FrameResult, picture: np.ndarray = GREY) -> np.ndarray:
    """Where the drawing differs from its picture, bool [height, width]."""
    before = picture.copy()
    drawn = annotate(picture, frame)
    assert drawn.shape == picture.shape
    assert drawn.dtype == np.uint8
    assert (picture == before).all()  # a copy is drawn on
    return (drawn != picture).any(axis=2)


def test_nothing_seen_is_nothing_drawn() -> None:
    assert not changed(FrameResult(Image(640, 480))).any()


def test_a_box_is_drawn_along_its_edges_with_its_label_above() -> None:
    where = changed(FrameResult(Image(640, 480), objects=[Detection(0, "person", 0.91, BOX, 3)]))
    for line in (where[60, 100:300], where[400, 100:300], where[60:400, 100], where[60:400, 300]):
        assert line.mean() > 0.95
    assert not where[100:390, 110:290].any()
    assert where[45:58, 104:140].any()
    assert not where[:, 320:].any()
    assert not where[410:].any()


def test_a_label_stays_in_the_picture() -> None:
    top = Detection(0, "person", 0.91, Box(0, 0, 100, 200), 3)
    plain = changed(FrameResult(Image(640, 480), objects=[top]))
    assert plain[3:15, 5:60].mean() > 0.9  # inside the box, since above it there is nothing
    corner = Detection(0, "fire hydrant", 0.91, Box(600, 0, 639, 40), 3)
    assert changed(FrameResult(Image(640, 480), objects=[corner]))[3:15, 540:600].mean() > 0.9


def test_sure_keypoints_are_drawn_with_their_limbs_and_unsure_ones_are_not() -> None:
    where = changed(FrameResult(Image(640, 480), poses=[pose(0.9)]))
    assert where[100:420, 500].mean() > 0.95
    assert not where[:, :480].any()
    assert not changed(FrameResult(Image(640, 480), poses=[pose(0.1)])).any()


def test_a_text_is_outlined_and_written_below() -> None:
    text = Text("GATE 7", 0.9, ((200, 100), (300, 100), (300, 130), (200, 130)))
    where = changed(FrameResult(Image(640, 480), texts=[text]))
    assert where[100, 200:300].all()
    assert where[130:145, 202:240].mean() > 0.9
    assert not where[104:126, 204:296].any()


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (2160, 3840)])
def test_any_size_is_drawn(size: tuple[int, int]) -> None:
    height, width = size
    frame = FrameResult(Image(width, height), objects=[Detection(0, "x", 0.5, Box(0, 0, width, height))])
    assert changed(frame, np.zeros((height, width, 3), np.uint8)).any()


def test_supervision_gets_the_same_numbers() -> None:
    objects = [Detection(7, "dog", 0.8, BOX, 5), Detection(0, "person", 0.4, Box(1, 2, 3, 4))]
    detections, keypoints = to_supervision(FrameResult(Image(640, 480), objects=objects, poses=[pose(0.7)]))
    assert detections.xyxy.tolist() == [[100, 60, 300, 400], [1, 2, 3, 4]]
    assert detections.class_id.tolist() == [7, 0]
    assert detections.confidence == pytest.approx([0.8, 0.4])
    assert detections.tracker_id.tolist() == [5, -1]
    assert detections.data["class_name"].tolist() == ["dog", "person"]
    assert keypoints.xy.shape == (1, 17, 2)
    assert keypoints.xy[0, 3].tolist() == [500, 160]
    assert keypoints.keypoint_confidence == pytest.approx(np.full((1, 17), 0.7))


def test_supervision_gets_nothing_for_nothing() -> None:
    detections, keypoints = to_supervision(FrameResult(Image(640, 480)))
    assert len(detections) == len(keypoints) == 0
