"""Results drawn over their image, and converted to supervision's types."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from app.drawing import annotate, label_of, to_supervision
from app.pipeline.stages.detect import Detection
from app.pipeline.stages.ocr.policy import Text
from app.pipeline.stages.pose import KEYPOINT_NAMES, Keypoint, Pose
from app.protocol.from_service import StageDescription
from app.protocol.result import Box, FrameResult, Image
from app.protocol.stages import Shape

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


# --- parts of any stage, by their shapes ---

RED, BLUE = "#ff0000", "#0000ff"


def stage(*shapes: Shape, field: str = "things") -> list[StageDescription]:
    """`ready.stages` of a service with one stage."""
    return [StageDescription(field, field.title(), "", field, shapes, figures=(), late=False)]


def drawn(shape: Shape, *entries: object, models: dict[str, object] | None = None) -> np.ndarray:
    """The picture of these entries on grey, RGB."""
    frame = FrameResult(Image(640, 480), things=list(entries))
    return annotate(GREY, frame, stages=stage(shape), models=models)


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where the picture has a colour, bool [height, width]."""
    return (picture == colour).all(axis=2)


RING = [[100.0, 100.0], [300.0, 100.0], [300.0, 300.0], [100.0, 300.0]]


def test_a_mask_is_half_transparent_with_an_outline() -> None:
    far = [[400.0, 100.0], [500.0, 100.0], [500.0, 200.0]]
    picture = drawn(
        Shape("mask", "polygons", colour=RED), {"polygons": [RING, far, [[700.0, 10.0], [710.0, 20.0], [0, 0]]]}
    )
    assert has(picture, (192, 64, 64))[110:290, 110:290].all()
    assert has(picture, (192, 64, 64))[120:130, 470:490].all()
    assert has(picture, (255, 0, 0))[100, 100:300].all()
    assert (picture[310:, 320:] == 128).all()
    assert (drawn(Shape("mask", "polygons", colour=RED), {"polygons": []}) == GREY).all()


def test_polygons_are_closed_and_polylines_are_not() -> None:
    for kind, closed in (("polygon", True), ("polyline", False)):
        picture = drawn(Shape(kind, "corners", colour=RED), {"corners": RING})  # type: ignore[arg-type]
        assert has(picture, (255, 0, 0))[100, 102:298].all()
        assert has(picture, (255, 0, 0))[110:290, 100].all() == closed
        assert (picture[110:290, 110:290] == 128).all()


def test_points_are_connected_as_the_model_of_the_service_says() -> None:
    points = [{"name": str(n), "x": 100.0 + 100 * n, "y": 200.0, "confidence": 0.9} for n in range(4)]
    points[3]["confidence"] = 0.4
    shape = Shape("points", "points", colour=RED, least=0.5, lines="edges")
    picture = drawn(shape, {"points": points}, models={"things": {"edges": [[0, 1], [2, 3], [1, 9]]}})
    assert has(picture, (255, 0, 0))[200, 110:190].all()
    assert has(picture, (255, 255, 255))[200, 300]
    assert (picture[:, 210:290] == 128).all()
    assert (picture[:, 310:] == 128).all()


def test_labels_stand_at_boxes_or_below_each_other_in_the_corner() -> None:
    shape = Shape("label", label="{top.0.class_name} {top.0.confidence} {track_id}", colour="class")
    top = [{"class_id": 3, "class_name": "beach", "confidence": 0.71234}, {"class_id": 4}]
    assert label_of(shape.label, {"top": top, "track_id": None}) == "beach 0.71"
    assert label_of(shape.label, {"top": top, "track_id": 5}) == "beach 0.71 #5"
    assert label_of("{class_name} {confidence}", {"class_name": "", "class_id": 3, "confidence": 0.5}) == "class 3 0.50"
    assert label_of("{text}", {"text": "two  blanks"}) == "two  blanks"
    frames = [{"top": top, "box": None}, {"top": top, "box": None}]
    picture = drawn(shape, *frames, {"top": top, "box": {"x1": 300, "y1": 200, "x2": 400, "y2": 300}})
    changed = (picture != 128).any(axis=2)
    assert changed[2:30, 2:60].mean() > 0.9
    assert not changed[60:, :200].any()
    assert changed[302:312, 302:340].mean() > 0.9
    assert (picture[5, 3] == picture[302, 302]).all()  # the colour of their class


