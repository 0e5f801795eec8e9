"""Detections out of every layout, against boxes worked out by hand; and which layout is taken for which."""

import numpy as np
import pytest

from app.errors import ModelRejected
from app.pipeline.boxes import iou, letterbox
from app.pipeline.stages.detect import Detected, detect_reader, detections
from tests.support.heads import FLOAT, PREPARED, model, raw_head, row_head

WIDE = letterbox(1280, 720, 640, 640)  # half size, 140 rows of border above
NAMES = ["person", "dog", "cup"]
ROWS = [
    (10, 150, 330, 320, 0.9, 0),
    (12, 152, 330, 322, 0.8, 0),  # the same person again
    (11, 151, 331, 321, 0.7, 1),  # a dog in the same place
    (400, 200, 440, 260, 0.35, 2),  # just at the threshold: not above it
    (500, 300, 700, 700, 0.5, 2),  # beyond the frame's edge
]
BOXES = {
    0: [20, 20, 660, 360],
    1: [24, 24, 660, 364],
    2: [22, 22, 662, 362],
    4: [1000, 320, 1280, 720],
}
ASK = {"confidence": 0.35, "iou": 0.45, "classes": None, "max_detections": 300}


def read(reader, *heads, index=0, box=WIDE, **asked):
    return reader.read({reader.output_name: np.stack(heads)}, index, box, **{**ASK, **asked})


def reader_and_head(layout, rows, dtype=np.float32):
    if layout == "raw":
        spec, head = model(FLOAT, (-1, 7, 8400), names=NAMES), raw_head(rows, 3, 8400)
    elif layout == "end_to_end":
        spec, head = model(FLOAT, (-1, 300, 6), names=NAMES), row_head(rows, 300)
    else:
        spec, head = model(PREPARED, (-1, 300, 6), names=NAMES), row_head(rows, 300)
    reader = detect_reader(spec)
    assert reader.layout == layout
    return reader, head.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("layout", "kept"), [("raw", [0, 2, 4]), ("prepared", [0, 2, 4]), ("end_to_end", [0, 1, 2, 4])]
)
def test_boxes_by_hand(layout, kept, dtype):
    reader, head = reader_and_head(layout, ROWS, dtype)
    found = read(reader, head, confidence=0.3501)
    assert found.xyxy == pytest.approx(np.array([BOXES[i] for i in kept], np.float32), abs=0.01)
    assert found.confidence == pytest.approx([ROWS[i][4] for i in kept], abs=0.001)
    assert found.class_id.tolist() == [ROWS[i][5] for i in kept]
    assert (found.xyxy.dtype, found.confidence.dtype, found.class_id.dtype) == (np.float32, np.float32, np.int32)


@pytest.mark.parametrize("layout", ["raw", "prepared", "end_to_end"])
def test_what_is_asked_for(layout):
    reader, head = reader_and_head(layout, ROWS)
    assert read(reader, head, confidence=0.85).class_id.tolist() == [0]
    assert read(reader, head, confidence=0.95).xyxy.shape == (0, 4)
    assert read(reader, head, classes=frozenset({1})).class_id.tolist() == [1]
    assert read(reader, head, classes=frozenset({1, 2})).class_id.tolist() == [1, 2]
    assert read(reader, head, classes=frozenset()).class_id.size == 0
    assert read(reader, head, max_detections=1).confidence == pytest.approx([0.9])
    assert len(read(reader, head, iou=1.0).class_id) == 4
    nothing = read(reader, np.zeros_like(head))
    assert nothing.xyxy.shape == (0, 4)
    assert nothing.class_id.size == nothing.confidence.size == 0


@pytest.mark.parametrize("layout", ["raw", "prepared", "end_to_end"])
def test_each_picture_of_a_batch_has_its_own(layout):
    reader, first = reader_and_head(layout, ROWS[:1])
    _, second = reader_and_head(layout, ROWS[4:])
    tall = letterbox(480, 640, 640, 640)
    assert read(reader, first, second, index=0).xyxy.tolist() == [BOXES[0]]
    assert read(reader, first, second, index=1, box=tall).xyxy.tolist() == [[420, 300, 480, 640]]


