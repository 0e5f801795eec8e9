"""What detection and pose heads share: which output tensor in which layout, and the candidates in it. Pure numpy.

- `raw` `[N, 4 + classes + extra, A]`: anchors in columns; cx, cy, w, h, a score a class, then whatever else;
- `end_to_end` `[N, K, 6 + extra]` of a model with an FP16 or FP32 picture: x1, y1, x2, y2, score, class;
  overlaps are gone;
- `prepared` `[N, K, 6 + extra]` of a model with a UINT8 NHWC picture: the same columns, overlaps still in.
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


def find_head(
    spec: ModelSpec,
    form: InputFormat,
    *,
    columns: int,
    sure: Callable[[int, int], bool],
    likely: Callable[[int, int], bool],
    output: str | None,
    known: str,
) -> tuple[TensorSpec, Layout]:
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
    given = [t for t in spec.outputs if output in (None, t.name)]
    heads = [t for t in given if len(t.shape) == 3 and t.dtype in ("FP32", "FP16")]
    prepared = form.is_image
    raws = [t for t in heads if sure(t.shape[1], t.shape[2])]
    rows = [t for t in heads if t.shape[2] == columns and t.shape[1] not in (anchors(form), 3 * anchors(form))]
    maybe = [t for t in heads if likely(t.shape[1], t.shape[2])]
    as_rows: Layout = "prepared" if prepared else "end_to_end"
    tiers: list[tuple[list[TensorSpec], Layout]] = [(raws, "raw"), (rows, as_rows), (maybe, "raw")]
    if prepared:
        tiers[:2] = tiers[1::-1]
    found, layout = next(((tensors, layout) for tensors, layout in tiers if tensors), ([], as_rows))
    if len(found) == 1 and not (layout == "raw" and any(len(t.shape) == 4 for t in spec.outputs)):
        return found[0], layout
    shapes = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in spec.outputs) or "none"
    why = (
        f"; {' and '.join(t.name for t in found)} could each be it"
        if len(found) > 1
        else "; the 4-dimensional one is a segmentation model's"
        if found
        else f"; {output!r} is wanted"
        if output
        else ""
    )
    picture = f"{form.dtype} {form.layout} {form.width}x{form.height}"
    raise ModelRejected(f"model {spec.name!r}: outputs {shapes} for a picture {picture}; known: {known}{why}")


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
