"""Heads of other families than YOLO's, filled at random, against each family's own post-processing.

The references are written anew from what the families publish, box by box, without code of the pipeline.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import ModelRejected
from app.inference.client import ModelSpec, TensorSpec
from app.pipeline.boxes import Letterbox
from app.pipeline.families import FAMILIES
from app.pipeline.layouts import FAMILY_LAYOUTS
from app.pipeline.stages.detect import Detected, DetectReader, detect_reader
from app.pipeline.stages.pose import pose_reader

CONFIDENCE, IOU = 0.35, 0.45
WIDTH, HEIGHT = 416, 320
CELLS = sum((WIDTH // stride) * (HEIGHT // stride) for stride in (8, 16, 32))
FRAMES = [(640, 480), (333, 517), (1920, 400)]
NAMES = ["a", "b", "c", "d", "e"]
Rows = list[tuple[float, float, float, float, float, int]]
"""x1, y1, x2, y2 in frame pixels, score, class; best first."""


def spec(*outputs: tuple[Any, ...], names: list[str] | None = NAMES, image: Any = None, **parameters: str) -> ModelSpec:
    tensors = tuple(TensorSpec(name, dtype, shape) for name, dtype, shape in outputs)
    if names is not None:
        parameters["class_names"] = json.dumps(names)
    image = image or TensorSpec("images", "FP32", (-1, 3, HEIGHT, WIDTH))
    return ModelSpec("net", "1", (image,), tensors, 8, parameters)


def sigmoid(values: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-values))


def overlap(a: Any, b: Any) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def suppressed(rows: Rows) -> Rows:
    """Greedy suppression within each class, as `torchvision.ops.batched_nms`."""
    kept: Rows = []
    for row in sorted(rows, key=lambda row: -row[4]):
        if all(row[5] != other[5] or overlap(row, other) <= IOU for other in kept):
            kept.append(row)
    return kept


def clipped(rows: Rows, size: tuple[int, int]) -> Rows:
    width, height = size

    def within(value: float, limit: int) -> float:
        return min(max(value, 0), limit)

    return [
        (within(x1, width), within(y1, height), within(x2, width), within(y2, height), score, label)
        for x1, y1, x2, y2, score, label in rows
    ]


def corners(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def boxes_at_random(random: np.random.Generator, count: int) -> NDArray[np.float32]:
    """cx, cy, w, h as shares."""
    centre, side = random.uniform(0.1, 0.9, (count, 2)), random.uniform(0.02, 0.5, (count, 2))
    return np.concatenate((centre, side), axis=1).astype(np.float32)


def scores_at_random(random: np.random.Generator, count: int, classes: int = len(NAMES)) -> NDArray[np.float32]:
    """Few of them above the threshold, and one exactly on it."""
    scores = random.uniform(0, 0.3, (count, classes))
    scores[random.integers(0, count, 40), random.integers(0, classes, 40)] = random.uniform(0.2, 0.99, 40)
    scores[0, 0] = np.float32(CONFIDENCE)
    return scores.astype(np.float32)


# --- the families: their head, and what their own tools make of it for a frame ---

Head = dict[str, NDArray[Any]]


def rtdetr(random: np.random.Generator) -> Head:
    return {"output0": np.concatenate((boxes_at_random(random, 300), scores_at_random(random, 300)), axis=1)}


def read_rtdetr(head: Head, size: tuple[int, int]) -> Rows:
    """`RTDETRPredictor.postprocess`, ultralytics/models/rtdetr/predict.py (8.0 to 8.3): the best class of a query;
    shares of the frame, because the frame was stretched. Nothing is suppressed."""
    width, height = size
    rows: Rows = []
    for x, y, w, h, *scores in head["output0"].tolist():
        best = max(scores)
        if best > CONFIDENCE:
            x1, y1, x2, y2 = corners(x, y, w, h)
            rows.append((x1 * width, y1 * height, x2 * width, y2 * height, best, scores.index(best)))
    return sorted(rows, key=lambda row: -row[4])


def rtdetr_rows(random: np.random.Generator) -> Head:
    """`RTDETRDecoder.postprocess`, ultralytics/nn/modules/head.py (8.4): the best of all queries and classes."""
    boxes, scores = boxes_at_random(random, 300), scores_at_random(random, 300)
    best = np.argsort(-scores.ravel(), kind="stable")[:300]
    query, label = best // len(NAMES), best % len(NAMES)
    columns = [boxes[query], scores.ravel()[best][:, None], label[:, None]]
    return {"output0": np.concatenate(columns, axis=1).astype(np.float32)}


def read_rtdetr_rows(head: Head, size: tuple[int, int]) -> Rows:
    """`RTDETRPredictor.postprocess`, ultralytics/models/rtdetr/predict.py (8.4)."""
    width, height = size
    rows: Rows = []
    for x, y, w, h, score, label in head["output0"].tolist():
        if score > CONFIDENCE:
            x1, y1, x2, y2 = corners(x, y, w, h)
            rows.append((x1 * width, y1 * height, x2 * width, y2 * height, score, int(label)))
    return rows


def boxes_logits(random: np.random.Generator) -> Head:
    scores = np.clip(scores_at_random(random, 300).astype(np.float64), 1e-6, 1)
    scores[5, :3] = 0.9, 0.8, 0.7  # one query, three classes
    logits = np.log(scores / (1 - scores)).astype(np.float32)
    return {"dets": boxes_at_random(random, 300), "labels": logits}


def read_boxes_logits(head: Head, size: tuple[int, int]) -> Rows:
    """`PostProcess`, rfdetr/models/lwdetr.py, and `DFINEPostProcessor`, src/zoo/dfine/postprocessor.py: the 300 best of
    all sigmoids, whatever their query."""
    width, height = size
    scores = sigmoid(head["labels"].astype(np.float64)).ravel()
    rows: Rows = []
    for index in np.argsort(-scores, kind="stable")[:300].tolist():
        query, label = divmod(index, len(NAMES))
        if scores[index] > CONFIDENCE:
            x1, y1, x2, y2 = corners(*head["dets"][query].tolist())
            rows.append((x1 * width, y1 * height, x2 * width, y2 * height, float(scores[index]), label))
    return rows


def boxes_scores(random: np.random.Generator) -> Head:
    middle = boxes_at_random(random, CELLS) * np.array([WIDTH, HEIGHT] * 2, np.float32)
    boxes = np.concatenate((middle[:, :2] - middle[:, 2:] / 2, middle[:, :2] + middle[:, 2:] / 2), axis=1)
    return {"boxes": boxes.astype(np.float32), "scores": scores_at_random(random, CELLS)}


def read_boxes_scores(head: Head, size: tuple[int, int]) -> Rows:
    """`PPYoloEPostPredictionCallback.forward`, super_gradients/.../pp_yolo_e/post_prediction_callback.py: the best
    class of a box, then suppression within each class. The frame was letterboxed."""
    rows: Rows = []
    for box, scores in zip(head["boxes"].tolist(), head["scores"].tolist(), strict=True):
        best = max(scores)
        if best > CONFIDENCE:
            rows.append((*box, best, scores.index(best)))
    return from_letterbox(suppressed(rows), size)


def objectness(random: np.random.Generator) -> Head:
    boxes = boxes_at_random(random, 3 * CELLS) * np.array([WIDTH, HEIGHT] * 2, np.float32)
    sure = random.uniform(0.3, 1, (3 * CELLS, 1)).astype(np.float32)
    return {"output": np.concatenate((boxes, sure, scores_at_random(random, 3 * CELLS)), axis=1)}


def read_objectness(head: Head, size: tuple[int, int]) -> Rows:
    """`non_max_suppression`, utils/general.py of YOLOv5: objectness above the threshold, then the best product."""
    rows: Rows = []
    for x, y, w, h, sure, *scores in head["output"].tolist():
        products = [float(np.float32(sure) * np.float32(score)) for score in scores]
        best = max(products)
        if sure > CONFIDENCE and best > CONFIDENCE:
            rows.append((*corners(x, y, w, h), best, products.index(best)))
    return from_letterbox(suppressed(rows), size)


def yolox(random: np.random.Generator) -> Head:
    offsets, logs = random.uniform(-0.5, 1.5, (CELLS, 2)), random.uniform(-0.5, 1.8, (CELLS, 2))
    sure = random.uniform(0.3, 1, (CELLS, 1))
    columns = [offsets, logs, sure, scores_at_random(random, CELLS)]
    return {"output": np.concatenate(columns, axis=1).astype(np.float32)}


def read_yolox(head: Head, size: tuple[int, int]) -> Rows:
    """`demo_postprocess` and `multiclass_nms_class_aware`, yolox/utils/demo_utils.py; boxes are over the ratio."""
    ratio = min(HEIGHT / size[1], WIDTH / size[0])
    rows: Rows = []
    index = 0
    for stride in (8, 16, 32):
        for row in range(HEIGHT // stride):
            for column in range(WIDTH // stride):
                x, y, w, h, sure, *scores = head["output"][index].tolist()
                index += 1
                products = [sure * score for score in scores]
                best = max(products)
                if best > CONFIDENCE:
                    centre = ((x + column) * stride, (y + row) * stride)
                    box = corners(*centre, math.exp(w) * stride, math.exp(h) * stride)
                    rows.append((*box, best, products.index(best)))
    return moved(suppressed(rows), 0, 0, 1 / ratio, 1 / ratio)


def rows_apart(random: np.random.Generator) -> Head:
    boxes = boxes_at_random(random, 300) * np.array([WIDTH, HEIGHT] * 2, np.float32)
    boxes = np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), axis=1)
    scores = np.sort(random.uniform(0, 1, 300).astype(np.float32))[::-1]
    return {"boxes": boxes, "scores": scores, "labels": random.integers(0, len(NAMES), 300)}


def read_rows_apart(head: Head, size: tuple[int, int]) -> Rows:
    """`DFINEPostProcessor` in deploy mode: rows are done, here for the input's size, to which a frame was stretched."""
    x, y = size[0] / WIDTH, size[1] / HEIGHT
    return [
        (x1 * x, y1 * y, x2 * x, y2 * y, score, label)
        for (x1, y1, x2, y2), score, label in zip(
            head["boxes"].tolist(), head["scores"].tolist(), head["labels"].tolist(), strict=True
        )
        if score > CONFIDENCE
    ]


