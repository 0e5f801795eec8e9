"""The layouts of a model's tensors: its input image, and its detection or pose head with the candidates in it. Pure.

N images, A anchors, K rows, Q queries, C classes. Pixels are those of the input image, shares are parts of its sides.
Heads of YOLO, read here:

- `raw` `[N, 4 + C + extra, A]`: anchors in columns; cx, cy, w, h in pixels, one score a class, then further rows;
- `end_to_end` `[N, K, 6 + extra]`: x1, y1, x2, y2 in pixels, score, class; the model has removed overlapping boxes;
- `prepared` `[N, K, 6 + extra]`: the same columns; overlapping boxes are still there.

Detection heads of other families, read by `families`:

- `rtdetr` `[N, Q, 4 + C]`: cx, cy, w, h as shares, one score a class (RT-DETR of Ultralytics, before it picked rows);
- `rtdetr_rows` `[N, K, 6]`: cx, cy, w, h as shares, score, class (RT-DETR of Ultralytics since it picks the best rows);
- `boxes_logits` `[N, Q, 4]`, `[N, Q, C]`: cx, cy, w, h as shares, logits (RF-DETR; D-FINE and RT-DETR without their
  post-processor);
- `boxes_scores` `[N, A, 4]`, `[N, A, C]`: x1, y1, x2, y2 in pixels, scores; overlaps are still there (YOLO-NAS);
- `objectness` `[N, A, 5 + C]`: cx, cy, w, h in pixels, objectness, scores; overlaps are still there (YOLOv5, YOLOv7,
  YOLOX that decodes its boxes itself);
- `yolox` `[N, A, 5 + C]`: the same, but boxes are offsets in the cells of strides 8, 16 and 32 (YOLOX);
- `rows_apart` `[N, K, 4]`, `[N, K]`, `[N, K]`: x1, y1, x2, y2 in pixels, scores, labels; no overlaps (RT-DETR and
  D-FINE with their post-processor, of one constant size);
- `torchvision` `[D, 4]`, `[D]`, `[D]`: the same for one image without a batch dimension; label 0 is the background;
- `efficient_nms` `[N, 1]` and `rows_apart`: the number of rows first (TensorRT's EfficientNMS).

A model's string parameter `layout` names it; `make models` writes that parameter. Without it, rows that follow a UINT8
NHWC image are `prepared`. Rows that follow another image could be those of an end-to-end YOLO or of RT-DETR: they count
as the former only after an answer of the model has confirmed it (`implausible`). The layouts of other families are
never guessed, except `efficient_nms`, whose outputs have names of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from app.errors import ModelRejected
from app.inference.client import ModelSpec, TensorSpec
from app.pipeline.boxes import Floats, Ints, Letterbox, crop, letterbox, nms, stretch, top_left

DEFAULT_SIZE = 640
"""Side of the canvas where the model leaves its size open and has no parameter `input_size`."""

_DTYPES = ("UINT8", "FP16", "FP32")
_KNOWN = "UINT8, FP16 or FP32 of [N, H, W, 3] or [N, 3, H, W]"


Resize = Literal["letterbox", "letterbox_top_left", "stretch", "crop"]
Colour = Literal["rgb", "bgr"]
Three = tuple[float, float, float]

_PLACES: dict[str, Callable[[int, int, int, int], Letterbox]] = {
    "letterbox": letterbox,
    "letterbox_top_left": top_left,
    "stretch": stretch,
    "crop": crop,
}
RESIZES, COLOURS = (*_PLACES,), ("rgb", "bgr")
"""Values of a model's string parameters `resize` and `colour`."""


