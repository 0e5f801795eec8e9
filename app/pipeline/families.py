"""Detection heads of other families than YOLO's, in the layouts that `layouts` lists, to candidates. Pure numpy.

Each family has a function that takes the tensors of one image and returns the candidates above the threshold, best
first, in canvas pixels. What the threshold and the choice of a class mean is that of the family's own tool:

- `rtdetr`: the best class of a query counts (`RTDETRPredictor.postprocess`, ultralytics/models/rtdetr/predict.py);
- `boxes_logits`: each class of a query counts for itself (`PostProcess`, rfdetr/models/lwdetr.py;
  `DFINEPostProcessor`, src/zoo/dfine/postprocessor.py in D-FINE), up to the number of objects that is asked for;
- `boxes_scores`: the best class of a box (`PPYoloEPostPredictionCallback`, super_gradients/training/models/
  detection_models/pp_yolo_e/post_prediction_callback.py);
- `objectness`: score of the best class times objectness (`non_max_suppression`, utils/general.py in YOLOv5);
- `yolox`: the same, after the grid is decoded (`demo_postprocess`, yolox/utils/demo_utils.py).

Overlaps are suppressed within each class, as for YOLO; YOLOX's own demo does it across classes, its evaluation within.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ModelRejected
from app.inference.client import ModelSpec, TensorSpec
from app.pipeline.boxes import Floats
from app.pipeline.layouts import Candidates, InputFormat, Layout, take

Tensors = Sequence[NDArray[Any]]
"""Those of one image, without the batch dimension."""
Read = Callable[[Tensors, InputFormat, np.float32], Candidates]
_STRIDES = (8, 16, 32)
_FLOATS, _INTEGERS = ("FP32", "FP16"), ("INT32", "INT64")
_NEAR = 1e-3
"""Margin for comparing logits before the scores are computed exactly."""
_NORMALISED = 1.5
"""The largest coordinate of boxes in pixels exceeds this; that of shares does not."""
_SOME = 3
"""Boxes from which their size shows whether they are shares."""
_SLACK = 0.02
"""By how much numbers from 0 to 1 may exceed these, for models in half precision."""


@dataclass(frozen=True, slots=True)
class Family:
    """How the heads of one layout are found and read."""

    read: Read
    shapes: str
    """As messages show them."""
    overlaps: bool = False
    """Whether overlapping boxes are still there."""
    dense: bool = False
    """Whether there are thousands of rows, so that reading them belongs in a thread."""
    shares: bool = False
    """Whether boxes are shares of the image."""
    before_classes: int | None = None
    """Columns of the last tensor before those of the classes; None where no tensor has a column a class."""


# --- which outputs they are ---


@dataclass(frozen=True, slots=True)
class FamilyHead:
    """The outputs of a model that hold its head, in the order in which its family reads them."""

    outputs: tuple[str, ...]
    classes: int | None
    """Their number; None where the shapes do not show it."""


def find_family_head(spec: ModelSpec, form: InputFormat, layout: Layout, names: int, output: str | None) -> FamilyHead:
    """Picks the outputs that a layout of another family consists of: by shape and type, by name where these are equal.

    Args:
        names: number of class names; 0: not known.
        output: the only output to read; None: any.

    Raises:
        ModelRejected: outputs are missing, or several could be it.
    """
    given = [t for t in spec.outputs if output in (None, t.name)]
    floats = [t for t in given if t.dtype in _FLOATS]
    family = FAMILIES[layout]

    def refused(why: str) -> ModelRejected:
        shapes = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in spec.outputs) or "none"
        return ModelRejected(
            f"model {spec.name!r}: its parameter layout={layout!r} means {family.shapes}; its outputs are {shapes}{why}"
        )

    def only(found: Sequence[TensorSpec], what: str) -> TensorSpec:
        if len(found) != 1:
            several = (
                f"; {' and '.join(t.name for t in found)} could each be {what}" if found else f"; {what} is missing"
            )
            raise refused(several)
        return found[0]

    if layout in ("rows_apart", "torchvision", "efficient_nms"):
        boxes = only([t for t in floats if len(t.shape) == 3 and t.shape[2] == 4], "the boxes")
        lists = [t for t in given if len(t.shape) == 2 and t.shape[1] != 1]
        labels = [t for t in lists if t.dtype in _INTEGERS] or [t for t in lists if _named(t, "label", "class", "cls")]
        label = only(labels, "the labels")
        score = only([t for t in lists if t in floats and t is not label], "the scores")
        found: tuple[str, ...] = (boxes.name, score.name, label.name)
        if layout == "efficient_nms":
            found = (
                *found,
                only([t for t in given if t.shape[1:] == (1,) and t.dtype in _INTEGERS], "the number").name,
            )
        return FamilyHead(found, None)
    tables = [t for t in floats if len(t.shape) == 3]
    if layout in ("boxes_logits", "boxes_scores"):
        boxes = only(_by_name([t for t in tables if t.shape[2] == 4], "box", "det"), "the boxes")
        others = [t for t in tables if t is not boxes and t.shape[1] in (boxes.shape[1], -1)]
        classes = only(_by_name(others, "logit", "score", "label", "cls", "class", "conf"), "the classes")
        return FamilyHead((boxes.name, classes.name), _count(classes.shape[2]))
    before = family.before_classes or 0
    if layout == "rtdetr_rows":
        return FamilyHead((only([t for t in tables if t.shape[2] == 6], "it").name,), None)
    wide = [t for t in tables if t.shape[2] < 0 or t.shape[2] > before]
    fitting = [t for t in wide if not names or t.shape[2] == before + names]
    head = only(fitting or wide, "it")
    cells = len(_grid(form.height, form.width)[1])
    if layout == "yolox" and head.shape[1] not in (cells, -1):
        raise refused(
            f"; an image {form.width}x{form.height} has {cells} cells at strides 8, 16 and 32, not {head.shape[1]}"
        )
    classes_count = _count(head.shape[2])
    return FamilyHead((head.name,), None if classes_count is None else classes_count - before)


def efficient_nms(spec: ModelSpec) -> bool:
    """Whether the outputs have the names that TensorRT's EfficientNMS gives them, which no other head has."""
    return {"num_dets", "det_boxes", "det_scores", "det_classes"} <= {t.name for t in spec.outputs}