def efficient_nms(random: np.random.Generator) -> Head:
    head = rows_apart(random)
    return {
        "num_dets": np.array([60], np.int32),
        "det_boxes": head["boxes"],
        "det_scores": head["scores"],
        "det_classes": head["labels"].astype(np.int32),
    }


def read_efficient_nms(head: Head, size: tuple[int, int]) -> Rows:
    """TensorRT's plugin/efficientNMSPlugin/README.md: the first num_dets rows count."""
    count = int(head["num_dets"][0])
    names = {"boxes": "det_boxes", "scores": "det_scores", "labels": "det_classes"}
    rows = {name: head[theirs][:count] for name, theirs in names.items()}
    plain = [
        (*box, score, label)
        for box, score, label in zip(
            rows["boxes"].tolist(), rows["scores"].tolist(), rows["labels"].tolist(), strict=True
        )
        if score > CONFIDENCE
    ]
    return from_letterbox(plain, size)


def torchvision(random: np.random.Generator) -> Head:
    head = rows_apart(random)
    return {**head, "labels": head["labels"] + 1}


def read_torchvision(head: Head, size: tuple[int, int]) -> Rows:
    """`RoIHeads.postprocess_detections`, torchvision/models/detection/roi_heads.py: rows are done, labels are those of
    the training, in which 0 is the background."""
    rows = zip(head["boxes"].tolist(), head["scores"].tolist(), head["labels"].tolist(), strict=True)
    return from_letterbox([(*box, score, label) for box, score, label in rows if score > CONFIDENCE], size)


