"""Poses out of every layout, against keypoints worked out by hand."""

import json

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


# --- other keypoints and classes ---

HAND = ["wrist", *(f"finger {i}" for i in range(20))]


def other(kind, classes, count, numbers):
    """Two things of two classes, with points that tell their place: the spec's shape and its head."""
    points = [[100 + i, 200 + 2 * i, 0.5 + i / 100][:numbers] for i in range(count)]
    rows = [
        (50, 150, 350, 450, 0.9, classes - 1, *np.ravel(points)),
        (400, 150, 600, 450, 0.6, 0, *np.ravel(points)),
    ]
    if kind == "raw":
        return (1, 4 + classes + count * numbers, 8400), raw_head(rows, classes, 8400, count * numbers)
    return (1, 300, 6 + count * numbers), row_head(rows, 300, count * numbers)


@pytest.mark.parametrize("kind", ["raw", "end_to_end"])
@pytest.mark.parametrize(
    ("count", "numbers", "names"), [(21, 3, ["hand"]), (24, 3, ["dog", "cat"]), (5, 2, ["card"]), (17, 3, ["a", "b"])]
)
def test_any_keypoints_of_any_classes(kind, count, numbers, names):
    shape, head = other(kind, len(names), count, numbers)
    shapes = {"kpt_shape": f"{count}x{numbers}", "task": "pose", "layout": kind}
    reader = pose_reader(model(FLOAT, shape, names=names, **shapes))
    box = letterbox(1280, 720, 640, 640)
    (found,) = reader.read_all({"output0": head[None]}, [box], **ASK)
    assert found.confidence == pytest.approx([0.9, 0.6])
    assert found.class_id.tolist() == [len(names) - 1, 0]
    assert found.keypoints.shape == (2, count, 3)
    first, second = poses(found, np.array([3, -1]), reader.keypoint_names, reader.class_names)
    assert (first.class_name, first.track_id, second.class_name) == (names[-1], 3, names[0])
    assert len(first.keypoints) == count
    point = first.keypoints[2]
    assert (point.x, point.y) == (204.0, 128.0)
    assert point.confidence == pytest.approx(0.52 if numbers == 3 else 1.0)
    again = reader.read({"output0": head[None]}, 0, box, **ASK)
    assert again.keypoints.tolist() == found.keypoints.tolist()


def test_names_and_skeleton_come_from_the_model():
    lines = [[0, index] for index in range(1, 21)]
    given = {"kpt_shape": "21x3", "kpt_names": json.dumps(HAND), "skeleton": json.dumps(lines)}
    reader = pose_reader(model(FLOAT, (1, 68, 8400), **given))
    assert (reader.keypoint_names, reader.class_names) == (tuple(HAND), ("class_0",))
    assert reader.skeleton[:2] == ((0, 1), (0, 2))
    plain = pose_reader(model(FLOAT, (1, 68, 8400), kpt_shape="21x3"))
    assert (plain.keypoint_names[20], plain.skeleton) == ("keypoint_20", ())
    people = pose_reader(model(FLOAT, (1, 56, 8400)))
    assert (people.keypoint_names, people.class_names) == (KEYPOINT_NAMES, ("person",))
    unnamed = pose_reader(model(FLOAT, (1, 69, 8400), kpt_shape="21x3"))
    assert unnamed.class_names == ("class_0", "class_1")


@pytest.mark.parametrize(
    ("shape", "given", "why"),
    [
        ((1, 68, 8400), {"kpt_shape": "21"}, "kpt_shape='21'; want the number of keypoints"),
        ((1, 68, 8400), {"kpt_shape": "21x4"}, "kpt_shape='21x4'; want"),
        ((1, 68, 8400), {"kpt_shape": "0x3"}, "kpt_shape='0x3'; want"),
        ((1, 68, 8400), {"kpt_shape": "21x3", "kpt_names": '["wrist"]'}, "kpt_names=.*want a JSON array of 21 names"),
        ((1, 68, 8400), {"kpt_shape": "21x3", "skeleton": "[[0, 21]]"}, "skeleton=.*counted from 0 to 20"),
        ((1, 68, 8400), {"kpt_shape": "21x3", "skeleton": "[[0, true]]"}, "skeleton=.*pairs of keypoints"),
        ((1, 68, 8400), {}, "set the parameter kpt_shape, such as 21x3"),
        ((1, 68, 8400), {"kpt_shape": "24x3"}, r"known: \[N, 77, A\]"),
        (
            (1, 68, 8400),
            {"kpt_shape": "21x3", "task": "pose", "class_names": '["a", "b"]'},
            "1 classes beside 21 keypoints of 3 numbers, but class_names has 2",
        ),
        ((1, 84, 8400), {"task": "detect"}, "TRITON_DETECT_MODEL, not in TRITON_POSE_MODEL"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(shape, given, why):
    with pytest.raises(ModelRejected, match=why):
        pose_reader(model(FLOAT, shape, **given))
