"""Oriented boxes, against the published formulas of Ultralytics written out for one pair and one box at a time."""

import math

import numpy as np
import pytest

from app.errors import ModelRejected
from app.pipeline.boxes import letterbox
from app.pipeline.stages.obb import corners_of, obb_reader, oriented_boxes, probiou, rotated_nms
from tests.support.heads import FLOAT, PREPARED, model

NAMES = ["plane", "ship", "court"]
ASK = {"confidence": 0.35, "iou": 0.45, "classes": None, "max_detections": 300}
WIDE = letterbox(1280, 720, 640, 640)  # half size, 140 rows of border above


def crowd(seed, count=400, things=40):
    """Oriented boxes `[count, 5]` that lie in groups, their scores and classes."""
    random = np.random.default_rng(seed)
    thing = random.integers(0, things, count)
    middle, angle = random.uniform(40, 600, (things, 2)), random.uniform(-math.pi / 4, 3 * math.pi / 4, things)
    size, kind = random.uniform((20, 8), (160, 60), (things, 2)), random.integers(0, 3, things)
    xywhr = np.concatenate(
        (
            middle[thing] + random.normal(0, 3, (count, 2)),
            size[thing] * random.uniform(0.8, 1.25, (count, 2)),
            angle[thing, None] + random.normal(0, 0.1, (count, 1)),
        ),
        axis=1,
    )
    return xywhr.astype(np.float32), random.uniform(0.2, 0.95, count).astype(np.float32), kind[thing].astype(np.int32)


def plain_probiou(one, other, eps=1e-7):
    """`batch_probiou` of ultralytics/utils/metrics.py, 8.4.190, for one pair."""

    def covariance(box):
        a, b, angle = box[2] ** 2 / 12, box[3] ** 2 / 12, box[4]
        cos, sin = math.cos(angle), math.sin(angle)
        return a * cos * cos + b * sin * sin, a * sin * sin + b * cos * cos, (a - b) * cos * sin

    (x1, y1), (x2, y2) = one[:2], other[:2]
    (a1, b1, c1), (a2, b2, c2) = covariance(one), covariance(other)
    joint = (a1 + a2) * (b1 + b2) - (c1 + c2) ** 2
    t1 = ((a1 + a2) * (y1 - y2) ** 2 + (b1 + b2) * (x1 - x2) ** 2) / (joint + eps) * 0.25
    t2 = ((c1 + c2) * (x2 - x1) * (y1 - y2)) / (joint + eps) * 0.5
    root = math.sqrt(max(a1 * b1 - c1 * c1, 0) * max(a2 * b2 - c2 * c2, 0))
    distance = min(max(t1 + t2 + 0.5 * math.log(joint / (4 * root + eps) + eps), eps), 100)
    return 1 - math.sqrt(1 - math.exp(-distance) + eps)


def plain_nms(xywhr, scores, classes, threshold, most):
    """`TorchNMS.fast_nms` of ultralytics/utils/nms.py, 8.4.190: boxes that went themselves still remove others."""
    apart = xywhr.astype(np.float64)
    apart[:, :2] += classes[:, None] * 7680.0
    order = np.argsort(-scores, kind="stable")
    kept = [
        index
        for place, index in enumerate(order)
        if not any(plain_probiou(apart[better], apart[index]) >= threshold for better in order[:place])
    ]
    return kept[:most]


def plain_corners(x, y, width, height, angle):
    """`xywhr2xyxyxyxy` of ultralytics/utils/ops.py, 8.4.190, for one box."""
    cos, sin = math.cos(angle), math.sin(angle)
    return [
        (x + a * width / 2 * cos - b * height / 2 * sin, y + a * width / 2 * sin + b * height / 2 * cos)
        for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))
    ]


def raw_head(xywhr, scores, classes, anchors=8400):
    head = np.zeros((8, anchors), np.float32)
    at = np.random.default_rng(0).permutation(anchors)[: len(scores)]
    head[:4, at], head[7, at] = xywhr[:, :4].T, xywhr[:, 4]
    head[4 + classes, at] = scores
    return {"output0": head[None]}, np.argsort(at)