def from_letterbox(rows: Rows, size: tuple[int, int]) -> Rows:
    """Ultralytics' `scale_boxes`: the frame lies in the middle, each side rounded to a pixel."""
    scale = min(HEIGHT / size[1], WIDTH / size[0])
    width, height = round(size[0] * scale), round(size[1] * scale)
    left, top = round((WIDTH - width) / 2 - 0.1), round((HEIGHT - height) / 2 - 0.1)
    x, y = size[0] / width, size[1] / height
    return moved(rows, left, top, x, y)


def moved(rows: Rows, left: float, top: float, x: float, y: float) -> Rows:
    return [((x1 - left) * x, (y1 - top) * y, (x2 - left) * x, (y2 - top) * y, s, c) for x1, y1, x2, y2, s, c in rows]


CASES: dict[str, tuple[Any, Any, dict[str, str]]] = {
    "rtdetr": (rtdetr, read_rtdetr, {}),
    "rtdetr_rows": (rtdetr_rows, read_rtdetr_rows, {}),
    "boxes_logits": (boxes_logits, read_boxes_logits, {}),
    "boxes_scores": (boxes_scores, read_boxes_scores, {}),
    "objectness": (objectness, read_objectness, {}),
    "yolox": (yolox, read_yolox, {}),
    "rows_apart": (rows_apart, read_rows_apart, {"resize": "stretch"}),
    "torchvision": (torchvision, read_torchvision, {}),
    "efficient_nms": (efficient_nms, read_efficient_nms, {}),
}


