"""What detection and pose heads share: which output tensor in which layout, and the candidates in it. Pure numpy.

- `raw` `[N, 4 + classes + extra, A]`: anchors in columns; cx, cy, w, h, a score a class, then whatever else;
- `end_to_end` `[N, K, 6 + extra]`: x1, y1, x2, y2, score, class; overlaps are gone;
- `prepared` `[N, K, 6 + extra]`: the same columns, overlaps still in.

A model's string parameter `layout` says which; `make models` writes it. Without it rows behind an UINT8 NHWC picture
are `prepared`. Rows behind any other picture could be an end-to-end YOLO's or those of RT-DETR (cx, cy, w, h from 0 to
1): they are taken for the former only once an answer of the model has shown it (`implausible`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.errors import ModelRejected
from app.inference.client import ModelSpec, TensorSpec
from app.pipeline.boxes import Floats, nms
from app.pipeline.tensors import InputFormat

Layout = Literal["raw", "end_to_end", "prepared"]
Classes = NDArray[np.int32]

LAYOUTS = ("raw", "end_to_end", "prepared")
"""What a model's string parameter `layout` may say."""
_NORMALISED = 1.5
"""Boxes in pixels reach beyond this somewhere."""
_MOST_SURE = 1.01
"""No score is above 1, but for rounding."""

MAX_NMS = 30_000
"""The best candidates that go into the suppression at all, as in Ultralytics."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """n boxes, best first."""

    xyxy: Floats
    """`[n, 4]`, canvas pixels."""
    confidence: Floats
    class_id: Classes
    extra: Floats
    """`[n, extra]`: the head's further columns."""