def _named(tensor: TensorSpec, *words: str) -> bool:
    return any(word in tensor.name.lower() for word in words)


def _by_name(tensors: list[TensorSpec], *words: str) -> list[TensorSpec]:
    """The tensors, or of several those whose names have one of the words."""
    return tensors if len(tensors) < 2 else [t for t in tensors if _named(t, *words)]


def _count(size: int) -> int | None:
    return size if size > 0 else None


# --- reading them ---


def read(layout: Layout, tensors: Tensors, form: InputFormat, confidence: float) -> Candidates:
    """The candidates of one image whose score exceeds `confidence`, best first."""
    with np.errstate(invalid="ignore", over="ignore"):
        # Not as a Python float, which numpy would round to half precision for such a head.
        return FAMILIES[layout].read(tensors, form, np.float32(confidence))


def _rtdetr(tensors: Tensors, form: InputFormat, confidence: np.float32) -> Candidates:
    (rows,) = tensors
    return _best_class(rows[:, :4], rows[:, 4:], confidence, partial(_corners_of_shares, form=form))


def _rtdetr_rows(tensors: Tensors, form: InputFormat, confidence: np.float32) -> Candidates:
    (rows,) = tensors
    rows = rows[(rows[:, 4] > confidence).nonzero()[0]].astype(np.float32, copy=False)
    return _sorted(_corners_of_shares(rows[:, :4], form), rows[:, 4], rows[:, 5])