def reader_of(layout: str, head: Head, **parameters: str) -> DetectReader:
    kinds = {"i": "INT64", "f": "FP32"}
    outputs = [
        (name, "FP16" if a.dtype == np.float16 else kinds[a.dtype.kind], (-1, *a.shape)) for name, a in head.items()
    ]
    return detect_reader(spec(*outputs, layout=layout, **CASES[layout][2], **parameters))


def limits(**other: Any) -> dict[str, Any]:
    return {"confidence": CONFIDENCE, "iou": IOU, "classes": None, "max_detections": 1000, **other}


def as_rows(found: Detected) -> Rows:
    return [
        (*box, score, label)
        for box, score, label in zip(
            found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), strict=True
        )
    ]


def compare(found: Rows, wanted: Rows, size: tuple[int, int], near: float = 1e-3) -> None:
    wanted = clipped(wanted, size)
    assert len(found) == len(wanted)
    order = lambda row: (-round(row[4], 4), row[5], round(row[0], 1))  # noqa: E731
    for ours, theirs in zip(sorted(found, key=order), sorted(wanted, key=order), strict=True):
        assert ours[5] == theirs[5]
        assert ours[:5] == pytest.approx(theirs[:5], rel=near, abs=near * 50)


def test_every_layout_of_another_family_is_here() -> None:
    assert set(CASES) == set(FAMILY_LAYOUTS) == set(FAMILIES)


@pytest.mark.parametrize("size", FRAMES)
@pytest.mark.parametrize("layout", CASES)
def test_a_head_reads_as_its_familys_own_tool_reads_it(layout: str, size: tuple[int, int]) -> None:
    make, wanted, _ = CASES[layout]
    head = make(np.random.default_rng(11))
    reader = reader_of(layout, head)
    outputs = {name: array[None] for name, array in head.items()}
    found = reader.read(outputs, 0, reader.input.place(*size), **limits())
    rows = wanted(head, size)
    assert len(rows) > 5
    compare(as_rows(found), rows, size)
    assert (np.diff(found.confidence) <= 0).all()
    assert (found.xyxy.dtype, found.confidence.dtype, found.class_id.dtype) == (np.float32, np.float32, np.int32)
    reader.check(outputs)