@dataclass(frozen=True, slots=True)
class InputFormat:
    """A model's only input tensor. UINT8 takes pixels as they are, FP16 and FP32 take (pixels / scale - mean) / std."""

    name: str
    height: int
    width: int
    dtype: Literal["UINT8", "FP16", "FP32"]
    """Triton's name."""
    layout: Literal["NHWC", "NCHW"]
    resize: Resize = "letterbox"
    """How a frame is fitted into the image; see `boxes`."""
    colour: Colour = "rgb"
    """Order of the channels."""
    scale: Literal[1, 255] = 255
    mean: Three = (0.0, 0.0, 0.0)
    """Of each channel, in the tensor's order, in units of pixels / scale."""
    std: Three = (1.0, 1.0, 1.0)
    is_image: bool = field(init=False, compare=False)
    """Whether the tensor holds images as a canvas does. Frames are then decoded into it, and `fill` does nothing."""
    _table: NDArray[Any] | None = field(init=False, compare=False, repr=False)
    """`[3, 256]`: the tensor's value for each level of each channel; None where the pixels are only divided by 255."""

    def __post_init__(self) -> None:
        is_image = self.dtype == "UINT8" and self.layout == "NHWC" and self.colour == "rgb"
        object.__setattr__(self, "is_image", is_image)
        plain = self.scale == 255 and self.mean == (0.0, 0.0, 0.0) and self.std == (1.0, 1.0, 1.0)
        object.__setattr__(self, "_table", None if plain or self.dtype == "UINT8" else self._levels())

    def _levels(self) -> NDArray[Any]:
        # In float32, in the order of torchvision's `normalize`.
        levels = np.arange(256, dtype=np.float32) / np.float32(self.scale)
        mean, std = np.array(self.mean, np.float32)[:, None], np.array(self.std, np.float32)[:, None]
        table = (levels - mean) / std
        return table.astype(np.float16).view(np.uint16) if self.dtype == "FP16" else table

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Shape of the tensor in a request with `batch` images."""
        if self.layout == "NHWC":
            return batch, self.height, self.width, 3
        return batch, 3, self.height, self.width

    def place(self, image_width: int, image_height: int) -> Letterbox:
        """Where a frame of this size lies in the image."""
        return _PLACES[self.resize](image_width, image_height, self.width, self.height)

    def fill(self, canvas: NDArray[np.uint8], out: NDArray[Any]) -> None:
        """Writes a canvas, RGB uint8 `[H, W, 3]`, to `out`: one image of the tensor, of its dtype.

        Does nothing where the canvas lies in the tensor. OpenCV splits the planes and numpy scales them, which is 1.8
        times as fast as `cv2.dnn.blobFromImage`.
        """
        if self.is_image and np.may_share_memory(canvas, out):
            return
        reverse, table = self.colour == "bgr", self._table
        if self.layout == "NHWC":
            ordered = cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR) if reverse else canvas
            if table is None:
                _scale(ordered, out)
            else:
                _look_up(ordered, np.ascontiguousarray(table.T)[None], out)
            return
        planes = cv2.split(canvas)
        for number, (plane, target) in enumerate(zip(planes[::-1] if reverse else planes, out, strict=True)):
            if table is None:
                _scale(plane, target)
            else:
                _look_up(plane, table[number : number + 1], target)


LAYOUT_FORMATS: dict[str, dict[str, str]] = {
    "yolox": {"colour": "bgr", "scale": "1", "resize": "letterbox_top_left"},
    "rtdetr": {"resize": "stretch"},
    "rtdetr_rows": {"resize": "stretch"},
    "boxes_logits": {"resize": "stretch"},
}
"""By layout of the head: what its families want their images to be. The model's own parameters take precedence."""