def _boxes_logits(tensors: Tensors, form: InputFormat, confidence: np.float32) -> Candidates:
    boxes, logits = tensors
    # First by logit, because a sigmoid of all queries and classes would take longer than the rest.
    share = float(confidence)
    least = math.log(share / (1 - share)) if 0 < share < 1 else math.copysign(math.inf, share - 0.5)
    query, label = (logits > np.float32(least - _NEAR)).nonzero()
    some: Floats = logits[query, label].astype(np.float32, copy=False)
    scores = np.float32(1) / (np.float32(1) + np.exp(-some))
    sure = (scores > confidence).nonzero()[0]
    return _sorted(_corners_of_shares(boxes[query[sure]], form), scores[sure], label[sure])


def _boxes_scores(tensors: Tensors, form: InputFormat, confidence: np.float32) -> Candidates:
    boxes, scores = tensors
    return _best_class(boxes, scores, confidence, _as_they_are)


def _objectness(tensors: Tensors, form: InputFormat, confidence: np.float32) -> Candidates:
    (rows,) = tensors
    at = (rows[:, 4] > confidence).nonzero()[0]
    return _times_objectness(rows[at].astype(np.float32, copy=False), confidence)


def _yolox(tensors: Tensors, form: InputFormat, confidence: np.float32) -> Candidates:
    (rows,) = tensors
    cells, strides = _grid(form.height, form.width)
    at = (rows[:, 4] > confidence).nonzero()[0]
    some = rows[at].astype(np.float32)
    some[:, :2] = (some[:, :2] + cells[at]) * strides[at]
    some[:, 2:4] = np.exp(some[:, 2:4]) * strides[at]
    return _times_objectness(some, confidence)


def _rows_apart(tensors: Tensors, form: InputFormat, confidence: np.float32) -> Candidates:
    boxes, scores, labels, *number = tensors
    if number:
        count = max(0, int(number[0][0]))
        boxes, scores, labels = boxes[:count], scores[:count], labels[:count]
    at = (scores > confidence).nonzero()[0]
    return _sorted(boxes[at].astype(np.float32, copy=False), scores[at].astype(np.float32, copy=False), labels[at])


def _best_class(
    boxes: NDArray[Any], scores: NDArray[Any], confidence: np.float32, corners: Callable[[NDArray[Any]], Floats]
) -> Candidates:
    at = (scores.max(axis=1) > confidence).nonzero()[0]
    some = scores[at].astype(np.float32, copy=False)
    label = some.argmax(axis=1)
    return _sorted(corners(boxes[at]), some[np.arange(at.size), label], label)


def _times_objectness(rows: Floats, confidence: np.float32) -> Candidates:
    scores = rows[:, 5:] * rows[:, 4:5]
    label = scores.argmax(axis=1)
    best = scores[np.arange(len(rows)), label]
    at = (best > confidence).nonzero()[0]
    return _sorted(_corners(rows[at, :4]), best[at], label[at])


def _sorted(xyxy: Floats, scores: Floats, label: NDArray[Any]) -> Candidates:
    if label.dtype.kind == "f":
        label = np.nan_to_num(label)
    found = Candidates(xyxy, scores, label.astype(np.int32), np.empty((len(scores), 0), np.float32))
    return take(found, (-scores).argsort(kind="stable"))


def _as_they_are(boxes: NDArray[Any]) -> Floats:
    return boxes.astype(np.float32, copy=False)


def _corners(boxes: Floats) -> Floats:
    """cx, cy, w, h `[n, 4]` to x1, y1, x2, y2."""
    half = boxes[:, 2:] * np.float32(0.5)
    return np.concatenate((boxes[:, :2] - half, boxes[:, :2] + half), axis=1)


def _corners_of_shares(boxes: NDArray[Any], form: InputFormat) -> Floats:
    size = np.array((form.width, form.height) * 2, np.float32)
    return _corners(boxes.astype(np.float32, copy=False)) * size