@pytest.mark.parametrize("layout", CASES)
def test_a_batch_reads_as_its_images_do(layout: str) -> None:
    heads = [CASES[layout][0](np.random.default_rng(seed)) for seed in (1, 2, 3)]
    reader = reader_of(layout, heads[0])
    outputs = {name: np.stack([head[name] for head in heads]) for name in heads[0]}
    boxes: list[Letterbox | None] = [reader.input.place(640, 480), None, reader.input.place(333, 517)]
    rows, count = reader.scan(outputs, 0.2)
    assert count > 0
    everything = reader.read_all(outputs, boxes, rows=rows, **limits())
    assert everything[1] is None
    for index in (0, 2):
        box, together = boxes[index], everything[index]
        assert box is not None
        assert together is not None
        assert as_rows(together) == as_rows(reader.read(outputs, index, box, **limits()))
        few = reader.read_all(outputs, boxes, rows=rows, **limits(classes=frozenset({1, 2}), max_detections=3))[index]
        assert few is not None
        assert as_rows(few) == as_rows(
            reader.read(outputs, index, box, **limits(classes=frozenset({1, 2}), max_detections=3))
        )
        assert 0 < len(few.class_id) <= 3
        assert set(few.class_id.tolist()) <= {1, 2}


@pytest.mark.parametrize("layout", [layout for layout in CASES if layout != "yolox"])
def test_half_precision(layout: str) -> None:
    """Against the same head in single precision, with each number as half precision has it."""
    make, wanted, _ = CASES[layout]
    head = make(np.random.default_rng(12))
    half = {name: array.astype(np.float16) if array.dtype.kind == "f" else array for name, array in head.items()}
    reader = reader_of(layout, half)
    found = reader.read(
        {name: array[None] for name, array in half.items()}, 0, reader.input.place(640, 480), **limits()
    )
    single = {name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in half.items()}
    compare(as_rows(found), wanted(single, (640, 480)), (640, 480))


@pytest.mark.parametrize("layout", CASES)
def test_numbers_that_are_none_do_not_get_through(layout: str) -> None:
    make, _, _ = CASES[layout]
    head = make(np.random.default_rng(13))
    reader = reader_of(layout, head)
    for name, array in head.items():
        if array.dtype.kind == "f":
            damaged = {key: value.copy() for key, value in head.items()}
            damaged[name][::2] = np.nan
            damaged[name][1::4] = np.inf
            outputs = {key: value[None] for key, value in damaged.items()}
            found = reader.read(outputs, 0, reader.input.place(640, 480), **limits())
            assert np.isfinite(found.xyxy).all()
            assert np.isfinite(found.confidence).all()


@pytest.mark.parametrize("layout", CASES)
@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_the_ends_of_the_threshold(layout: str, confidence: float) -> None:
    head = CASES[layout][0](np.random.default_rng(14))
    reader = reader_of(layout, head)
    outputs = {name: array[None] for name, array in head.items()}
    found = reader.read(outputs, 0, reader.input.place(640, 480), **limits(confidence=confidence, max_detections=50))
    assert len(found.confidence) == (50 if confidence == 0 else 0)


def test_no_objects_at_all() -> None:
    empty = {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32), "labels": np.zeros(0, np.int64)}
    reader = reader_of("torchvision", torchvision(np.random.default_rng(0)))
    outputs = {name: array[None] for name, array in empty.items()}
    assert reader.read(outputs, 0, reader.input.place(640, 480), **limits()).xyxy.shape == (0, 4)
    reader.check(outputs)


def test_names_of_classes() -> None:
    float32 = "FP32"
    logits = [("dets", float32, (1, 300, 4)), ("labels", float32, (1, 300, 6))]
    assert detect_reader(spec(*logits, layout="boxes_logits")).class_names == (*NAMES, "class_5")
    same = [("dets", float32, (1, 300, 4)), ("labels", float32, (1, 300, 4))]  # three classes, and RF-DETR's one more
    assert detect_reader(spec(*same, names=["a", "b", "c"], layout="boxes_logits")).output_names == ("dets", "labels")
    apart = [("b", float32, (1, -1, 4)), ("l", "INT64", (1, -1)), ("s", float32, (1, -1))]
    assert detect_reader(spec(*apart, layout="torchvision")).class_names == ("__background__", *NAMES)
    known = ["__background__", *NAMES]
    assert detect_reader(spec(*apart, names=known, layout="torchvision")).class_names == tuple(known)
    assert detect_reader(spec(*apart, names=None, layout="rows_apart")).class_names == ()
    wide = ("output", float32, (1, CELLS, 85))
    assert len(detect_reader(spec(wide, names=None, layout="yolox")).class_names) == 80


