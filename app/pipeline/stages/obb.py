"""Oriented boxes: objects with the angle at which they lie, from a YOLO model for oriented boxes.

As Ultralytics' `predict` (ultralytics/models/yolo/obb/predict.py, 8.4.190): boxes are cx, cy, width, height in pixels
and an angle in radians, clockwise as seen from the x axis to the side that is called the width. They are suppressed by
`fast_nms` on `batch_probiou` (ultralytics/utils/nms.py, metrics.py) and scaled back without clipping, so that they stay
rectangles. The angle is the model's own: earlier versions turned it into 0 to 90 degrees and swapped the sides for it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ModelRejected
from app.inference.client import ModelSpec
from app.pipeline.boxes import Floats, Ints, Letterbox
from app.pipeline.layouts import (
    MAX_NMS,
    Classes,
    InputFormat,
    Layout,
    Rows,
    anchors,
    confirm,
    find_head,
    input_format,
    rounded,
    scoring_rows,
)
from app.pipeline.parameters import ClassModel, class_name, class_names, require_task, tensors
from app.pipeline.stage import PipelineStage, display_name
from app.pipeline.types import Batch, FrameState
from app.protocol.result import Box, many
from app.protocol.stages import Part, Shape

# --- on the wire ---


@many
class OrientedBox:
    """One object that lies at an angle. `confidence` is 0 to 1; pixels of the frame."""

    class_id: int
    class_name: str
    confidence: float
    corners: list[tuple[float, float]]
    """Four, anticlockwise as seen, the first at half the width and half the height; may lie outside the frame."""
    angle_deg: float
    """From the x axis to the side that is called the width, degrees, clockwise as seen."""
    width: float
    height: float
    box: Box
    """The box around it, clipped to the frame."""
    track_id: int | None = None
    """Number of the object's track in its stream; null until confirmed."""


KNOWN = (
    "[N, 4 + classes + 1, A] (layout raw: YOLOv8-obb, YOLO11-obb) or [N, K, 7] (layout end_to_end: YOLO26-obb, exports "
    "with nms=True; or prepared, behind a UINT8 image [N, H, W, 3]), FP32 or FP16: boxes cx, cy, w, h and an angle"
)

# --- overlap and suppression of oriented boxes ---

_APART = np.float32(7680)
"""Pixels by which Ultralytics shifts the boxes of each class away from those of the class before (`max_wh`)."""
_EPSILON = np.float32(1e-7)
_BLOCK = 256
_ROWS = 2048
_FAR = np.float32(1e7)
"""No number of a box, in pixels of the canvas, is as large."""


@dataclass(frozen=True, slots=True)
class _Gaussians:
    """Oriented boxes as normal distributions, each array `[n]`: centre, covariance `[[a, c], [c, b]]`, determinant."""

    x: Floats
    y: Floats
    a: Floats
    b: Floats
    c: Floats
    determinant: Floats

    def __getitem__(self, at: Any) -> _Gaussians:
        return _Gaussians(self.x[at], self.y[at], self.a[at], self.b[at], self.c[at], self.determinant[at])


def _gaussians(xywhr: Floats) -> _Gaussians:
    x, y, width, height, angle = xywhr.T
    along, across = width**2 / 12, height**2 / 12
    cos, sin = np.cos(angle), np.sin(angle)
    a = along * cos**2 + across * sin**2
    b = along * sin**2 + across * cos**2
    c = (along - across) * cos * sin
    return _Gaussians(x, y, a, b, c, np.maximum(a * b - c**2, 0))


def probiou(one: Floats, other: Floats) -> Floats:
    """How much every oriented box of `one` `[n, 5]` is like every one of `other` `[m, 5]`, 0 to 1: `[n, m]`.

    One minus the Hellinger distance of their normal distributions (https://arxiv.org/abs/2106.06072), in float32 and in
    the order of Ultralytics' `batch_probiou`. Boxes are cx, cy, width, height, angle in radians.
    """
    return _probiou(_gaussians(one), _gaussians(other))


