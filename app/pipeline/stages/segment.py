"""Segmentation: objects and their outlines from a YOLO segmentation model's outputs.

The head is a detection head with M further numbers a box, its *coefficients*; a second output holds M *prototypes*,
images at a quarter of the canvas' size. The sum of the prototypes, weighted by the coefficients, is enlarged to the
canvas; the mask is where it is above 0, cut to the box. So makes Ultralytics' `predict` its masks (`process_mask` with
`upsample` in ultralytics/utils/ops.py, 8.4). Outlines are those of its `masks2segments`, one ring for each part.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from app import metrics
from app.errors import ModelRejected
from app.inference.client import ModelSpec, TensorSpec
from app.pipeline.boxes import Floats, Ints, Letterbox, points_to_image, to_image
from app.pipeline.layouts import (
    Classes,
    InputFormat,
    Layout,
    Rows,
    anchors,
    candidates,
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
class RunLengths:
    """A mask over the whole frame in COCO's compressed run lengths, holes included."""

    size: tuple[int, int]
    """Height and width of the frame."""
    counts: str


@many
class Segment:
    """One object with its outline. `confidence` is 0 to 1."""

    class_id: int
    class_name: str
    confidence: float
    box: Box
    """The box that the model gives, not that of the outline."""
    polygons: list[list[tuple[float, float]]]
    """One ring of x, y for each connected part, the largest first; holes are not cut out."""
    track_id: int | None = None
    """Number of the object's track in its stream; null until confirmed."""
    rle: RunLengths | None = None
    """The mask itself, where `mask_rle` asks for it."""


KNOWN = (
    "[N, 4 + classes + M, A] (layout raw: YOLOv8-seg, YOLO11-seg) or [N, K, 6 + M] (layout end_to_end: YOLO26-seg, "
    "exports with nms=True; or prepared, behind a UINT8 image [N, H, W, 3]), with prototypes [N, M, h, w]; FP32 or FP16"
)

INSTANCE_POINTS = 1000
"""Most points of one instance's outline. An outline of more is simplified until it has fewer."""
FRAME_POINTS = 20_000
"""Points that the outlines of a frame share: some 300 KB of JSON. Of n instances, each has an n-th, 16 at least."""
FRAME_RLE = 400_000
"""Characters that the run lengths of a frame may take. Instances after the one that exceeds it, which are less certain,
have none."""
_LEAST_POINTS = 16

# --- masks and their outlines ---

Bits = NDArray[np.bool_]
Ring = NDArray[Any]
"""`[points, 2]`: x, y on the canvas."""


@dataclass(frozen=True, slots=True)
class Mask:
    """One instance's pixels on the canvas: those within its box."""

    x: int
    """Left edge of the box' pixels."""
    y: int
    height: int
    width: int
    packed: NDArray[np.uint8]
    """`[height * width / 8]`: the pixels row by row, one bit each (`np.packbits`)."""

    @property
    def pixels(self) -> Bits:
        """Bool `[height, width]`."""
        bits = np.unpackbits(self.packed, count=self.height * self.width)
        return bits.view(np.bool_).reshape(self.height, self.width)