def input_format(spec: ModelSpec) -> InputFormat:
    """Reads size, type, layout and contents of the input from a model's metadata and parameters.

    Height or width that the model leaves open (-1) come from its parameter `input_size` (`640`, or `480x640`:
    height, then width), else are 640. The parameters `resize`, `colour`, `scale` (255 or 1), `mean` and `std` (JSON
    arrays of three numbers, in the order of the tensor's channels) say what the pixels become.

    Raises:
        ModelRejected: the model has several inputs, one of an unknown kind, or a parameter with an unknown value.
    """
    if len(spec.inputs) != 1:
        names = ", ".join(tensor.name for tensor in spec.inputs) or "none"
        hint = (
            ". It is an RT-DETR or D-FINE with its post-processor: export it without (layout boxes_logits), or make "
            "orig_target_sizes a constant, [[width, height]] of the input (layout rows_apart)"
            if any("target_size" in tensor.name for tensor in spec.inputs)
            else ""
        )
        raise ModelRejected(f"model {spec.name!r}: want one input, an image; it has {len(spec.inputs)} ({names}){hint}")
    (tensor,) = spec.inputs
    layout: Literal["NHWC", "NCHW"] | None = None
    if len(tensor.shape) == 4 and tensor.dtype in _DTYPES:
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
            f"model {spec.name!r}: input {tensor.name!r} {list(tensor.shape)} takes {tensor.shape[0]} images at a "
            "time, never fewer; export it with an open batch (Ultralytics: dynamic=True) or batch=1, or install it "
            "with `make models`, which fills such batches up"
        )
    height, width = tensor.shape[1:3] if layout == "NHWC" else tensor.shape[2:4]
    open_height, open_width = _open_size(spec)
    height, width = height if height > 0 else open_height, width if width > 0 else open_width
    given = {**LAYOUT_FORMATS.get(spec.parameters.get("layout", ""), {}), **spec.parameters}
    resize, colour = _choice(spec, given, "resize", RESIZES), _choice(spec, given, "colour", COLOURS)
    if tensor.dtype == "UINT8":
        _check_bytes(spec, tensor)
        return InputFormat(tensor.name, height, width, "UINT8", layout, resize, colour)  # type: ignore[arg-type]
    scale = int(_choice(spec, given, "scale", ("255", "1")))
    mean, std = _three(spec, "mean", (0.0, 0.0, 0.0)), _three(spec, "std", (1.0, 1.0, 1.0))
    if 0.0 in std:
        raise ModelRejected(f"model {spec.name!r}: parameter std={spec.parameters['std']!r} has a 0")
    return InputFormat(tensor.name, height, width, tensor.dtype, layout, resize, colour, scale, mean, std)  # type: ignore[arg-type]


def _choice(spec: ModelSpec, given: Mapping[str, str], name: str, known: Sequence[str]) -> str:
    """The value of a parameter, the first of the known ones where it is not given."""
    value = given.get(name, known[0]).strip()
    if value not in known:
        raise ModelRejected(f"model {spec.name!r}: parameter {name}={value!r}; want {' or '.join(known)}")
    return value


def _three(spec: ModelSpec, name: str, default: Three) -> Three:
    text = spec.parameters.get(name)
    if text is None:
        return default
    try:
        values = [float(value) for value in json.loads(text)]
    except (ValueError, TypeError):
        values = []
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise ModelRejected(
            f"model {spec.name!r}: parameter {name}={text!r}; want a JSON array of three numbers, one a channel, "
            "such as [0.485, 0.456, 0.406]"
        )
    return values[0], values[1], values[2]


def _check_bytes(spec: ModelSpec, tensor: TensorSpec) -> None:
    for name, right in (("scale", ("1",)), ("mean", ()), ("std", ())):
        value = spec.parameters.get(name)
        if value is not None and value.strip() not in right:
            raise ModelRejected(
                f"model {spec.name!r}: parameter {name}={value!r}, but input {tensor.name!r} is UINT8 and takes pixels "
                "as they are: remove the parameter, or declare the input as FP32 or FP16"
            )


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
        # numpy's float16 arithmetic is slow; there are only 256 values, so OpenCV looks up their bits.
        _look_up(pixels, _HALVES, out)
    else:
        np.multiply(pixels, np.float32(1 / 255), out=out)


def _look_up(pixels: NDArray[Any], table: NDArray[Any], out: NDArray[Any]) -> None:
    """Replaces each level by its value in the table, `[1, 256]` or `[1, 256, 3]`; half floats as their bits."""
    cv2.LUT(pixels, table, dst=out.view(np.uint16) if out.dtype == np.float16 else out)


_HALVES = (np.arange(256, dtype=np.float32) / 255).astype(np.float16).view(np.uint16)[None]


# --- output layouts ---

Layout = Literal[
    "raw",
    "end_to_end",
    "prepared",
    "rtdetr",
    "rtdetr_rows",
    "boxes_logits",
    "boxes_scores",
    "objectness",
    "yolox",
    "rows_apart",
    "torchvision",
    "efficient_nms",
]
Classes = NDArray[np.int32]