@pytest.mark.parametrize("layout", ["raw", "prepared"])
def test_300_candidates_on_two_things(layout):
    random = np.random.default_rng(0)
    rows = [
        (*np.add((100, 200, 200, 300), 250 * (i % 2)) + random.uniform(-4, 4, 4), random.uniform(0.4, 0.9), i % 2)
        for i in range(300)
    ]
    reader, head = reader_and_head(layout, rows)
    found = read(reader, head)
    best = [max(row[4] for row in rows if row[5] == class_id) for class_id in (0, 1)]
    assert sorted(found.class_id.tolist()) == [0, 1]
    assert sorted(found.confidence.tolist()) == pytest.approx(sorted(best))


def test_a_whole_head_reads_as_a_plain_loop_would():
    random = np.random.default_rng(3)
    head = np.concatenate((random.uniform(100, 500, (2, 8400)), random.uniform(20, 120, (2, 8400))))
    scores = random.uniform(0, 0.4, (3, 8400))
    scores[random.integers(0, 3, 900), random.integers(0, 8400, 900)] += random.uniform(0, 0.5, 900)
    head = np.concatenate((head, scores)).astype(np.float32)
    kept = []
    columns = sorted((column for column in head.T if max(column[4:]) > 0.45), key=lambda column: -max(column[4:]))
    for x, y, width, height, *ours in columns:
        one = (x - width / 2, y - height / 2, x + width / 2, y + height / 2, int(np.argmax(ours)))
        corners = np.array([one[:4]], np.float32)
        if all(one[4] != other[4] or iou(corners, np.array([other[:4]], np.float32))[0, 0] <= 0.3 for other in kept):
            kept.append(one)
    reader = detect_reader(model(FLOAT, (-1, 7, 8400)))
    found = read(reader, head, confidence=0.45, iou=0.3, box=letterbox(640, 640, 640, 640))
    assert 20 < len(kept) < 300
    assert found.class_id.tolist() == [row[4] for row in kept]
    assert found.xyxy == pytest.approx(np.array([row[:4] for row in kept]), abs=1e-3)


def test_only_the_best_class_of_a_box_counts():
    reader, head = reader_and_head("raw", ROWS[:1])
    head[5, 0] = 0.6
    assert read(reader, head).class_id.tolist() == [0]
    assert read(reader, head, classes=frozenset({1})).class_id.size == 0


@pytest.mark.parametrize("layout", ["raw", "prepared", "end_to_end"])
def test_numbers_that_are_none_do_not_get_through(layout):
    rows = [
        (np.nan, 1, 2, 3, 0.9, 0),
        (1, 1, np.inf, 3, 0.9, 0),
        (-np.inf, 1, np.inf, 3, 0.9, 0),
        ROWS[0],
        (1, 1, 5, 5, np.nan, 1),
    ]
    with np.errstate(invalid="ignore"):
        reader, head = reader_and_head(layout, rows)
    assert read(reader, head).xyxy.tolist() == [BOXES[0]]