def instance_pixels(
    coefficients: Floats, protos: NDArray[Any], xyxy: Floats, form: InputFormat
) -> tuple[int, int, Bits]:
    """The pixels of one instance within its box: left and top edge, and bool `[h, w]`, which is empty without any.

    Args:
        coefficients: `[M]`.
        protos: `[M, h, w]`, float32 or float16.
        xyxy: `[4]`, canvas pixels.
    """
    rows, columns = protos.shape[1:]
    # Pixel i belongs to the box if x1 <= i < x2 (`crop_mask`).
    left, right = (min(max(int(edge), 0), form.width) for edge in np.ceil(xyxy[::2]))
    top, bottom = (min(max(int(edge), 0), form.height) for edge in np.ceil(xyxy[1::2]))
    if left >= right or top >= bottom:
        return left, top, np.zeros((0, 0), np.bool_)
    by_x, by_y = form.width // columns, form.height // rows
    if (by_x * columns, by_y * rows) == (form.width, form.height):
        # The prototypes under the box, and one more on each side, which the interpolation at its edges needs.
        from_x, to_x = max(left // by_x - 1, 0), min((right - 1) // by_x + 2, columns)
        from_y, to_y = max(top // by_y - 1, 0), min((bottom - 1) // by_y + 2, rows)
        size = ((to_x - from_x) * by_x, (to_y - from_y) * by_y)
    else:
        from_x, to_x, from_y, to_y, by_x, by_y = 0, columns, 0, rows, 0, 0
        size = (form.width, form.height)
    part = protos[:, from_y:to_y, from_x:to_x].astype(np.float32, copy=False)
    logits = (coefficients @ part.reshape(len(part), -1)).reshape(part.shape[1:])
    large = cv2.resize(logits, size, interpolation=cv2.INTER_LINEAR)
    x, y = left - from_x * by_x, top - from_y * by_y
    return left, top, large[y : y + bottom - top, x : x + right - left] > 0


def outline(pixels: Bits, x: int, y: int, most: int = INSTANCE_POINTS) -> tuple[list[Ring], bool]:
    """The rings around the connected parts of a mask, the largest first, and whether they were simplified.

    Points are pixels of the canvas, as OpenCV gives them: the middles of the outermost pixels. Holes have no ring of
    their own. Specks are left out: parts of fewer than 16 pixels, a cell of the prototypes, as long as they are a
    two-hundredth of the mask in all.

    Args:
        x: left edge of the pixels on the canvas.
        y: their top edge.
        most: most points of all rings together; see `INSTANCE_POINTS`.

    Returns:
        Rings `[points, 2]`; without any where no pixel is set.
    """
    found, _ = cv2.findContours(pixels.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
    rings: list[Ring] = [ring.reshape(-1, 2) for ring in found]
    if len(rings) > 1:
        # About the number of pixels: those on the ring lie half outside it (Pick's theorem).
        sizes = [cv2.contourArea(ring) + cv2.arcLength(ring, True) / 2 + 1 for ring in rings]
        order = sorted(range(len(rings)), key=sizes.__getitem__)
        spare = _SPECKS * sum(sizes)
        while sizes[order[0]] < _CELL and sizes[order[0]] <= spare:
            spare -= sizes[order.pop(0)]
        rings = [rings[at] for at in reversed(order)]
    rings = [_around(ring) for ring in rings]
    simplified = sum(map(len, rings)) > most
    tolerance = 0.5
    while sum(map(len, rings)) > most:
        # Rings that become lines are left out, and in the end all but the largest.
        coarse = [cv2.approxPolyDP(ring, tolerance, True).reshape(-1, 2) for ring in rings]
        rings = [_around(coarse[0]), *(ring for ring in coarse[1:] if len(ring) > 2 and tolerance < _COARSEST)]
        tolerance *= 2
    return rings, simplified


_CELL = 16.0
_SPECKS = 0.005
_COARSEST = 64.0


def _around(line: Ring) -> Ring:
    """A ring as it is; but around a line of pixels, or a single one, a ring half a pixel away from their middles."""
    if len(line) > 2:
        return line
    start, end = line[0].astype(np.float32), line[-1].astype(np.float32)
    length = float(np.hypot(*(end - start)))
    along = (end - start) / (2 * length) if length else np.array((0.5, 0), np.float32)
    across = np.array((-along[1], along[0]))
    return np.stack((start - along - across, end + along - across, end + along + across, start - along + across))


# --- a mask in pixels of the frame, and its run lengths ---


def to_frame(mask: Mask, box: Letterbox) -> tuple[int, int, Bits]:
    """The mask at the size of the frame: left and top edge in frame pixels, and bool `[h, w]`.

    The frame's part of the canvas is enlarged or reduced linearly, as Ultralytics' `scale_masks` does
    (ultralytics/utils/ops.py, 8.4); a pixel belongs to the mask if its value is above a half.
    """
    left, low_x, high_x, share_x = _samples(
        mask.x - box.pad_x + box.cut_x, mask.width, box.cut_x + box.width, box.scale_x, box.image_width
    )
    top, low_y, high_y, share_y = _samples(
        mask.y - box.pad_y + box.cut_y, mask.height, box.cut_y + box.height, box.scale_y, box.image_height
    )
    pixels = np.pad(mask.pixels, 1).astype(np.float32)
    lines = pixels[low_y] * (1 - share_y)[:, None] + pixels[high_y] * share_y[:, None]
    values = lines[:, low_x] * (1 - share_x) + lines[:, high_x] * share_x
    return left, top, values > 0.5


def _samples(start: int, length: int, size: int, scale: float, whole: int) -> tuple[int, Ints, Ints, Floats]:
    """How one side of a mask is sampled for the frame.

    Args:
        start: first pixel of the mask, counted from the frame's edge on the canvas.
        length: pixels of the mask.
        size: pixels of the frame on the canvas.
        scale: canvas over frame.
        whole: pixels of the frame.

    Returns:
        The first frame pixel that the mask may cover; and for this and the following ones the two mask pixels between
        which it lies, counted from one before the mask, and the share of the second.
    """
    first = max(int((start - 1) / scale) - 1, 0)
    last = min(int((start + length + 1) / scale) + 2, whole)
    at = np.maximum((np.arange(first, max(first, last)) + 0.5) * scale - 0.5, 0)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    low_place, high_place = (np.clip(index - start + 1, 0, length + 1) for index in (low, high))
    return first, low_place, high_place, (at - low).astype(np.float32)


def run_lengths(pixels: Bits, x: int, y: int, width: int, height: int) -> str:
    """COCO's compressed run lengths of a mask over an image, column by column: zeros first, then ones, and so on.

    As `rleEncode` and `rleToString` of pycocotools (cocoapi/common/maskApi.c): each length but the first three is
    written as its difference from the one before the last, five bits a character, lowest first.

    Args:
        pixels: bool `[h, w]`, the part of the image that may be set; it begins at (x, y).
    """
    columns = np.zeros((pixels.shape[1], pixels.shape[0] + 2), np.int8)
    columns[:, 1:-1] = pixels.T
    steps = np.diff(columns, axis=1)
    column, starts = np.nonzero(steps > 0)
    ends = np.nonzero(steps < 0)[1]
    offsets = (column + x) * height + y
    starts, ends = starts + offsets, ends + offsets
    # A run at the foot of a column goes on at the head of the next.
    apart = np.flatnonzero(starts[1:] != ends[:-1])
    starts, ends = np.concatenate((starts[:1], starts[1:][apart])), np.concatenate((ends[:-1][apart], ends[-1:]))
    bounds = np.column_stack((starts, ends)).reshape(-1)
    counts = np.diff(np.concatenate(([0], bounds, [width * height])))
    if bounds.size and counts[-1] == 0:
        counts = counts[:-1]
    counts[3:] -= counts[1:-2].copy()
    shifted = counts[:, None] >> np.arange(0, 5 * _GROUPS, 5)
    digits = shifted & 31
    # The last character is the one after which only sign bits remain, and whose own highest bit is the sign.
    done = (shifted >> 5 == 0) & (digits < 16) | (shifted >> 5 == -1) & (digits >= 16)
    last = done.argmax(axis=1)[:, None]
    place = np.arange(_GROUPS)
    characters = (digits + 32 * (place < last) + 48).astype(np.uint8)
    text: bytes = characters[place <= last].tobytes()
    return text.decode("ascii")


_GROUPS = 10
"""Groups of five bits that hold any number of pixels."""

# --- reading a model's outputs ---


@dataclass(frozen=True, slots=True)
class Segmented:
    """n instances in one frame, best first."""

    xyxy: Floats
    """`[n, 4]`, frame pixels."""
    confidence: Floats
    class_id: Classes
    polygons: list[list[Any]]
    """For each instance its rings, each a list of x, y in frame pixels, as the wire has them."""
    masks: list[Mask]
    box: Letterbox
    """Where the frame lies on the canvas of the masks."""
    lengths: list[RunLengths | None] | None = None
    """The masks' run lengths, where they are asked for."""


@dataclass(frozen=True, slots=True)
class SegmentReader:
    """Reads the two outputs of one segmentation model; made by `segment_reader`."""

    spec: ModelSpec
    input: InputFormat
    output_name: str
    protos_name: str
    layout: Layout
    class_names: tuple[str, ...]
    """By class id; empty where the model has no names and does not show the number of its classes."""
    declared: bool = True
    """Whether the model declares the layout of its head; else `check` must confirm it."""

    @property
    def output_names(self) -> tuple[str, str]:
        """The outputs that it reads."""
        return self.output_name, self.protos_name

    def check(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Checks an answer as `DetectReader.check` does. Raises ModelRejected."""
        if not self.declared:
            confirm(self.spec, outputs[self.output_name][0], self.layout, len(self.class_names), known=KNOWN)

    def scan(self, outputs: Mapping[str, NDArray[Any]], confidence: float) -> tuple[Rows | None, int]:
        """See `Reader.scan`. Each mask takes some hundred microseconds, so all that find any are read in a thread."""
        if self.layout == "raw":
            return None, sys.maxsize
        rows = scoring_rows(outputs[self.output_name], confidence)
        return rows, sys.maxsize if rows[0].size else 0

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
    ) -> Segmented:
        """The instances in image `index` of a batch; see `layouts.candidates`. As in Ultralytics, those whose mask has
        no pixel are left out after the `max_detections` best were taken. `classes`: ids to keep, None keeps all.
        """
        found = candidates(
            outputs[self.output_name][index],
            self.layout,
            class_count=len(self.class_names),
            confidence=confidence,
            iou=iou,
            classes=classes,
            max_detections=max_detections,
        )
        protos = outputs[self.protos_name][index]
        count = found.confidence.size
        most = max(_LEAST_POINTS, min(INSTANCE_POINTS, FRAME_POINTS // max(count, 1)))
        kept: list[int] = []
        masks: list[Mask] = []
        outlines: list[list[Ring]] = []
        simplified = 0
        with np.errstate(invalid="ignore", over="ignore"):
            for at in range(count):
                x, y, pixels = instance_pixels(found.extra[at], protos, found.xyxy[at], self.input)
                rings, coarse = outline(pixels, x, y, most)
                if rings:
                    kept.append(at)
                    height, width = pixels.shape
                    masks.append(Mask(x, y, height, width, np.packbits(pixels)))
                    outlines.append(rings)
                    simplified += coarse
        _count(written=len(kept), simplified=simplified, empty=count - len(kept))
        return Segmented(
            to_image(found.xyxy[kept], box),
            found.confidence[kept],
            found.class_id[kept],
            _polygons(outlines, box),
            masks,
            box,
        )

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
    ) -> list[Segmented | None]:
        """`read` for all images of a batch; None for images without a box."""
        limits: Any = {"confidence": confidence, "iou": iou, "classes": classes, "max_detections": max_detections}
        return [None if box is None else self.read(outputs, at, box, **limits) for at, box in enumerate(boxes)]


def _polygons(outlines: list[list[Ring]], box: Letterbox) -> list[list[Any]]:
    """Rings in frame pixels, to 1 decimal: all points of the frame in one call of numpy."""
    every = [ring for rings in outlines for ring in rings]
    if not every:
        return []
    points = rounded(points_to_image(np.concatenate(every), box), 1)
    end = 0
    polygons: list[list[Any]] = []
    for rings in outlines:
        polygons.append([])
        for ring in rings:
            start, end = end, end + len(ring)
            polygons[-1].append(points[start:end])
    return polygons


def segment_reader(spec: ModelSpec) -> SegmentReader:
    """Picks the reader for a model from its metadata.

    Class names are the model's parameter `class_names`, else `class_0`, `class_1`, ...

    Raises:
        ModelRejected: the outputs are not those of a segmentation model, or there are more or fewer names than classes.
    """
    require_task(spec, "segment")
    form = input_format(spec)
    names = class_names(spec)
    cells = anchors(form)
    images = [t for t in spec.outputs if len(t.shape) == 4 and t.dtype in _FLOATS and t.shape[1] > 0]
    heads = [t for t in spec.outputs if len(t.shape) == 3 and t.dtype in _FLOATS]
    if len(images) != 1 or len(heads) != 1:
        raise ModelRejected(f"model {spec.name!r}: outputs {tensors(spec)}; known: {KNOWN}; {_unlike(images, heads)}")
    protos = images[0]
    extra = protos.shape[1]

    def sure(rows: int, columns: int) -> bool:
        return rows == 4 + len(names) + extra if names else columns == cells and rows >= 5 + extra

    def likely(rows: int, columns: int) -> bool:
        return rows >= 5 + extra and (columns < 0 or columns > rows)

    # Without the prototypes, which would show in the message that it is no detection head.
    alone = replace(spec, outputs=(heads[0],))
    found = find_head(
        alone,
        form,
        columns=6 + extra,
        sure=sure,
        likely=likely,
        output=heads[0].name,
        known=f"{KNOWN}, here M = {extra}",
    )
    head = found.tensor
    if found.layout == "raw":
        count = head.shape[1] - 4 - extra
        if names and len(names) != count:
            raise ModelRejected(
                f"model {spec.name!r}: output {head.name!r} {list(head.shape)} has {count} classes beside {extra} "
                f"coefficients for {protos.name!r} {list(protos.shape)}, but class_names has {len(names)}"
            )
        names = names or tuple(f"class_{i}" for i in range(count))
    return SegmentReader(spec, form, head.name, protos.name, found.layout, names, found.declared)


_FLOATS = ("FP32", "FP16")


def _unlike(images: list[TensorSpec], heads: list[TensorSpec]) -> str:
    """Why outputs with so many prototypes and heads are not read, and what to do."""
    if len(images) > 1 or len(heads) > 1:
        several = " and ".join(t.name for t in (images if len(images) > 1 else heads))
        return f"{several} could each be it"
    if images:
        return "there are prototypes, but no head with boxes"
    return (
        "there are no prototypes of masks: it is no segmentation model. A detection model belongs to "
        "TRITON_DETECT_MODEL, one of poses to TRITON_POSE_MODEL, of oriented boxes to TRITON_OBB_MODEL, a "
        "classification to TRITON_CLASSIFY_MODEL"
    )


# --- the stage ---


def segments(found: Segmented, track_ids: NDArray[Any] | None, class_names: tuple[str, ...]) -> list[Segment]:
    """Instances as the wire has them: boxes to 2 decimals, points to 1, confidence to 4.

    Args:
        track_ids: `[n]`; -1 means no id.
    """
    count = len(found.polygons)
    return [
        Segment(
            class_id,
            class_name(class_names, class_id),
            confidence,
            Box(*corners),
            polygons,
            track_id if track_id >= 0 else None,
            rle,
        )
        for class_id, confidence, corners, polygons, track_id, rle in zip(
            found.class_id.tolist(),
            rounded(found.confidence, 4),
            rounded(found.xyxy, 2),
            found.polygons,
            [-1] * count if track_ids is None else track_ids.tolist(),
            found.lengths or [None] * count,
            strict=True,
        )
    ]


def with_run_lengths(found: Segmented) -> Segmented:
    """With the run lengths of each instance, until `FRAME_RLE` is exceeded. Takes a millisecond a mask."""
    width, height = found.box.image_width, found.box.image_height
    lengths: list[RunLengths | None] = []
    size = 0
    for mask in found.masks:
        if size > FRAME_RLE:
            lengths.append(None)
            continue
        left, top, pixels = to_frame(mask, found.box)
        counts = run_lengths(pixels, left, top, width, height)
        size += len(counts)
        lengths.append(RunLengths((height, width), counts))
    _count(without_rle=lengths.count(None))
    return replace(found, lengths=lengths)


def _count(**outcomes: int) -> None:
    for outcome, count in outcomes.items():
        if count:
            metrics.MASKS.labels(outcome).inc(count)


class SegmentStage(PipelineStage):
    """Objects with their outlines."""

    name = "segment"
    title = "Segmentation"
    description = (
        "Outlines of the objects that the segmentation model knows; their masks where `mask_rle` asks for them."
    )
    runs = "anywhere"
    part = Part(
        "segments", list[Segment], shapes=(Shape("mask", "polygons", label="{class_name} {confidence} {track_id}"),)
    )
    model_type = ClassModel

    def model(self) -> str | None:
        return self.settings.triton.triton_segment_model

    def reader(self, spec: ModelSpec) -> SegmentReader:
        return segment_reader(spec)

    def describe(self, reader: SegmentReader) -> ClassModel:
        return ClassModel(display_name(reader.spec), reader.class_names)

    async def run(self, batch: Batch) -> None:
        """Encodes the masks of frames that ask for run lengths, in threads."""
        asked = [state for state in batch.frames if state.job.settings.mask_rle and "segment" in state.found]
        if asked:
            await asyncio.shield(self.host.threads.run(*(partial(_encode, state) for state in asked)))

    def write(self, state: FrameState, batch: Batch) -> list[Segment]:
        found = state.found.get("segment")
        if found is None:
            return []
        return segments(found, state.track_ids.get("segment"), batch.model_set.readers["segment"].class_names)


def _encode(state: FrameState) -> None:
    state.found["segment"] = with_run_lengths(state.found["segment"])