def test_efficient_nms_is_known_by_its_names_and_confirmed_by_an_answer() -> None:
    head = efficient_nms(np.random.default_rng(2))
    shapes = {"num_dets": "INT32", "det_boxes": "FP32", "det_scores": "FP32", "det_classes": "INT32"}
    reader = detect_reader(spec(*[(name, kind, (-1, *head[name].shape)) for name, kind in shapes.items()]))
    assert (reader.layout, reader.declared) == ("efficient_nms", False)
    reader.check({name: array[None] for name, array in head.items()})
    shares = {**head, "det_boxes": head["det_boxes"] / 416}
    with pytest.raises(ModelRejected, match="shares of the image, not pixels"):
        reader.check({name: array[None] for name, array in shares.items()})


@pytest.mark.parametrize(
    ("layout", "change", "words"),
    [
        ("rtdetr", {"output0": lambda head: head * 300}, "no shares of the image"),
        ("rtdetr_rows", {"output0": lambda head: head + 0.5}, "no shares of the image"),
        ("boxes_logits", {"labels": sigmoid}, "they are scores already"),
        ("boxes_scores", {"scores": lambda scores: scores * 20 - 10}, "what should be scores goes from"),
        ("boxes_scores", {"boxes": lambda boxes: boxes / 416}, "shares of the image, not pixels"),
        ("objectness", {"output": lambda head: head * 7}, "what should be scores goes from"),
        ("yolox", {"output": lambda head: head * 7}, "what should be scores goes from"),
        ("rows_apart", {"boxes": lambda boxes: boxes / 416}, "shares of the image, not pixels"),
    ],
)
def test_an_answer_that_the_layout_cannot_give_is_refused(layout: str, change: Any, words: str) -> None:
    head = CASES[layout][0](np.random.default_rng(15))
    reader = reader_of(layout, head)
    wrong = {name: change.get(name, lambda array: array)(array)[None] for name, array in head.items()}
    with pytest.raises(ModelRejected) as refused:
        reader.check(wrong)
    assert words in str(refused.value)
    assert f"its layout is {layout}" in str(refused.value)