@pytest.mark.parametrize(
    ("spec", "layout", "output", "classes"),
    [
        (model(FLOAT, (1, 84, 8400)), "raw", "output0", 80),
        (model(FLOAT, (-1, 84, -1)), "raw", "output0", 80),
        (model(FLOAT, (1, 6, 8400)), "raw", "output0", 2),  # two classes, not six columns
        (model(FLOAT, (1, 5, 8400)), "raw", "output0", 1),
        (model(FLOAT, (1, 7, 6), names=NAMES), "raw", "output0", 3),  # six anchors: the names say so
        (model(FLOAT, (1, 56, 8400), names=[str(i) for i in range(52)]), "raw", "output0", 52),
        (model(FLOAT, (1, 300, 6)), "end_to_end", "output0", 0),
        (model(FLOAT, (1, 6, 6)), "end_to_end", "output0", 0),
        (model(FLOAT, (-1, -1, 6), names=NAMES), "end_to_end", "output0", 3),
        (model(PREPARED, (-1, 300, 6), names=NAMES), "prepared", "output0", 3),
        (model(PREPARED, (-1, 6, 8400)), "raw", "output0", 2),
        (model(PREPARED, (-1, 300, 6), (-1, 300, 57), names=NAMES), "prepared", "output0", 3),  # an ensemble
        (model(FLOAT, (1, 56, 8400), (1, 84, 8400)), "raw", "output1", 80),
        (model(FLOAT, (1, 84, 8400), dtype="FP16"), "raw", "output0", 80),
    ],
)
def test_the_layout_is_picked_from_the_shapes(spec, layout, output, classes):
    reader = detect_reader(spec)
    assert (reader.layout, reader.output_name, len(reader.class_names)) == (layout, output, classes)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (model(FLOAT, (1, 1000)), ["'yolo'", "output0 FP32 [1, 1000]", "[N, 4 + classes, A]", "[N, K, 6]"]),
        (model(FLOAT), ["outputs none"]),
        (model(FLOAT, (1, 25200, 85)), ["[1, 25200, 85]"]),  # YOLOv5
        (model(FLOAT, (1, 8400, 84)), ["[1, 8400, 84]"]),  # turned over
        (model(FLOAT, (1, 8400, 6)), ["[1, 8400, 6]"]),
        (model(FLOAT, (1, 56, 8400)), ["[1, 56, 8400]"]),  # a pose model
        (model(PREPARED, (1, 300, 57)), ["[1, 300, 57]", "UINT8 NHWC 640x640"]),
        (model(FLOAT, (1, 84, 8400), dtype="INT32"), ["INT32"]),
        (model(FLOAT, (1, 116, 8400), (1, 32, 160, 160)), ["segmentation"]),
        (model(FLOAT, (1, 84, 8400), (1, 84, 8400)), ["output0 and output1 could each be it"]),
        (model(FLOAT, (1, 84, 8400), names=NAMES), ["80 classes", "class_names names 3"]),
        (model(FLOAT, (1, 84, 8400), class_names="person"), ["class_names='person'", "JSON array"]),
        (model(FLOAT, (1, 84, 8400), class_names="[1, 2]"), ["JSON array"]),
    ],
)
def test_what_is_not_known_is_refused_by_name_and_shape(spec, words):
    with pytest.raises(ModelRejected) as refused:
        detect_reader(spec)
    for word in words:
        assert word in str(refused.value)


def test_where_the_class_names_are_from():
    raw = (1, 6, 8400)
    assert detect_reader(model(FLOAT, raw)).class_names == ("class_0", "class_1")
    assert detect_reader(model(FLOAT, raw), ("a", "b")).class_names == ("a", "b")
    assert detect_reader(model(FLOAT, raw, names=["x", "y"]), ("a", "b")).class_names == ("x", "y")
    with pytest.raises(ModelRejected, match=r"2 classes, but TRITON_LABELS names 3"):
        detect_reader(model(FLOAT, raw), ("a", "b", "c"))


def test_an_output_can_be_named():
    spec = model(FLOAT, (1, 84, 8400), (1, 84, 8400))
    assert detect_reader(spec, output="output1").output_name == "output1"
    with pytest.raises(ModelRejected, match="'output7' is wanted"):
        detect_reader(spec, output="output7")


def test_detections_for_the_wire():
    detected = Detected(
        np.array([[1.005, 2.126, 3.3333, 4], [0, 0, 9, 9]], np.float32),
        np.array([0.91239, 0.5], np.float32),
        np.array([1, 7], np.int32),
    )
    first, second = detections(detected, np.array([3, -1]), ("person", "dog"))
    assert (first.class_id, first.class_name, first.confidence, first.track_id) == (1, "dog", 0.9124, 3)
    assert (first.box.y1, first.box.x2, first.box.y2) == (2.13, 3.33, 4.0)
    assert (second.class_name, second.track_id) == ("class_7", None)
    assert {type(value) for value in (first.confidence, first.box.x1, second.box.x2)} == {float}
    assert [found.track_id for found in detections(detected, None, ())] == [None, None]