@lru_cache(maxsize=16)
def _grid(height: int, width: int) -> tuple[Floats, Floats]:
    """YOLOX's cells: x and y `[A, 2]` in units of their stride, and the stride `[A, 1]`."""
    cells, strides = [], []
    for stride in _STRIDES:
        y, x = np.mgrid[: height // stride, : width // stride]
        cells.append(np.stack((x, y), axis=2).reshape(-1, 2))
        strides.append(np.full((y.size, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)


FAMILIES: Mapping[Layout, Family] = {
    "rtdetr": Family(_rtdetr, "[N, Q, 4 + classes], boxes as shares, scores", shares=True, before_classes=4),
    "rtdetr_rows": Family(_rtdetr_rows, "[N, K, 6]: a box as shares, score, class", shares=True),
    "boxes_logits": Family(
        _boxes_logits, "boxes [N, Q, 4] as shares and logits [N, Q, classes]", shares=True, before_classes=0
    ),
    "boxes_scores": Family(
        _boxes_scores,
        "boxes [N, A, 4] in pixels and scores [N, A, classes]",
        overlaps=True,
        dense=True,
        before_classes=0,
    ),
    "objectness": Family(
        _objectness, "[N, A, 5 + classes]: a box in pixels, objectness, scores", True, True, before_classes=5
    ),
    "yolox": Family(_yolox, "[N, A, 5 + classes]: offsets in a grid, objectness, scores", True, True, before_classes=5),
    "rows_apart": Family(_rows_apart, "boxes [N, K, 4] in pixels, scores [N, K] and integer labels [N, K]"),
    "torchvision": Family(_rows_apart, "boxes [D, 4], scores [D] and integer labels [D], and an input [1, 3, H, W]"),
    "efficient_nms": Family(
        _rows_apart, "num_dets [N, 1], det_boxes [N, K, 4], det_scores [N, K] and det_classes [N, K]"
    ),
}


# --- whether an answer can be of that layout ---


def implausible(layout: Layout, tensors: Tensors, form: InputFormat) -> str | None:
    """Why the tensors of one image cannot have that layout: numbers that it cannot have. None where they can.

    Scores and shares are never far from 0 to 1; boxes in pixels are not all within 0 to 1. An answer without a box
    shows nothing.
    """
    first = np.asarray(tensors[0], np.float32)
    if not first.size:
        return None
    family = FAMILIES[layout]
    with np.errstate(invalid="ignore"):
        boxes = first[:, :4]
        if family.shares and (boxes.min() < -_SLACK or boxes.max() > 1 + _SLACK):
            return f"its boxes go from {boxes.min():.2f} to {boxes.max():.2f}: they are no shares of the image, 0 to 1"
        if layout == "boxes_logits":
            logits = np.asarray(tensors[1], np.float32)
            if logits.min() >= 0 and logits.max() <= 1:
                return "its logits lie between 0 and 1: they are scores already"
            return None
        scores = _scores(layout, first, tensors)
        if scores.size and (scores.min() < -_SLACK or scores.max() > 1 + _SLACK):
            return f"what should be scores goes from {scores.min():.2f} to {scores.max():.2f}, not from 0 to 1"
        if not family.shares and layout != "yolox":
            largest = np.abs(boxes).max()
            if 0 < largest <= _NORMALISED and np.count_nonzero(boxes.any(axis=1)) >= _SOME:
                return f"its boxes lie between 0 and {largest:.2f}: shares of the image, not pixels"
    return None


def _scores(layout: Layout, first: Floats, tensors: Tensors) -> Floats:
    if layout == "rtdetr_rows":
        return first[:, 4]
    if len(tensors) == 1:
        return first[:, 4:]
    scores = np.asarray(tensors[1], np.float32)
    if layout == "efficient_nms":
        return scores[: max(0, int(tensors[3][0]))]
    return scores