def anchors(form: InputFormat) -> int:
    """Columns of a raw head over a picture of this size: one a cell at strides 8, 16 and 32."""
    return sum(-(-form.height // stride) * -(-form.width // stride) for stride in (8, 16, 32))


@dataclass(frozen=True, slots=True)
class Head:
    """The output to read, and how."""

    tensor: TensorSpec
    layout: Layout
    told: bool
    """Whether the model itself says so. Else only the shape does, and an answer has to bear it out: `implausible`."""


def find_head(
    spec: ModelSpec,
    form: InputFormat,
    *,
    columns: int,
    sure: Callable[[int, int], bool],
    likely: Callable[[int, int], bool],
    output: str | None,
    known: str,
) -> Head:
    """The output tensor to read, and how.

    Args:
        columns: of the layouts with rows.
        sure: whether `[N, a, b]` is a raw head beyond doubt.
        likely: whether it is one unless something else fits better.
        output: its name, where it is known.
        known: the shapes known, for the message.

    Raises:
        ModelRejected: none fits, or more than one.
    """
    told = spec.parameters.get("layout")
    if told is not None and told not in LAYOUTS:
        raise ModelRejected(f"model {spec.name!r}: parameter layout={told!r}; want {', '.join(LAYOUTS)}")
    given = [t for t in spec.outputs if output in (None, t.name)]
    heads = [t for t in given if len(t.shape) == 3 and t.dtype in ("FP32", "FP16")]
    cells = anchors(form)
    raws = [t for t in heads if sure(t.shape[1], t.shape[2])]
    rows = [t for t in heads if t.shape[2] == columns and (told or t.shape[1] not in (cells, 3 * cells))]
    maybe = [t for t in heads if likely(t.shape[1], t.shape[2]) and t.shape[2] != 3 * cells]
    as_rows: Layout = "prepared" if form.is_image else "end_to_end"
    tiers: list[tuple[list[TensorSpec], Layout]] = [(raws, "raw"), (rows, as_rows), (maybe, "raw")]
    if form.is_image:
        tiers[:2] = tiers[1::-1]
    if told == "raw":
        tiers = [(raws, "raw"), (maybe, "raw")]
    elif told is not None:
        tiers = [(rows, told)]  # type: ignore[list-item]
    found, layout = next(((tensors, layout) for tensors, layout in tiers if tensors), ([], as_rows))
    strange = _strange(spec, form) if layout == "raw" and output is None else None
    if len(found) == 1 and strange is None:
        return Head(found[0], layout, told is not None or form.is_image)
    shapes = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in spec.outputs) or "none"
    why = (
        f"; {' and '.join(t.name for t in found)} could each be it"
        if len(found) > 1
        else f"; {strange or _strange(spec, form)}"
        if strange or _strange(spec, form)
        else f"; {output!r} is wanted"
        if output
        else f"; its parameter layout={told!r} fits none of them"
        if told
        else ""
    )
    picture = f"{form.dtype} {form.layout} {form.width}x{form.height}"
    raise ModelRejected(f"model {spec.name!r}: outputs {shapes} for a picture {picture}; known: {known}{why}")


def _strange(spec: ModelSpec, form: InputFormat) -> str | None:
    """What a model of another family looks like, in words; None where nothing tells."""
    outputs, cells = spec.outputs, anchors(form)
    names = {t.name.lower() for t in outputs}
    if any(len(t.shape) == 4 for t in outputs):
        return "the 4-dimensional one is a segmentation model's"
    if "num_dets" in names or any(name.startswith("num_det") for name in names):
        return "a head behind TensorRT's EfficientNMS: export without the plug-in"
    if any(len(t.shape) == 3 and t.shape[2] == 4 for t in outputs):
        return "boxes and scores apart, as of RF-DETR, D-FINE or YOLO-NAS: such heads are not read"
    if any(len(t.shape) == 3 and t.shape[1] in (cells, 3 * cells) and t.shape[2] > 6 for t in outputs):
        return "anchors in rows, as of YOLOv5 and YOLOX (with an objectness): export with Ultralytics, as yolov5nu"
    if any(len(t.shape) == 3 and t.shape[2] == 3 * cells for t in outputs):
        return "three anchors a cell, as of YOLOv5 (with an objectness): export with Ultralytics, as yolov5nu"
    if any(len(t.shape) == 3 and t.shape[2] == 7 for t in outputs):
        return "seven columns: oriented boxes with an angle, which are not read"
    if outputs and all(len(t.shape) == 2 for t in outputs):
        return "one vector a picture: a classification model"
    return None


def implausible(head: NDArray[Any], layout: Layout, class_count: int) -> str | None:
    """Why one picture's head `[4 + classes + extra, A]` (raw) or `[K, 6 + extra]` cannot be of that layout, if so.

    Asked about the first answer of a model that does not say what it is. No class count (0): scores are not looked at.
    """
    head = head.astype(np.float32, copy=False)
    boxes = head[:4] if layout == "raw" else head[:, :4]
    scores = head[4 : 4 + class_count] if layout == "raw" else head[:, 4]
    with np.errstate(invalid="ignore"):
        largest = np.abs(boxes).max(initial=0.0)
        if 0 < largest <= _NORMALISED:
            return (
                f"its boxes lie between 0 and {largest:.2f}: shares of the picture, not pixels. That is RT-DETR's head "
                "(cx, cy, w, h), which is not read; or an export with normalised boxes: export it as ONNX without"
            )
        if layout != "raw":
            some = boxes[np.abs(boxes).max(axis=1, initial=0.0) > 0]
            turned = np.count_nonzero((some[:, 2] < some[:, 0]) | (some[:, 3] < some[:, 1]))
            if 2 * turned > len(some):
                return "its boxes are no corners x1, y1, x2, y2: most end before they begin"
        if scores.size and scores.max() > _MOST_SURE:
            return (
                f"what should be scores goes up to {scores.max():.2f}: rows beyond the classes (a segmentation model's "
                "masks, an angle of oriented boxes), or no head of that layout"
            )
    return None


def candidates(
    head: NDArray[Any],
    layout: Layout,
    *,
    class_count: int,
    confidence: float,
    iou: float,
    classes: frozenset[int] | None,
    max_detections: int,
) -> Candidates:
    """Reads one picture's head: `[4 + classes + extra, A]` (raw) or `[K, 6 + extra]`.

    Ultralytics' `non_max_suppression` (ultralytics/utils/nms.py) with `multi_label=False`: the best class of a
    box counts, its score must exceed `confidence`; then `classes` are kept; then boxes that overlap a better
    one of their class by more than `iou` go, except out of an end-to-end head. Boxes that are not finite go.
    """
    head = head.astype(np.float32, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        found = _raw(head, class_count, confidence) if layout == "raw" else _rows(head, confidence)
        count = found.confidence.size
        # Almost always all are finite, and then so is their sum: one look at it costs less than one at each box.
        if count and not math.isfinite(found.xyxy.sum() + found.confidence.sum()):
            found = _take(found, np.flatnonzero(np.isfinite(found.xyxy.sum(axis=1) + found.confidence)))
    if count and classes is not None:
        found = _take(found, np.flatnonzero(np.isin(found.class_id, list(classes))))
    count = found.confidence.size
    if layout == "end_to_end":
        return found if count <= max_detections else _take(found, np.arange(max_detections))
    if count > MAX_NMS:
        found = _take(found, np.argsort(-found.confidence, kind="stable")[:MAX_NMS])
    if count < 2:
        return found
    return _take(found, nms(found.xyxy, found.confidence, found.class_id, iou, max_detections))


def _raw(head: Floats, class_count: int, confidence: float) -> Candidates:
    # The threshold first: of 8,400 columns a few dozen are worth transposing.
    scores = head[4 : 4 + class_count]
    at = np.flatnonzero(scores.max(axis=0) > confidence)
    columns = head[:, at]
    scores = columns[4 : 4 + class_count]
    class_id = scores.argmax(axis=0)
    half = columns[2:4] * np.float32(0.5)
    corners: Floats = np.concatenate((columns[:2] - half, columns[:2] + half))
    return Candidates(
        xyxy=corners.T,
        confidence=scores[class_id, np.arange(at.size)],
        class_id=class_id.astype(np.int32),
        extra=columns[4 + class_count :].T,
    )


def _rows(head: Floats, confidence: float) -> Candidates:
    rows = head[(head[:, 4] > confidence).nonzero()[0]]
    label = rows[:, 5]
    if rows.size and not math.isfinite(label.sum()):
        label = np.where(np.isfinite(label), label, 0)
    return Candidates(rows[:, :4], rows[:, 4], label.astype(np.int32), rows[:, 6:])


def _take(found: Candidates, at: NDArray[np.int64]) -> Candidates:
    return Candidates(found.xyxy[at], found.confidence[at], found.class_id[at], found.extra[at])
