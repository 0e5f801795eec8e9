"""Letterbox, overlap and suppression, against figures worked out by hand and the plain definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.pipeline.boxes import iou, letterbox, nms, points_to_image, to_image


@pytest.mark.parametrize(
    ("image", "canvas", "picture", "pad"),
    [
        ((1280, 720), (640, 640), (640, 360), (0, 140)),
        ((480, 640), (640, 640), (480, 640), (80, 0)),
        ((640, 427), (640, 640), (640, 427), (0, 106)),  # 213 rows over: 106 above, 107 below
        ((641, 427), (640, 640), (640, 426), (0, 107)),
        ((100, 50), (640, 640), (640, 320), (0, 160)),
        ((640, 480), (640, 480), (640, 480), (0, 0)),
        ((1, 1), (640, 640), (640, 640), (0, 0)),
        ((8000, 10), (640, 640), (640, 1), (0, 319)),
        ((60000, 1), (640, 640), (640, 1), (0, 319)),
        ((1920, 1080), (416, 320), (416, 234), (0, 43)),
    ],
)
def test_a_picture_is_fitted_and_centred(image, canvas, picture, pad):
    box = letterbox(*image, *canvas)
    assert (box.width, box.height) == picture
    assert (box.pad_x, box.pad_y) == pad


@pytest.mark.parametrize(
    ("image", "canvas_box", "frame_box"),
    [
        ((1280, 720), (10, 150, 330, 320), (20, 20, 660, 360)),
        ((480, 640), (80, 0, 200, 100), (0, 0, 120, 100)),
        ((640, 427), (5, 106, 25, 206), (5, 0, 25, 100)),
        ((100, 50), (64, 224, 640, 480), (10, 10, 100, 50)),
        ((1280, 720), (-50, 0, 700, 640), (0, 0, 1280, 720)),  # clipped
        ((480, 640), (0, 0, 70, 70), (0, 0, 0, 70)),  # wholly on the border: nothing is left
    ],
)
def test_boxes_return_to_the_frame(image, canvas_box, frame_box):
    box = letterbox(*image, 640, 640)
    found = to_image(np.array([canvas_box], np.float32), box)
    assert found.dtype == np.float32
    assert found.tolist() == [pytest.approx(frame_box, abs=1e-3)]


def test_points_return_to_the_frame_and_what_was_given_stays():
    box = letterbox(1280, 720, 640, 640)
    given_points = np.array([[[100, 240], [0, 0]], [[640, 500], [320, 320]]], np.float32)
    before = given_points.copy()
    assert points_to_image(given_points, box).tolist() == [[[200, 200], [0, 0]], [[1280, 720], [640, 360]]]
    assert (given_points == before).all()


def test_iou_by_hand():
    a = np.array([[0, 0, 10, 10], [0, 0, 0, 0]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [0, 0, 0, 0]], np.float32)
    assert iou(a, b) == pytest.approx(np.array([[1, 1 / 3, 0, 0], [0, 0, 0, 0]]))


def plain_nms(boxes, scores, classes, threshold, limit):
    """The definition, pair by pair."""

    def overlap(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
        return shared / union if union > 0 else 0.0

    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(classes[i] != classes[k] or overlap(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept[:limit]


CORNER = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 8), st.integers(0, 8))
CANDIDATE = st.tuples(CORNER, st.integers(0, 6), st.integers(0, 2))


@settings(deadline=None)
@given(
    st.lists(CANDIDATE, max_size=60),
    st.sampled_from([0.0, 0.25, 0.45, 0.5, 0.75, 1.0]),
    st.sampled_from([1, 3, 300]),
)
def test_nms_is_the_plain_definition(candidates, threshold, limit):
    boxes = [(x, y, x + w, y + h) for (x, y, w, h), _, _ in candidates]
    scores = [score / 8 for _, score, _ in candidates]
    classes = [class_id for _, _, class_id in candidates]
    kept = nms(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int32),
        threshold,
        limit,
    )
    assert kept.tolist() == plain_nms(boxes, scores, classes, threshold, limit)


@pytest.mark.parametrize("spread", [30, 400, 20_000])
def test_nms_of_more_candidates_than_a_block(spread):
    random = np.random.default_rng(spread)
    corners = random.integers(0, spread, (500, 2))
    boxes = np.concatenate((corners, corners + random.integers(5, 40, (500, 2))), axis=1).astype(np.float32)
    scores = random.integers(1, 90, 500).astype(np.float32) / 100
    classes = random.integers(0, 3, 500)
    kept = nms(boxes, scores, classes, 0.45, 300).tolist()
    assert kept == plain_nms(boxes.tolist(), scores.tolist(), classes.tolist(), 0.45, 300)
    assert len(kept) == len(set(kept)) > 0


def test_300_candidates_on_one_thing_leave_the_best():
    jitter = np.random.default_rng(0).uniform(-3, 3, (300, 4))
    boxes = (np.array([100, 100, 200, 300]) + jitter).astype(np.float32)
    scores = np.linspace(0.3, 0.9, 300, dtype=np.float32)
    assert nms(boxes, scores, np.zeros(300, np.int32), 0.45, 300).tolist() == [299]


def test_c1_each_side_is_scaled_back_by_what_it_really_was_given():
    box = letterbox(1920, 400, 320, 320)  # as 320x67, not 66.7
    assert (box.width, box.height, box.pad_x, box.pad_y) == (320, 67, 0, 126)
    found = to_image(np.array([[0, 126, 160, 159.5], [160, 159.5, 320, 193]], np.float32), box)
    assert found == pytest.approx(np.array([[0, 0, 960, 200], [960, 200, 1920, 400]]), abs=1e-3)