def _probiou(one: _Gaussians, other: _Gaussians) -> Floats:
    x1, y1, determinant = one.x[:, None], one.y[:, None], one.determinant[:, None]
    a, b, c = one.a[:, None] + other.a, one.b[:, None] + other.b, one.c[:, None] + other.c
    joint = a * b - c**2
    distance = (a * (y1 - other.y) ** 2 + b * (x1 - other.x) ** 2) / (joint + _EPSILON) * np.float32(0.25)
    distance += (c * (other.x - x1) * (y1 - other.y)) / (joint + _EPSILON) * np.float32(0.5)
    ratio = joint / (4 * np.sqrt(determinant * other.determinant) + _EPSILON) + _EPSILON
    distance += np.log(ratio) * np.float32(0.5)
    np.clip(distance, _EPSILON, np.float32(100), out=distance)
    likeness: Floats = 1 - np.sqrt(1 - np.exp(-distance) + _EPSILON)
    return likeness


def rotated_nms(xywhr: Floats, scores: Floats, class_ids: Classes, threshold: float, most: int) -> Ints:
    """Indices of the boxes that are kept, best first, at most `most`.

    A box goes if one with a better score and of its class is like it by `threshold` or more (`probiou`), also if that
    one goes itself: Ultralytics' `fast_nms`. Boxes are compared in blocks until enough are kept, so that no full matrix
    is needed.
    """
    order = (-scores).argsort(kind="stable")
    shifted = xywhr[order]
    shifted[:, :2] += (class_ids[order].astype(np.float32) * _APART)[:, None]
    boxes, least = _gaussians(shifted), np.float32(threshold)
    kept: list[Ints] = []
    count = 0
    for start in range(0, len(order), _BLOCK):
        alive = np.arange(start, min(start + _BLOCK, len(order)))
        for row in range(0, start, _ROWS):
            alive = alive[~(_probiou(boxes[row : min(row + _ROWS, start)], boxes[alive]) >= least).any(axis=0)]
        block = np.arange(start, min(start + _BLOCK, len(order)))
        better = block[:, None] < alive
        alive = alive[~((_probiou(boxes[block], boxes[alive]) >= least) & better).any(axis=0)]
        kept.append(alive)
        count += alive.size
        if count >= most:
            break
    return order[np.concatenate(kept)[:most]] if kept else np.empty(0, np.int64)


def corners_of(xywhr: Floats) -> Floats:
    """The corners `[n, 4, 2]` of oriented boxes `[n, 5]`, in the order of Ultralytics' `xywhr2xyxyxyxy`.

    From the corner at half the width and half the height, then anticlockwise as seen.
    """
    centre, angle = xywhr[:, None, :2], xywhr[:, 4]
    cos, sin = np.cos(angle), np.sin(angle)
    half = xywhr[:, 2:4] * np.float32(0.5)
    along = np.stack((half[:, 0] * cos, half[:, 0] * sin), axis=1)[:, None]
    across = np.stack((-half[:, 1] * sin, half[:, 1] * cos), axis=1)[:, None]
    corners: Floats = np.concatenate(
        (centre + along + across, centre + along - across, centre - along - across, centre - along + across), axis=1
    )
    return corners


# --- reading a model's output ---


@dataclass(frozen=True, slots=True)
class Oriented:
    """n oriented boxes in one frame, best first."""

    xyxy: Floats
    """`[n, 4]`, frame pixels: the boxes around them, clipped to the frame."""
    confidence: Floats
    class_id: Classes
    xywhr: Floats
    """`[n, 5]`: centre, width and height in frame pixels, angle in radians."""
    corners: Floats
    """`[n, 4, 2]`, frame pixels; may lie outside the frame."""


