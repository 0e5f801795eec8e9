"""Layouts of a model's tensors: its input image, its detection or pose head, and reading candidates from that. Pure.

DOC
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from app.errors import ModelRejected
from app.inference.client import ModelSpec, TensorSpec
from app.pipeline.boxes import Floats, Ints, Letterbox, nms

DEFAULT_SIZE = 640
"""Side of the canvas of a model that leaves its size open, unless its parameter `input_size` says."""

_NUMPY = {"UINT8": np.uint8, "FP16": np.float16, "FP32": np.float32}
_KNOWN = "UINT8, FP16 or FP32 of [N, H, W, 3] or [N, 3, H, W]"


@dataclass(frozen=True, slots=True)
class InputFormat:
    """The one input tensor. UINT8 takes pixels as they are, FP16 and FP32 pixels over 255; RGB always."""

    name: str
    height: int
    width: int
    dtype: Literal["UINT8", "FP16", "FP32"]
    """Triton's name."""
    layout: Literal["NHWC", "NCHW"]

    @property
    def is_image(self) -> bool:
        """Whether one image of the tensor is a canvas itself: decode straight into it, nothing is left to fill."""
        return self.dtype == "UINT8" and self.layout == "NHWC"

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Of a request with `batch` pictures."""
        if self.layout == "NHWC":
            return batch, self.height, self.width, 3
        return batch, 3, self.height, self.width

    def fill(self, canvas: NDArray[np.uint8], out: NDArray[Any]) -> None:
        """Writes one picture: canvas RGB uint8 `[H, W, 3]` -> `out`, one image of the tensor, of its dtype.

        Does nothing where the canvas is that image already. Planes are split by OpenCV, then scaled by numpy:
        1.8 times as fast as `cv2.dnn.blobFromImage`.
        """
        if self.is_image and np.may_share_memory(canvas, out):
            return
        if self.layout == "NHWC":
            _scale(canvas, out)
        else:
            for plane, target in zip(cv2.split(canvas), out, strict=True):
                _scale(plane, target)


def input_format(spec: ModelSpec) -> InputFormat:
    """Reads the input's size, type and layout.

    Height or width that the model leaves open (-1) come from its parameter `input_size` (`640`, or `480x640`:
    height, then width), else are 640.

    Raises:
        ModelRejected: not one input, or not of a kind known.
    """
    if len(spec.inputs) != 1:
        names = ", ".join(tensor.name for tensor in spec.inputs) or "none"
        raise ModelRejected(f"model {spec.name!r}: want one input, a picture; it has {len(spec.inputs)} ({names})")
    (tensor,) = spec.inputs
    layout: Literal["NHWC", "NCHW"] | None = None
    if len(tensor.shape) == 4 and tensor.dtype in _NUMPY:
        if tensor.shape[3] == 3:
            layout = "NHWC"
        elif tensor.shape[1] == 3:
            layout = "NCHW"
    if layout is None:
        raise ModelRejected(
            f"model {spec.name!r}: input {tensor.name!r} is {tensor.dtype} {list(tensor.shape)}; known: {_KNOWN}"
        )
    if tensor.shape[0] > 1:
        raise ModelRejected(
            f"model {spec.name!r}: input {tensor.name!r} {list(tensor.shape)} takes {tensor.shape[0]} pictures at a "
            "time, never fewer; export it with an open batch (Ultralytics: dynamic=True) or batch=1, or install it "
            "with `make models`, which fills such batches up"
        )
    height, width = tensor.shape[1:3] if layout == "NHWC" else tensor.shape[2:4]
    open_height, open_width = _open_size(spec)
    height, width = height if height > 0 else open_height, width if width > 0 else open_width
    return InputFormat(tensor.name, height, width, tensor.dtype, layout)  # type: ignore[arg-type]


def _open_size(spec: ModelSpec) -> tuple[int, int]:
    text = spec.parameters.get("input_size")
    if text is None:
        return DEFAULT_SIZE, DEFAULT_SIZE
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() and 32 <= int(part) <= 8192 for part in parts):
        raise ModelRejected(
            f"model {spec.name!r}: parameter input_size={text!r}; want a side such as 640, or height x width "
            "such as 480x640, each from 32 to 8192"
        )
    return int(parts[0]), int(parts[-1])


def _scale(pixels: NDArray[Any], out: NDArray[Any]) -> None:
    if out.dtype == np.uint8:
        out[...] = pixels
    elif out.dtype == np.float16:
        # numpy's float16 arithmetic is slow, and there are but 256 values: OpenCV looks their bits up.
        cv2.LUT(pixels, _HALVES, dst=out.view(np.uint16))
    else:
        np.multiply(pixels, np.float32(1 / 255), out=out)


_HALVES = (np.arange(256, dtype=np.float32) / 255).astype(np.float16).view(np.uint16)[None]


# --- output layouts ---

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
    declared: bool
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


# --- all images of a batch at once ---

MOST = 128
"""Rows of a batch, above which each picture is read by itself: comparing all with all would cost more."""

Rows = tuple[Ints, Ints]
Found = tuple[Floats, Ints, list[int]]
"""Rows `[n, 6 + extra]` picture by picture, best first; the picture of each; where each picture's rows begin, and the
end."""


def scoring_rows(heads: NDArray[Any], confidence: float) -> Rows:
    """Which rows of `[batch, K, 6 + extra]` score: a picture and a row each, in order.

    The one look at all rows, which may lie in another processor's cache: a few hundred KB, not to be done twice.
    """
    with np.errstate(invalid="ignore"):
        picture, row = (heads[..., 4] > confidence).nonzero()
    return picture, row


def batch_candidates(heads: NDArray[Any], rows: Rows, *, iou: float, suppress: bool) -> Found | None:
    """What `heads.candidates` finds in each picture of `[batch, K, 6 + extra]`, all classes.

    None where that is no gain (too many rows) or wants a closer look (some are not finite): to be read one by one.

    Args:
        rows: as `scoring_rows` says.
    """
    picture, row = rows
    if picture.size > MOST:
        return None
    found: Floats = heads[picture, row].astype(np.float32, copy=False)
    if picture.size:
        with np.errstate(invalid="ignore", over="ignore"):
            if not math.isfinite(found[:, :6].sum()):
                return None
    if suppress and picture.size > 1:
        labels = found[:, 5].astype(np.int64)
        if len(set((labels + (picture << 32)).tolist())) < picture.size:
            kept = nms(found[:, :4], found[:, 4], labels, iou, MOST, pictures=picture)
            kept = kept[picture[kept].argsort(kind="stable")]
        else:  # no two of a class in a picture: none can suppress another
            kept = np.lexsort((-found[:, 4], picture))
        found, picture = found[kept], picture[kept]
    return found, picture, picture.searchsorted(np.arange(len(heads) + 1)).tolist()


def to_images(points: Floats, picture: Ints, boxes: Sequence[Letterbox | None]) -> Floats:
    """`boxes.points_to_image` of points `[n, m, 2]` in pictures that lie each in its own way."""
    nowhere = (0, 0, 1, 1, 0, 0)
    lies = [
        (b.pad_x, b.pad_y, b.width / b.image_width, b.height / b.image_height, b.image_width, b.image_height)
        if b
        else nowhere
        for b in boxes
    ]
    place = np.array(lies, dtype=np.float32)[picture, None]
    out: Floats = points - place[..., :2]
    out /= place[..., 2:4]
    np.maximum(out, np.float32(0), out=out)
    return np.minimum(out, place[..., 4:], out=out)


@dataclass(frozen=True, slots=True)
class Written:
    """Numbers as the wire has them, rounded for a whole batch in one go: numpy's price is for a call, not a row."""

    boxes: list[list[float]]
    confidence: list[float]


def rounded(values: NDArray[Any], decimals: int) -> list[Any]:
    """Nested lists of Python floats. Rounded as float64: a rounded float32 would be written with all its digits."""
    scale = 10.0**decimals
    # What `np.round` does, without the two layers around it.
    scaled = np.multiply(values, scale, dtype=np.float64)
    np.rint(scaled, out=scaled)
    scaled /= scale
    return scaled.tolist()  # type: ignore[no-any-return]