def test_arrows_begin_in_the_middle_or_in_their_cells() -> None:
    picture = drawn(Shape("arrow", colour=RED), {"dx": 100.0, "dy": 0.0})
    assert has(picture, (255, 0, 0))[240, 325:415].all()
    assert (picture[:, :310] == 128).all()
    vectors = np.zeros((2, 4, 2), np.int8)
    vectors[1, 2] = 40, -20
    grid = {"columns": 4, "rows": 2, "scale": 0.5, "data": base64.b64encode(vectors.tobytes()).decode()}
    where = has(drawn(Shape("field", "grid", colour=RED), {"grid": grid}), (255, 0, 0))
    y, x = np.nonzero(where)
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((400, 420, 350, 360), abs=5)
    assert (drawn(Shape("field", "grid"), {"grid": None}) == GREY).all()


def test_an_entry_may_have_a_colour_of_its_own() -> None:
    box = {"x1": 100, "y1": 100, "x2": 200, "y2": 200}
    picture = drawn(
        Shape("box", "box", colour="{rgb}"), {"box": box, "rgb": [10.0, 300, -5]}, {"box": BOX, "rgb": [1, 2, 3]}
    )
    assert has(picture, (10, 255, 0))[100, 105:200].all()
    assert has(picture, (1, 2, 3))[60, 110:290].all()


def test_supervision_gets_masks_oriented_boxes_and_keypoints_of_any_number() -> None:
    thing = {"class_id": 2, "class_name": "car", "confidence": 0.5, "box": {"x1": 100, "y1": 100, "x2": 300, "y2": 300}}
    frame = FrameResult(Image(640, 480), things=[{**thing, "polygons": [RING], "track_id": 4}])
    masks, _ = to_supervision(frame, stages=stage(Shape("mask", "polygons")))
    assert masks.mask.shape == (1, 480, 640)
    assert masks.mask[0].sum() == 201 * 201
    assert masks.data["polygons"][0][0].tolist() == RING
    assert (masks.data["class_name"].tolist(), masks.data["field"].tolist()) == (["car"], ["things"])
    assert masks.tracker_id.tolist() == [4]
    assert masks[masks.class_id == 2].mask.any()
    corners = [[200.0, 50.0], [300.0, 200.0], [200.0, 300.0], [100.0, 200.0]]
    frame = FrameResult(
        Image(640, 480), things=[{**thing, "corners": corners}], objects=[Detection(7, "dog", 0.8, BOX)]
    )
    described = [*stage(Shape("polygon", "corners")), *stage(Shape("box", "box"), field="objects")]
    both, _ = to_supervision(frame, stages=described)
    assert both.mask is None
    assert both.data["xyxyxyxy"].tolist() == [corners, [[100, 60], [300, 60], [300, 400], [100, 400]]]
    assert both.data["field"].tolist() == ["things", "objects"]
    (only, _) = to_supervision(frame, "objects", stages=described)
    assert only.class_id.tolist() == [7]
    assert "xyxyxyxy" not in only.data
    hands = [{"points": [{"x": n, "y": 2 * n, "confidence": 0.5} for n in range(count)]} for count in (21, 5)]
    _, keypoints = to_supervision(FrameResult(Image(640, 480), things=hands), stages=stage(Shape("points", "points")))
    assert keypoints.xy.shape == (2, 21, 2)
    assert keypoints.xy[0, 20].tolist() == [20, 40]
    assert keypoints.keypoint_confidence[1].tolist() == [0.5] * 5 + [0.0] * 16
    hand = {**thing, **hands[1], "class_name": "hand"}  # such as a pose of a model with classes: keypoints alone
    nothing, keypoints = to_supervision(
        FrameResult(Image(640, 480), things=[hand]), stages=stage(Shape("points", "points"))
    )
    assert len(nothing) == 0
    assert (keypoints.class_id.tolist(), keypoints.data["class_name"].tolist()) == ([2], ["hand"])


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
