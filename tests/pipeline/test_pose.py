"""Poses out of every layout, against keypoints worked out by hand."""

import numpy as np
import pytest

from app.errors import ModelRejected
from app.pipeline.boxes import letterbox
from app.pipeline.stages.pose import KEYPOINT_NAMES, pose_reader, poses
from tests.support.heads import FLOAT, PREPARED, model, raw_head, row_head

WIDE = letterbox(1280, 720, 640, 640)
POINTS = [value for i in range(17) for value in (100 + 10 * i, 200 + 5 * i, (i + 1) / 20)]
ROWS = [
    (50, 150, 350, 450, 0.9, 0, *POINTS),
    (52, 151, 351, 452, 0.8, 0, *POINTS),
    (400, 150, 600, 450, 0.6, 0, *[639.0, 100.0, 0.5] * 17),  # in the border above the picture
]
ASK = {"confidence": 0.35, "iou": 0.45, "max_detections": 300}
LAYOUTS = {
    "raw": (model(FLOAT, (-1, 56, 8400)), raw_head(ROWS, 1, 8400, 51)),
    "end_to_end": (model(FLOAT, (-1, 300, 57)), row_head(ROWS, 300, 51)),
    "prepared": (model(PREPARED, (-1, 300, 57)), row_head(ROWS, 300, 51)),
}


def read(layout, head=None, **asked):
    spec, rows = LAYOUTS[layout]
    reader = pose_reader(spec)
    assert reader.layout == layout
    heads = np.stack([np.zeros_like(rows), rows if head is None else head])
    return reader.read({reader.output_name: heads}, 1, WIDE, **{**ASK, **asked})


@pytest.mark.parametrize(("layout", "kept"), [("raw", [0, 2]), ("prepared", [0, 2]), ("end_to_end", [0, 1, 2])])
def test_poses_by_hand(layout, kept):
    found = read(layout)
    assert found.confidence == pytest.approx([ROWS[i][4] for i in kept])
    assert found.xyxy[0].tolist() == [100, 20, 700, 620]
    assert found.keypoints.shape == (len(kept), 17, 3)
    assert found.keypoints.dtype == np.float32
    want = np.array([[200 + 20 * i, 120 + 10 * i, (i + 1) / 20] for i in range(17)], np.float32)
    assert found.keypoints[0] == pytest.approx(want, abs=1e-3)
    assert found.keypoints[-1] == pytest.approx(np.array([[1278, 0, 0.5]] * 17, np.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_asked_for(layout):
    assert read(layout, confidence=0.85).confidence == pytest.approx([0.9])
    assert read(layout, max_detections=1).confidence == pytest.approx([0.9])
    assert read(layout, iou=1.0).confidence == pytest.approx([0.9, 0.8, 0.6])
    empty = read(layout, head=np.zeros_like(LAYOUTS[layout][1]))
    assert (empty.xyxy.shape, empty.keypoints.shape) == ((0, 4), (0, 17, 3))
    assert poses(empty, None) == []


@pytest.mark.parametrize(
    ("spec", "layout", "output"),
    [
        (model(FLOAT, (1, 56, 57)), "raw", "output0"),
        (model(PREPARED, (1, 56, 57)), "prepared", "output0"),
        (model(PREPARED, (-1, 300, 6), (-1, 300, 57)), "prepared", "output1"),
        (model(PREPARED, (-1, 56, 8400)), "raw", "output0"),
        (model(FLOAT, (-1, 84, 8400), (-1, 56, 8400)), "raw", "output1"),
        (model(FLOAT, (-1, -1, 57)), "end_to_end", "output0"),
    ],
)
def test_the_layout_is_picked_from_the_shapes(spec, layout, output):
    reader = pose_reader(spec)
    assert (reader.layout, reader.output_name) == (layout, output)


@pytest.mark.parametrize("shape", [(1, 84, 8400), (1, 300, 6), (1, 8400, 56), (1, 8400, 57), (1, 56)])
def test_what_is_not_known_is_refused_by_name_and_shape(shape):
    with pytest.raises(ModelRejected) as refused:
        pose_reader(model(FLOAT, shape))
    for word in ("'yolo'", str(list(shape)), "[N, 56, A]", "[N, K, 57]"):
        assert word in str(refused.value)


def test_poses_for_the_wire():
    first, second = poses(read("raw"), np.array([4, -1]))
    assert (first.confidence, first.track_id, second.track_id) == (0.9, 4, None)
    assert [point.name for point in first.keypoints] == list(KEYPOINT_NAMES)
    assert (first.keypoints[16].x, first.keypoints[16].y, first.keypoints[16].confidence) == (520.0, 280.0, 0.85)
    assert (first.box.x1, first.box.y2) == (100.0, 620.0)
    assert type(first.keypoints[0].x) is float


def test_an_answer_that_denies_the_layout_is_refused_with_the_layouts_of_poses():
    spec, _ = LAYOUTS["end_to_end"]
    reader = pose_reader(spec)
    assert not reader.declared
    shares = np.random.default_rng(0).uniform(0.1, 0.9, (1, 300, 57)).astype(np.float32)
    with pytest.raises(ModelRejected, match="keypoints of x, y, confidence"):
        reader.check({reader.output_name: shares})