LAYOUTS: tuple[Layout, ...] = ("raw", "end_to_end", "prepared")
"""Values of a model's string parameter `layout` for heads of YOLO; a detection model may have others, too."""
FAMILY_LAYOUTS: tuple[Layout, ...] = tuple(name for name in get_args(Layout) if name not in LAYOUTS)
_NORMALISED = 1.5
"""The largest coordinate of boxes in pixels exceeds this; that of normalised boxes (0 to 1) does not."""
_MOST_SURE = 1.01
"""Scores do not exceed 1, apart from rounding."""

POSE_ROWS = 56
"""Rows of a raw head of one class with COCO's 17 keypoints: 4, a score, x, y and confidence of each."""
_QUERIES = 1000
"""Rows that a transformer's head has at most; a head with anchors has more."""
MAX_NMS = 30_000
"""The best candidates that enter the suppression, as in Ultralytics."""


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
    """Columns of a raw head for an image of this size: one a cell at strides 8, 16 and 32."""
    return sum(-(-form.height // stride) * -(-form.width // stride) for stride in (8, 16, 32))


@dataclass(frozen=True, slots=True)
class Head:
    """The output tensor to read, and its layout."""

    tensor: TensorSpec
    layout: Layout
    declared: bool
    """Whether the model declares the layout, and shows its numbers of rows and columns. Else an answer must confirm it
    (`implausible`)."""


def find_head(
    spec: ModelSpec,
    form: InputFormat,
    *,
    columns: int,
    sure: Callable[[int, int], bool],
    likely: Callable[[int, int], bool],
    output: str | None,
    known: str,
    may_be_open: bool = False,
) -> Head:
    """Picks the output tensor to read, and its layout.

    Args:
        form: the model's input.
        columns: number of columns of an `end_to_end` or `prepared` head.
        sure: whether `[N, a, b]` is certainly a raw head.
        likely: whether `[N, a, b]` is a raw head unless another layout fits better.
        output: name of the output; None: any.
        known: the known shapes, for the message.
        may_be_open: whether a head whose layout is declared may leave its numbers of rows and columns open; the caller
            then checks them in the first answer.

    Raises:
        ModelRejected: no output fits, or several do.
    """
    declared = spec.parameters.get("layout")
    if declared is not None and declared not in LAYOUTS:
        raise unknown_layout(spec, declared, LAYOUTS)
    given = [t for t in spec.outputs if output in (None, t.name)]
    heads = [t for t in given if len(t.shape) == 3 and t.dtype in ("FP32", "FP16")]
    cells = anchors(form)
    is_open = [t for t in heads if may_be_open and declared and t.shape[1:] == (-1, -1)]
    raws = [t for t in heads if sure(t.shape[1], t.shape[2]) or (declared == "raw" and t in is_open)]
    rows = [
        t
        for t in heads
        if t in is_open or (t.shape[2] == columns and (declared or t.shape[1] not in (cells, 3 * cells)))
    ]
    maybe = [t for t in heads if likely(t.shape[1], t.shape[2]) and t.shape[2] != 3 * cells]
    as_rows: Layout = "prepared" if form.is_image else "end_to_end"
    tiers: list[tuple[list[TensorSpec], Layout]] = [(raws, "raw"), (rows, as_rows), (maybe, "raw")]
    if form.is_image:
        tiers[:2] = tiers[1::-1]
    if declared == "raw":
        tiers = [(raws, "raw"), (maybe, "raw")]
    elif declared is not None:
        tiers = [(rows, declared)]
    found, layout = next(((tensors, layout) for tensors, layout in tiers if tensors), ([], as_rows))
    strange = _strange(spec, form) if layout == "raw" and output is None else None
    if len(found) == 1 and strange is None:
        return Head(found[0], layout, (declared is not None or form.is_image) and found[0] not in is_open)
    shapes = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in spec.outputs) or "none"
    looks = _looks(spec, form) if columns == 6 else _strange(spec, form)  # 6: a stage of objects asks
    why = (
        f"; {' and '.join(t.name for t in found)} could each be it"
        if len(found) > 1 and strange is None
        else f"; {looks}"
        if looks
        else f"; {output!r} is wanted"
        if output
        else f"; its parameter layout={declared!r} fits none of them"
        if declared
        else ""
    )
    image = f"{form.dtype} {form.layout} {form.width}x{form.height}"
    raise ModelRejected(f"model {spec.name!r}: outputs {shapes} for an image {image}; known: {known}{why}")


def unknown_layout(spec: ModelSpec, declared: str, known: Sequence[str]) -> ModelRejected:
    """The error for a model whose parameter `layout` has another value than the known ones."""
    of_detect = ": such a head has objects, which stage `detect` reads" if declared in FAMILY_LAYOUTS else ""
    return ModelRejected(f"model {spec.name!r}: parameter layout={declared!r}{of_detect}; want {', '.join(known)}")


HOW_TO_SAY = (
    "Say which with the parameter `layout`, in its config.pbtxt or, for `make models`, in a model.yaml beside the ONNX"
)


def _strange(spec: ModelSpec, form: InputFormat) -> str | None:
    """Describes a head that is not YOLO's by its outputs, who reads it, and what to do; None: the shapes show nothing.

    Outputs tell a family apart only as far as this message needs; no model is read because of it.
    """
    outputs, cells = spec.outputs, anchors(form)
    shapes = [t.shape for t in outputs]
    threes = [shape for shape in shapes if len(shape) == 3]
    if any(t.name.lower().startswith("num_det") for t in outputs):
        return (
            "a head behind TensorRT's EfficientNMS, which has num_dets [N, 1], det_boxes [N, K, 4], det_scores [N, K] "
            "and det_classes [N, K] (layout efficient_nms)"
        )
    if any(len(shape) == 4 for shape in shapes):
        return (
            "the 4-dimensional one holds the prototypes of masks: a segmentation head, which stage `segment` reads; "
            "install it with `make models SEGMENT=`, or export a detection model"
        )
    if any(len(shape) == 3 and shape[2] == 4 for shape in shapes):
        if any(len(shape) == 2 for shape in shapes):
            return (
                "boxes, scores and labels apart, as of RT-DETR or D-FINE with their post-processor (layout rows_apart) "
                f"or of torchvision (layout torchvision). {HOW_TO_SAY}"
            )
        return (
            "boxes and scores apart, as of RF-DETR and D-FINE (layout boxes_logits; for RF-DETR also mean and std) or "
            f"YOLO-NAS (layout boxes_scores). {HOW_TO_SAY}"
        )
    if any(len(shape) == 3 and shape[1] in (cells, 3 * cells) and shape[2] > 6 for shape in shapes):
        return (
            "anchors in rows, as of YOLOv5 and YOLOv7 (with an objectness: layout objectness) or YOLOX (layout yolox); "
            f"or a raw head that was transposed. {HOW_TO_SAY}; or export with Ultralytics, as yolov5nu"
        )
    if any(len(shape) == 3 and shape[2] == 3 * cells for shape in shapes):
        return "three anchors a cell in columns, as of YOLOv5 (with an objectness): export it with anchors in rows"
    if any(shape[2] == 7 for shape in threes):
        return (
            "seven columns: oriented boxes with an angle, which stage `obb` reads; install it with `make models OBB=`"
        )
    if outputs and all(len(shape) == 2 for shape in shapes):
        return (
            "one vector an image: a classification model, which stage `classify` reads; install it with "
            "`make models CLASSIFY=`"
        )
    return None


def _looks(spec: ModelSpec, form: InputFormat) -> str | None:
    """As `_strange`, but for a model in which no head was found: also shapes that a head of YOLO could have."""
    strange = _strange(spec, form)
    if strange is not None:
        return strange
    threes = [t.shape for t in spec.outputs if len(t.shape) == 3]
    if any(shape[1:] == (-1, -1) for shape in threes):
        return (
            "rows and columns are both open, as in an export with dynamic=True that was not simplified. Say with the "
            "parameter `layout` what they are (raw, end_to_end), and with `class_names` how many classes there are; or "
            "install it with `make models`"
        )
    if any(shape[1] == POSE_ROWS or shape[2] == POSE_ROWS + 1 for shape in threes):
        return (
            f"{POSE_ROWS} rows or {POSE_ROWS + 1} columns are one class and COCO's 17 keypoints: a pose head, which "
            "stage `pose` reads; install it with `make models POSE=`"
        )
    if len(threes) == 1 and threes[0][2] > 6 and threes[0][2] < threes[0][1] <= _QUERIES:
        return (
            "rows of a box and one score a class, as of RT-DETR exported by Ultralytics (layout rtdetr): "
            f"{HOW_TO_SAY}; or a raw head that was transposed"
        )
    return None


def implausible(head: NDArray[Any], layout: Layout, class_count: int) -> str | None:
    """Why the head of one image, `[4 + classes + extra, A]` (raw) or `[K, 6 + extra]`, cannot have that layout.

    None where it can. Checks the first answer of a model that does not declare its layout; with a class count of 0,
    scores are not checked.
    """
    head = head.astype(np.float32, copy=False)
    boxes = head[:4] if layout == "raw" else head[:, :4]
    scores = head[4 : 4 + class_count] if layout == "raw" else head[:, 4]
    with np.errstate(invalid="ignore"):
        largest = np.abs(boxes).max(initial=0.0)
        if 0 < largest <= _NORMALISED:
            return (
                f"its boxes lie between 0 and {largest:.2f}: shares of the image, not pixels. That is RT-DETR's head "
                "(layout rtdetr, or rtdetr_rows where its columns are cx, cy, w, h, score, class); or an export with "
                "normalised boxes: export it as ONNX without"
            )
        if layout != "raw":
            some = boxes[np.abs(boxes).max(axis=1, initial=0.0) > 0]
            turned = np.count_nonzero((some[:, 2] < some[:, 0]) | (some[:, 3] < some[:, 1]))
            if 2 * turned > len(some):
                return "its boxes are no corners x1, y1, x2, y2: most end before they begin"
        if scores.size and scores.max() > _MOST_SURE:
            return (
                f"what should be scores goes up to {scores.max():.2f}: rows beyond the classes (a segmentation model's "
                "masks, which stage `segment` reads; an angle of oriented boxes, which `obb` reads), or no head of "
                "that layout"
            )
    return None


def confirm(spec: ModelSpec, head: NDArray[Any], layout: Layout, class_count: int, *, known: str) -> None:
    """Checks the first answer of a model with `implausible`.

    Args:
        known: the known layouts, for the message.

    Raises:
        ModelRejected: the head cannot have that layout.
    """
    reason = implausible(head, layout, class_count)
    if reason is not None:
        raise ModelRejected(
            f"model {spec.name!r}: {reason}. Set its parameter `layout` if it is one of the known layouts: {known}"
        )


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
    """Reads the head of one image: `[4 + classes + extra, A]` (raw) or `[K, 6 + extra]`.

    As Ultralytics' `non_max_suppression` (ultralytics/utils/nms.py) with `multi_label=False`: only the best class of a
    box counts, and its score must exceed `confidence`; then only `classes` are kept; then boxes that overlap a better
    box of their class by more than `iou` are removed, except from an end-to-end head. Boxes with numbers that are not
    finite are removed.
    """
    head = head.astype(np.float32, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        found = _raw(head, class_count, confidence) if layout == "raw" else _rows(head, confidence)
    overlaps = layout != "end_to_end"
    return kept(found, overlaps=overlaps, iou=iou, classes=classes, max_detections=max_detections)


def kept(
    found: Candidates, *, overlaps: bool, iou: float, classes: frozenset[int] | None, max_detections: int
) -> Candidates:
    """The candidates that `candidates` keeps of those above the threshold. `overlaps`: whether boxes may overlap."""
    with np.errstate(invalid="ignore", over="ignore"):
        count = found.confidence.size
        # Almost always all numbers are finite, and so is their sum, which is cheaper to check than each box.
        if count and not math.isfinite(found.xyxy.sum() + found.confidence.sum()):
            found = take(found, np.flatnonzero(np.isfinite(found.xyxy.sum(axis=1) + found.confidence)))
    if count and classes is not None:
        found = take(found, np.flatnonzero(np.isin(found.class_id, list(classes))))
    count = found.confidence.size
    if not overlaps:
        return found if count <= max_detections else take(found, np.arange(max_detections))
    if count > MAX_NMS:
        found = take(found, np.argsort(-found.confidence, kind="stable")[:MAX_NMS])
    if count < 2:
        return found
    return take(found, nms(found.xyxy, found.confidence, found.class_id, iou, max_detections))


def _raw(head: Floats, class_count: int, confidence: float) -> Candidates:
    # Apply the threshold first: of 8,400 columns only a few dozen are worth transposing.
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


def take(found: Candidates, at: NDArray[np.int64] | NDArray[np.bool_]) -> Candidates:
    """The candidates at these indices, or where it is True."""
    return Candidates(found.xyxy[at], found.confidence[at], found.class_id[at], found.extra[at])


# --- all images of a batch at once ---

MOST = 128
"""Rows of a batch above which each image is read separately, because comparing all rows with all would cost more."""

Rows = tuple[Ints, Ints]
Found = tuple[Floats, Ints, list[int]]
"""Rows `[n, 6 + extra]`, image by image, best first; the image index of each; and where the rows of each image begin,
followed by the end."""


def scoring_rows(heads: NDArray[Any], confidence: float) -> Rows:
    """The rows of `[batch, K, 6 + extra]` that score: an image index and a row index each, in order.

    This is the only pass over all rows. They take a few hundred KB and may lie in another processor's cache, so a
    second pass would be expensive.
    """
    with np.errstate(invalid="ignore"):
        # Not a Python float, which numpy would round to half precision for such a head.
        image, row = (heads[..., 4] > np.float32(confidence)).nonzero()
    return image, row


def batch_candidates(heads: NDArray[Any], rows: Rows, *, iou: float, suppress: bool) -> Found | None:
    """The results of `candidates` for all images of `[batch, K, 6 + extra]` at once, for all classes.

    A call of numpy costs more than the few rows that score, so one pass for all images is cheaper than one for each.
    Returns None if too many rows score for that, or if some numbers are not finite: then read each image with
    `candidates`.

    Args:
        rows: the result of `scoring_rows`.
    """
    image, row = rows
    if image.size > MOST:
        return None
    found: Floats = heads[image, row].astype(np.float32, copy=False)
    if image.size:
        with np.errstate(invalid="ignore", over="ignore"):
            if not math.isfinite(found[:, :6].sum()):
                return None
    if suppress and image.size > 1:
        labels = found[:, 5].astype(np.int64)
        if len(set((labels + (image << 32)).tolist())) < image.size:
            kept = nms(found[:, :4], found[:, 4], labels, iou, MOST, images=image)
            kept = kept[image[kept].argsort(kind="stable")]
        else:  # no two boxes of one class in an image: none can suppress another
            kept = np.lexsort((-found[:, 4], image))
        found, image = found[kept], image[kept]
    return found, image, image.searchsorted(np.arange(len(heads) + 1)).tolist()


def to_images(points: Floats, image: Ints, boxes: Sequence[Letterbox | None]) -> Floats:
    """`boxes.points_to_image` for points `[n, m, 2]` of several images, each with a letterbox of its own."""
    nowhere = (0, 0, 1, 1, 0, 0)
    lies = [
        (b.pad_x - b.cut_x, b.pad_y - b.cut_y, b.scale_x, b.scale_y, b.image_width, b.image_height) if b else nowhere
        for b in boxes
    ]
    place = np.array(lies, dtype=np.float32)[image, None]
    out: Floats = points - place[..., :2]
    out /= place[..., 2:4]
    np.maximum(out, np.float32(0), out=out)
    return np.minimum(out, place[..., 4:], out=out)


@dataclass(frozen=True, slots=True)
class Written:
    """Numbers as the wire has them, rounded for a whole batch in one call of numpy."""

    boxes: list[list[float]]
    confidence: list[float]


def rounded(values: NDArray[Any], decimals: int) -> list[Any]:
    """Nested lists of Python floats, rounded as float64, because a rounded float32 would be written with all digits."""
    scale = 10.0**decimals
    # The steps of `np.round`, without its two layers of Python.
    scaled = np.multiply(values, scale, dtype=np.float64)
    np.rint(scaled, out=scaled)
    scaled /= scale
    return scaled.tolist()  # type: ignore[no-any-return]