def row_head(xywhr, scores, classes):
    return {"output0": np.concatenate((xywhr[:, :4], np.stack((scores, classes), 1), xywhr[:, 4:]), axis=1)[None]}


def raw_reader():
    return obb_reader(model(FLOAT, (1, 8, 8400), names=NAMES))


def rows_reader():
    return obb_reader(model(FLOAT, (1, 300, 7), names=NAMES, layout="end_to_end"))


# --- overlap and suppression ---


def test_likeness_is_the_references():
    boxes, _, _ = crowd(0, 60, 10)
    wanted = [[plain_probiou(one, other) for other in boxes.astype(float)] for one in boxes.astype(float)]
    # Near 1 the square root makes much of float32's last digit, in the reference as here.
    assert probiou(boxes, boxes) == pytest.approx(np.array(wanted), abs=2e-3)
    assert probiou(boxes[:7], boxes).shape == (7, 60)
    alike = np.array(wanted)
    assert probiou(boxes, boxes)[alike < 0.9] == pytest.approx(alike[alike < 0.9], abs=2e-5)


@pytest.mark.parametrize("threshold", [0.1, 0.45, 0.7])
@pytest.mark.parametrize("count", [1, 3, 150, 700])
def test_suppression_is_the_references(count, threshold):
    boxes, scores, classes = crowd(count, count, max(1, count // 8))
    kept = rotated_nms(boxes, scores, classes, threshold, 300)
    assert kept.tolist() == plain_nms(boxes, scores, classes, threshold, 300)
    assert kept.size < count or count < 5


def test_a_box_that_went_removes_others_all_the_same():
    boxes = np.array([(100, 100, 80, 40, 0), (108, 100, 80, 40, 0), (116, 100, 80, 40, 0)], np.float32)
    scores, same = np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int32)
    near, far = probiou(boxes, boxes)[0, 1:]
    assert far < 0.8 < near
    assert rotated_nms(boxes, scores, same, 0.8, 300).tolist() == [0]
    assert rotated_nms(boxes, scores, np.array([0, 1, 0], np.int32), 0.8, 300).tolist() == [0, 1, 2]
    assert rotated_nms(boxes, scores, same, 0.99, 300).tolist() == [0, 1, 2]
    assert rotated_nms(boxes, scores, same, 0.99, 2).tolist() == [0, 1]
    assert rotated_nms(boxes[:0], scores[:0], same[:0], 0.5, 300).tolist() == []


def test_more_boxes_than_a_matrix_could_hold():
    """30,000 candidates of one thing, and of nothing at all: memory stays that of a block."""
    count = 30_000
    scores = np.linspace(0.9, 0.4, count).astype(np.float32)
    same = np.tile(np.array((300, 300, 90, 40, 0.5), np.float32), (count, 1))
    assert rotated_nms(same, scores, np.zeros(count, np.int32), 0.45, 300).tolist() == [0]
    spread = same.copy()
    spread[:, 0] += np.arange(count) * 200
    assert rotated_nms(spread, scores, np.zeros(count, np.int32), 0.45, 300).tolist() == list(range(300))


def test_corners_are_the_references():
    boxes, _, _ = crowd(1, 50)
    assert corners_of(boxes) == pytest.approx(np.array([plain_corners(*box) for box in boxes.tolist()]), abs=1e-3)
    right, *_ = corners_of(np.array([(100, 50, 40, 20, math.pi / 2)], np.float32)).tolist()
    assert np.array(right) == pytest.approx(np.array([(90, 70), (110, 70), (110, 30), (90, 30)]), abs=1e-3)


# --- heads ---


@pytest.mark.parametrize("frame", [(1280, 720), (480, 640), (97, 61), (1920, 400)], ids=str)
def test_a_raw_head_reads_as_the_reference_does(frame):
    boxes, scores, classes = crowd(2)
    outputs, order = raw_head(boxes, scores, classes)
    box = letterbox(*frame, 640, 640)
    found = raw_reader().read(outputs, 0, box, **ASK)
    scoring = [index for index in order if scores[index] > np.float32(0.35)]
    kept = [scoring[at] for at in plain_nms(boxes[scoring], scores[scoring], classes[scoring], 0.45, 300)]
    assert 20 < len(kept) < 200
    assert found.confidence.tolist() == scores[kept].tolist()
    assert found.class_id.tolist() == classes[kept].tolist()
    scaled = boxes[kept].astype(float)
    scaled[:, :2] -= box.pad_x, box.pad_y
    scaled[:, :4] /= (box.width / frame[0], box.height / frame[1]) * 2
    assert found.xywhr == pytest.approx(scaled, rel=1e-5, abs=1e-3)
    corners = np.array([plain_corners(*box) for box in scaled])
    assert found.corners == pytest.approx(corners, rel=1e-5, abs=5e-3)
    around = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
    assert found.xyxy == pytest.approx(np.clip(around, 0, frame * 2), rel=1e-5, abs=5e-3)
    assert (found.xyxy.dtype, found.confidence.dtype, found.class_id.dtype) == (np.float32, np.float32, np.int32)


def test_rows_are_suppressed_unless_the_model_did_it():
    boxes, scores, classes = crowd(3)
    outputs = row_head(boxes, scores, classes.astype(np.float32))
    prepared = obb_reader(model(PREPARED, (1, 400, 7), names=NAMES))
    at = np.flatnonzero(scores > np.float32(0.35))
    kept = at[plain_nms(boxes[at], scores[at], classes[at], 0.45, 300)]
    assert prepared.read(outputs, 0, WIDE, **ASK).confidence.tolist() == scores[kept].tolist()
    found = rows_reader().read(outputs, 0, WIDE, **ASK)
    assert found.confidence.tolist() == scores[at][:300].tolist()  # in the model's order
    assert rows_reader().scan(outputs, 0.35)[1] == len(at)
    assert raw_reader().scan(raw_head(boxes, scores, classes)[0], 0.35)[1] > 10**9


def test_half_floats():
    boxes, scores, classes = crowd(4)
    outputs = {"output0": row_head(boxes, scores, classes)["output0"].astype(np.float16)}
    reader = obb_reader(model(FLOAT, (1, 400, 7), names=NAMES, dtype="FP16", layout="end_to_end"))
    found = reader.read(outputs, 0, letterbox(640, 640, 640, 640), **{**ASK, "max_detections": 5})
    at = np.flatnonzero(outputs["output0"][0, :, 4] > np.float16(0.35))[:5]
    assert found.xywhr.tolist() == outputs["output0"][0][at][:, (0, 1, 2, 3, 6)].astype(np.float32).tolist()


def test_what_is_asked_for():
    boxes, scores, classes = crowd(5)
    for outputs, reader in (
        (raw_head(boxes, scores, classes)[0], raw_reader()),
        (row_head(boxes, scores, classes), rows_reader()),
    ):
        assert set(reader.read(outputs, 0, WIDE, **{**ASK, "classes": frozenset({1})}).class_id.tolist()) == {1}
        assert reader.read(outputs, 0, WIDE, **{**ASK, "classes": frozenset()}).xyxy.shape == (0, 4)
        assert len(reader.read(outputs, 0, WIDE, **{**ASK, "max_detections": 3}).corners) == 3
        nothing = reader.read(outputs, 0, WIDE, **{**ASK, "confidence": 0.99})
        assert (nothing.xyxy.shape, nothing.corners.shape) == ((0, 4), (0, 4, 2))
        assert oriented_boxes(nothing, None, ()) == []
        both = {name: np.concatenate((np.zeros_like(value), value)) for name, value in outputs.items()}
        first, second, third = reader.read_all(both, [None, WIDE], **ASK)[0], *reader.read_all(both, [WIDE] * 2, **ASK)
        assert first is None
        assert second.confidence.size == 0
        assert third.xywhr.tolist() == reader.read(outputs, 0, WIDE, **ASK).xywhr.tolist()


def test_numbers_that_are_none_do_not_get_through():
    boxes, scores, classes = crowd(6, 5, 5)
    scores[:] = 0.9, 0.8, 0.7, 0.6, np.nan
    boxes[0, 0], boxes[1, 4], boxes[2, 2] = np.inf, np.nan, -np.inf
    for outputs, reader in (
        (raw_head(boxes, scores, classes)[0], raw_reader()),
        (row_head(boxes, scores, classes), rows_reader()),
    ):
        assert reader.read(outputs, 0, WIDE, **ASK).confidence.tolist() == [np.float32(0.6)]


def test_on_the_wire():
    xywhr = np.array([(320, 320, 100, 40, -0.3), (10, 150, 60, 20, 1.0)], np.float32)
    outputs = row_head(xywhr, np.array([0.87654, 0.5], np.float32), np.array([1, 7], np.float32))
    found = rows_reader().read(outputs, 0, WIDE, **ASK)
    first, second = oriented_boxes(found, np.array([4, -1]), tuple(NAMES))
    assert (first.class_name, first.confidence, first.track_id) == ("ship", 0.8765, 4)
    assert (second.class_name, second.track_id) == ("class_7", None)
    assert (first.width, first.height, first.angle_deg) == (200.0, 80.0, -17.1887)
    wanted = np.array(plain_corners(640, 360, 200, 80, -0.3))
    assert np.array(first.corners) == pytest.approx(wanted, abs=0.006)
    assert min(x for x, _ in second.corners) < 0
    assert second.box.x1 == second.box.y1 == 0.0


# --- which models are read ---


@pytest.mark.parametrize(
    ("spec", "layout", "classes", "declared"),
    [
        (model(FLOAT, (1, 20, 8400)), "raw", 15, False),
        (model(FLOAT, (-1, 20, -1)), "raw", 15, False),
        (model(FLOAT, (1, 8, 8400), names=NAMES, task="obb", layout="raw"), "raw", 3, True),
        (model(FLOAT, (1, 300, 7)), "end_to_end", 0, False),
        (model(PREPARED, (-1, 300, 7), names=NAMES), "prepared", 3, True),
    ],
)
def test_models_that_are_read(spec, layout, classes, declared):
    reader = obb_reader(spec)
    assert (reader.layout, len(reader.class_names), reader.declared) == (layout, classes, declared)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (model(FLOAT, (1, 116, 8400), (1, 32, 160, 160)), "TRITON_SEGMENT_MODEL"),
        (model(FLOAT, (1, 7, 8400), names=NAMES), r"2 classes and an angle, but class_names has 3 \(a detection model"),
        (model(FLOAT, (1, 8, 8400), names=NAMES, task="detect"), "'detect'.*TRITON_DETECT_MODEL, not in TRITON_OBB_MO"),
        (model(FLOAT, (1, 8, 8400), names=NAMES, resize="stretch"), "no rectangles; want letterbox"),
        (model(FLOAT, (1, 1000)), r"known: \[N, 4 \+ classes \+ 1, A\]"),
        (model(FLOAT, (1, 300, 6)), r"known: \[N, 4 \+ classes \+ 1, A\]"),
    ],
)
def test_models_that_are_refused(spec, why):
    with pytest.raises(ModelRejected, match=why):
        obb_reader(spec)


def test_a_first_answer_of_another_kind_is_refused():
    boxes, scores, classes = crowd(7)
    for outputs, spec in (
        (raw_head(boxes, scores, classes)[0], model(FLOAT, (1, 8, 8400), names=NAMES)),
        (row_head(boxes, scores, classes), model(FLOAT, (1, 300, 7), names=NAMES)),
    ):
        reader = obb_reader(spec)
        reader.check(outputs)
        small = {name: value.copy() for name, value in outputs.items()}
        boxes_of = small["output0"][:, :4] if spec.outputs[0].shape[2] == 8400 else small["output0"][..., :4]
        boxes_of /= 640
        with pytest.raises(ModelRejected, match="not pixels"):
            reader.check(small)
        unsure = {name: value * np.float32(100) for name, value in outputs.items()}
        with pytest.raises(ModelRejected, match="what should be scores"):
            reader.check(unsure)
    rows_reader().check(small)  # it says what it is