FLOAT, LONG = "FP32", "INT64"
APART91 = [("dets", FLOAT, (1, 9, 4)), ("labels", FLOAT, (1, 9, 91))]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        # declared, but the shapes differ
        (spec(("o", FLOAT, (1, 300, 4)), layout="boxes_logits"), ["means boxes [N, Q, 4]", "the classes is missing"]),
        (spec(("o", FLOAT, (1, 300, 9)), layout="boxes_logits"), ["the boxes is missing"]),
        (spec(("a", FLOAT, (1, 9, 4)), ("b", FLOAT, (1, 9, 4)), layout="boxes_logits"), ["the boxes is missing"]),
        (spec(("o", FLOAT, (1, 8400, 10)), layout="yolox"), [f"has {CELLS} cells", "not 8400"]),
        (spec(("o", FLOAT, (1, 5, 6)), ("p", FLOAT, (1, 7, 6)), layout="rtdetr_rows"), ["o and p could each be it"]),
        (spec(("o", FLOAT, (1, 300, 10)), layout="rtdetr"), ["has 6 classes", "class_names names 5"]),
        (spec(*APART91, names=["x"] * 80, layout="boxes_logits"), ["91 names"]),
        (spec(("b", FLOAT, (1, 9, 4)), ("s", FLOAT, (1, 9)), layout="rows_apart"), ["the labels is missing"]),
        (spec(("o", FLOAT, (1, 300, 10)), layout="detr"), ["layout='detr'", "raw", "boxes_logits", "efficient_nms"]),
        # not declared: what it looks like, which stage reads it, what to do
        (spec(("o", FLOAT, (1, 300, 84)), names=None), ["RT-DETR", "layout rtdetr", "model.yaml"]),
        (spec(*APART91), ["RF-DETR", "boxes_logits", "mean and std", "model.yaml"]),
        (spec(("b", FLOAT, (1, 9, 4)), ("s", FLOAT, (1, 9)), ("l", LONG, (1, 9))), ["rows_apart", "torchvision"]),
        (spec(("o", FLOAT, (1, 3 * CELLS, 10))), ["layout objectness", "yolov5nu"]),
        (spec(("o", FLOAT, (1, CELLS, 10))), ["layout yolox"]),
        (spec(("o", FLOAT, (1, 300, 7)), names=None), ["stage `obb`", "OBB="]),
        (spec(("o", FLOAT, (1, 10, CELLS)), task="obb"), ["task='obb'", "stage 'obb' reads it", "TRITON_OBB_MODEL"]),
        (spec(("o", FLOAT, (1, 10, CELLS))), ["6 classes", "stage `obb`"]),
        (spec(("o", FLOAT, (1, 41, CELLS)), ("p", FLOAT, (1, 32, 80, 104))), ["stage `segment`", "SEGMENT="]),
        (spec(("o", FLOAT, (1, 41, CELLS))), ["37 classes", "stage `segment`"]),
        (spec(("o", FLOAT, (1, 56, CELLS)), names=None), ["17 keypoints", "stage `pose`", "POSE="]),
        (spec(("o", FLOAT, (1, 1000))), ["stage `classify`", "CLASSIFY="]),
        (spec(("o", FLOAT, (1, 9, CELLS)), task="depth"), ["'depth'", "want detect, pose, segment, obb, classify"]),
        (spec(("num_dets", "INT32", (1, 1)), ("det_boxes", FLOAT, (1, 9, 4))), ["EfficientNMS"]),
    ],
)
def test_what_is_refused_and_how_it_is_said(model: ModelSpec, words: list[str]) -> None:
    with pytest.raises(ModelRejected) as refused:
        detect_reader(model)
    for word in words:
        assert word in str(refused.value), str(refused.value)


def test_the_pose_stage_names_the_stage_that_reads_a_head() -> None:
    with pytest.raises(ModelRejected, match="stage 'detect' reads it"):
        pose_reader(spec(("o", FLOAT, (1, 56, CELLS)), task="detect"))
    with pytest.raises(ModelRejected, match="layout='yolox': such a head has objects, which stage `detect` reads"):
        pose_reader(spec(("o", FLOAT, (1, 56, CELLS)), layout="yolox"))
    known = pose_reader(spec(("o", FLOAT, (1, 56, CELLS)), names=["person"], task="pose", layout="raw"))
    assert known.layout == "raw"


def test_a_head_that_shows_no_shape_is_read_as_declared_once_an_answer_has_confirmed_it() -> None:
    """As Ultralytics' export with dynamic=True where its simplifier is not installed."""
    anywhere = ("output0", FLOAT, (-1, -1, -1))
    with pytest.raises(ModelRejected, match=r"rows and columns are both open.*class_names.*make models"):
        detect_reader(spec(anywhere))
    with pytest.raises(ModelRejected, match="does not show the number of classes"):
        detect_reader(spec(anywhere, names=None, layout="raw"))
    raw = detect_reader(spec(anywhere, layout="raw"))
    assert (raw.layout, raw.declared, raw.class_names) == ("raw", False, tuple(NAMES))
    raw.check({"output0": np.zeros((1, 4 + len(NAMES), CELLS), np.float32)})
    with pytest.raises(ModelRejected, match=r"\[41, 2730\].* with 5 names of classes, layout raw has 9 rows"):
        raw.check({"output0": np.zeros((1, 41, CELLS), np.float32)})
    rows = detect_reader(spec(anywhere, layout="end_to_end"))
    rows.check({"output0": np.zeros((1, 300, 6), np.float32)})
    with pytest.raises(ModelRejected, match="layout end_to_end has 6 columns"):
        rows.check({"output0": np.zeros((1, 300, 38), np.float32)})