@dataclass(frozen=True, slots=True)
class ObbReader:
    """Reads the output of one model for oriented boxes; made by `obb_reader`."""

    spec: ModelSpec
    input: InputFormat
    output_name: str
    layout: Layout
    class_names: tuple[str, ...]
    """By class id; empty where the model has no names and does not show the number of its classes."""
    declared: bool = True
    """Whether the model declares the layout of its head; else `check` must confirm it."""

    @property
    def output_names(self) -> tuple[str]:
        """The output that it reads."""
        return (self.output_name,)

    def check(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Checks an answer as `DetectReader.check` does. Raises ModelRejected."""
        if self.declared:
            return
        head, count = outputs[self.output_name][0], len(self.class_names)
        if self.layout != "raw":  # its boxes are centres and sizes, as those of a raw head
            head, count = head[:, :5].T, 1
        confirm(self.spec, head, "raw", count, known=KNOWN)

    def scan(self, outputs: Mapping[str, NDArray[Any]], confidence: float) -> tuple[Rows | None, int]:
        """The rows that score in any image, and their number. A raw head has thousands of columns to search."""
        if self.layout == "raw":
            return None, sys.maxsize
        rows = scoring_rows(outputs[self.output_name], confidence)
        return rows, rows[0].size

    def read(
        self,
        outputs: Mapping[str, NDArray[Any]],
        index: int,
        box: Letterbox,
        *,
        confidence: float,
        iou: float,
        classes: frozenset[int] | None,
        max_detections: int,
    ) -> Oriented:
        """The oriented boxes in image `index` of a batch. `classes`: ids to keep, None keeps all.

        Only the best class of a box counts, and its score must exceed `confidence`; then only `classes` are kept; then
        `rotated_nms`, except for an end-to-end head. Boxes with numbers that are none, or far too large, are removed.
        """
        head: Floats = outputs[self.output_name][index]
        with np.errstate(all="ignore"):
            if self.layout == "raw":
                xywhr, scores, labels = _columns(head, len(self.class_names), confidence)
            else:
                rows = head[head[:, 4] > confidence].astype(np.float32, copy=False)
                xywhr, scores = rows[:, (0, 1, 2, 3, 6)], rows[:, 4]
                labels = np.nan_to_num(rows[:, 5]).astype(np.int32)
            keep = np.isfinite(scores) & (np.abs(xywhr) < _FAR).all(axis=1)
            if classes is not None:
                keep &= np.isin(labels, list(classes))
            if not keep.all():
                xywhr, scores, labels = xywhr[keep], scores[keep], labels[keep]
            if self.layout == "end_to_end":
                chosen = np.arange(min(max_detections, len(scores)))
            else:
                if len(scores) > MAX_NMS:
                    best = np.argsort(-scores, kind="stable")[:MAX_NMS]
                    xywhr, scores, labels = xywhr[best], scores[best], labels[best]
                chosen = rotated_nms(xywhr, scores, labels, iou, max_detections)
        boxes = _to_frame(xywhr[chosen], box)
        corners = corners_of(boxes)
        around = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
        limit = np.array((box.image_width, box.image_height) * 2, np.float32)
        return Oriented(np.clip(around, 0, limit), scores[chosen], labels[chosen], boxes, corners)

    def read_all(
        self,
        outputs: Mapping[str, NDArray[Any]],
        boxes: Sequence[Letterbox | None],
        *,
        confidence: float,
        iou: float,
        classes: frozenset[int] | None,
        max_detections: int,
        rows: Rows | None = None,
    ) -> list[Oriented | None]:
        """`read` for all images of a batch; None for images without a box."""
        limits: Any = {"confidence": confidence, "iou": iou, "classes": classes, "max_detections": max_detections}
        return [None if box is None else self.read(outputs, at, box, **limits) for at, box in enumerate(boxes)]


def _columns(head: NDArray[Any], classes: int, confidence: float) -> tuple[Floats, Floats, Classes]:
    """Of a raw head `[4 + classes + 1, A]` the boxes that score: `[n, 5]`, scores, classes."""
    at = np.flatnonzero(head[4 : 4 + classes].max(axis=0) > confidence)
    columns = head[:, at].astype(np.float32, copy=False)
    labels = columns[4 : 4 + classes].argmax(axis=0)
    scores = columns[4 + labels, np.arange(at.size)]
    return np.concatenate((columns[:4], columns[-1:])).T.copy(), scores, labels.astype(np.int32)


def _to_frame(xywhr: Floats, box: Letterbox) -> Floats:
    """Oriented boxes `[n, 5]` in canvas pixels -> frame pixels, as Ultralytics' `scale_boxes` with `xywh`."""
    out = xywhr.copy()
    out[:, :2] -= np.array((box.pad_x - box.cut_x, box.pad_y - box.cut_y), np.float32)
    out[:, :4] /= np.array((box.scale_x, box.scale_y) * 2, np.float32)
    return out


def obb_reader(spec: ModelSpec) -> ObbReader:
    """Picks the reader for a model from its metadata.

    Class names are the model's parameter `class_names`, else `class_0`, `class_1`, ...

    Raises:
        ModelRejected: the output is not that of oriented boxes, or there are more or fewer names than classes.
    """
    require_task(spec, "obb")
    form = input_format(spec)
    names = class_names(spec)
    cells = anchors(form)
    if form.resize == "stretch":
        raise ModelRejected(
            f"model {spec.name!r}: parameter resize='stretch' turns oriented boxes into shapes that are no rectangles; "
            "want letterbox"
        )
    if any(len(t.shape) == 4 for t in spec.outputs):
        raise ModelRejected(
            f"model {spec.name!r}: outputs {tensors(spec)}; known: {KNOWN}; prototypes of masks beside the head show a "
            "segmentation model, which stage 'segment' reads: name it in TRITON_SEGMENT_MODEL"
        )
    heads = [t for t in spec.outputs if len(t.shape) == 3]

    def sure(rows: int, columns: int) -> bool:
        return rows == 5 + len(names) if names else columns == cells and rows >= 6

    def likely(rows: int, columns: int) -> bool:
        return rows >= 6 and (columns < 0 or columns > rows)

    output = heads[0].name if len(heads) == 1 else None
    found = find_head(spec, form, columns=7, sure=sure, likely=likely, output=output, known=KNOWN)
    head = found.tensor
    if found.layout == "raw":
        count = head.shape[1] - 5
        if names and len(names) != count:
            hint = " (a detection model has one row fewer)" if len(names) == count + 1 else ""
            raise ModelRejected(
                f"model {spec.name!r}: output {head.name!r} {list(head.shape)} has {count} classes and an angle, but "
                f"class_names has {len(names)}{hint}"
            )
        names = names or tuple(f"class_{i}" for i in range(count))
    return ObbReader(spec, form, head.name, found.layout, names, found.declared)


# --- the stage ---


def oriented_boxes(found: Oriented, track_ids: NDArray[Any] | None, class_names: tuple[str, ...]) -> list[OrientedBox]:
    """Oriented boxes as the wire has them: pixels to 2 decimals, confidence and angle to 4.

    Args:
        track_ids: `[n]`; -1 means no id.
    """
    ids = [-1] * len(found.confidence) if track_ids is None else track_ids.tolist()
    return [
        OrientedBox(
            class_id,
            class_name(class_names, class_id),
            confidence,
            corners,
            angle,
            width,
            height,
            Box(*around),
            track_id if track_id >= 0 else None,
        )
        for class_id, confidence, corners, angle, (width, height), around, track_id in zip(
            found.class_id.tolist(),
            rounded(found.confidence, 4),
            rounded(found.corners, 2),
            rounded(np.degrees(found.xywhr[:, 4].astype(np.float64)), 4),
            rounded(found.xywhr[:, 2:4], 2),
            rounded(found.xyxy, 2),
            ids,
            strict=True,
        )
    ]


class ObbStage(PipelineStage):
    """Objects with boxes that lie at their angle."""

    name = "obb"
    title = "Oriented boxes"
    description = "Boxes that lie at the angle of their object, as seen from above: ships, planes, vehicles."
    runs = "anywhere"
    part = Part(
        "oriented",
        list[OrientedBox],
        shapes=(Shape("polygon", "corners", label="{class_name} {confidence} {track_id}"),),
    )
    model_type = ClassModel

    def model(self) -> str | None:
        return self.settings.triton.triton_obb_model

    def reader(self, spec: ModelSpec) -> ObbReader:
        return obb_reader(spec)

    def describe(self, reader: ObbReader) -> ClassModel:
        return ClassModel(display_name(reader.spec), reader.class_names)

    def write(self, state: FrameState, batch: Batch) -> list[OrientedBox]:
        found = state.found.get("obb")
        if found is None:
            return []
        return oriented_boxes(found, state.track_ids.get("obb"), batch.model_set.readers["obb"].class_names)
