"""Detection: objects from a detection model's output, in every layout of `layouts`. Pure numpy."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ConfigurationError, ModelRejected
from app.inference.client import ModelSpec
from app.pipeline.boxes import Floats, Letterbox, to_image
from app.pipeline.families import FAMILIES, efficient_nms, find_family_head, implausible, read
from app.pipeline.layouts import (
    FAMILY_LAYOUTS,
    LAYOUTS,
    POSE_ROWS,
    Candidates,
    Classes,
    InputFormat,
    Layout,
    Rows,
    Written,
    anchors,
    batch_candidates,
    candidates,
    confirm,
    find_head,
    input_format,
    kept,
    rounded,
    scoring_rows,
    take,
    to_images,
    unknown_layout,
)
from app.pipeline.parameters import class_names, require_task
from app.pipeline.stage import PipelineStage, display_name
from app.pipeline.types import Batch, FrameState
from app.protocol.result import Box, many
from app.protocol.stages import Part, Shape
from app.settings import Settings


@many
class Detection:
    """One object that was found. `confidence` is 0 to 1."""

    class_id: int
    class_name: str
    confidence: float
    box: Box
    track_id: int | None = None
    """Number of the object's track in its stream, kept for as long as the tracker follows it; null until confirmed."""


@dataclass(frozen=True, slots=True)
class DetectModel:
    """The detection model that is loaded, and its class names by id."""

    name: str
    """Display name from the model's metadata, such as `yolov8n` or `mediapipe`; without one, its name in Triton."""
    classes: tuple[str, ...]


KNOWN = (
    "[N, 4 + classes, A] (layout raw: YOLOv8, YOLO11), [N, K, 6] (layout end_to_end: YOLOv10, YOLO26, exports with "
    "nms=True; or layout prepared, behind a UINT8 image [N, H, W, 3]), FP32 or FP16; where the parameter `layout` says "
    f"so, also {', '.join(FAMILY_LAYOUTS)}"
)
_POSE = (POSE_ROWS, POSE_ROWS + 1)
"""Rows of a raw pose head and columns of any other pose head: such an output never holds detections."""
_ROWS = ("end_to_end", "prepared")
"""Layouts whose batches are read at once."""
_BACKGROUND = "__background__"
"""Torchvision's name of label 0."""


@dataclass(frozen=True, slots=True)
class Detected:
    """n objects of one frame, best first."""

    xyxy: Floats
    """`[n, 4]`, frame pixels."""
    confidence: Floats
    class_id: Classes
    written: Written | None = None
    """Set where a whole batch was read at once."""


@dataclass(frozen=True, slots=True)
class DetectReader:
    """Reads the output of one detection model; made by `detect_reader`."""

    spec: ModelSpec
    input: InputFormat
    output_name: str
    layout: Layout
    class_names: tuple[str, ...]
    """By class id; empty where the model has no names and does not show the number of its classes."""
    declared: bool = True
    """Whether the model declares the layout of its head; else `check` must confirm it."""
    more_outputs: tuple[str, ...] = ()
    """Names of the other outputs that belong to the head, in the order in which `families` reads them."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """All outputs that are read."""
        return (self.output_name, *self.more_outputs)

    def check(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Checks that an answer can have the layout that the model declares, or that its shape suggested.

        An answer without boxes confirms anything.

        Raises:
            ModelRejected: it has another layout.
        """
        if self.layout in FAMILIES:
            reason = implausible(self.layout, self._tensors(outputs, 0), self.input)
            if reason is not None:
                means = FAMILIES[self.layout].shapes
                raise ModelRejected(
                    f"model {self.spec.name!r}: its layout is {self.layout}, {means}, but {reason}. Correct its "
                    "parameter `layout`, or the export"
                )
        elif not self.declared:
            head = outputs[self.output_name][0]
            numbers, wanted = (len(head), 4 + len(self.class_names)) if self.layout == "raw" else (head.shape[1], 6)
            if numbers != wanted:
                classes = len(self.class_names)
                raise ModelRejected(
                    f"model {self.spec.name!r}: its answer is {list(head.shape)} for an image; with {classes} names of "
                    f"classes, layout {self.layout} has {wanted} {'rows' if self.layout == 'raw' else 'columns'}"
                )
            confirm(self.spec, head, self.layout, len(self.class_names), known=KNOWN)

    def scan(
        self, outputs: Mapping[str, NDArray[Any]], confidence: float
    ) -> tuple[Rows | list[Candidates] | None, int]:
        """What `read_all` may use again, and the number of rows that score in any image; many where it takes long.

        A head with thousands of anchors takes milliseconds to search, which belongs in a thread.
        """
        if self.layout == "raw":
            return None, sys.maxsize
        if self.layout in FAMILIES:
            if FAMILIES[self.layout].dense:
                return None, sys.maxsize
            found = [self._candidates(outputs, at, confidence) for at in range(len(outputs[self.output_name]))]
            return found, sum([candidates.confidence.size for candidates in found])
        rows = scoring_rows(outputs[self.output_name], confidence)
        return rows, rows[0].size

    def _tensors(self, outputs: Mapping[str, NDArray[Any]], index: int) -> list[NDArray[Any]]:
        return [outputs[name][index] for name in self.output_names]

    def _candidates(self, outputs: Mapping[str, NDArray[Any]], index: int, confidence: float) -> Candidates:
        return read(self.layout, self._tensors(outputs, index), self.input, confidence)

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
    ) -> Detected:
        """The objects of image `index` of a batch; see `layouts.candidates`. `classes`: ids to keep, None keeps all."""
        limits: Any = {"iou": iou, "classes": classes, "max_detections": max_detections}
        if self.layout in FAMILIES:
            return self._detected(self._candidates(outputs, index, confidence), box, limits)
        found = candidates(
            outputs[self.output_name][index],
            self.layout,
            class_count=len(self.class_names),
            confidence=confidence,
            **limits,
        )
        return Detected(to_image(found.xyxy, box), found.confidence, found.class_id)

    def read_all(
        self,
        outputs: Mapping[str, NDArray[Any]],
        boxes: Sequence[Letterbox | None],
        *,
        confidence: float,
        iou: float,
        classes: frozenset[int] | None,
        max_detections: int,
        rows: Rows | list[Candidates] | None = None,
    ) -> list[Detected | None]:
        """`read` for all images of a batch; None for images without a box. `rows`: the first result of `scan`."""
        limits = {"confidence": confidence, "iou": iou}
        if isinstance(rows, list):
            asked: Any = {"iou": iou, "classes": classes, "max_detections": max_detections}
            return [
                None if box is None else self._detected(take(found, found.confidence > confidence), box, asked)
                for found, box in zip(rows, boxes, strict=True)
            ]
        found = None
        if self.layout in _ROWS and classes is None:
            heads = outputs[self.output_name]
            rows = rows or scoring_rows(heads, confidence)
            found = batch_candidates(heads, rows, iou=iou, suppress=self.layout == "prepared")
        if found is None:
            more: Any = {**limits, "classes": classes, "max_detections": max_detections}
            return [None if box is None else self.read(outputs, at, box, **more) for at, box in enumerate(boxes)]
        best, image, bounds = found
        xyxy = to_images(best[:, :4].reshape(-1, 2, 2), image, boxes).reshape(-1, 4)
        labels = best[:, 5].astype(np.int32)
        scores = best[:, 4]
        corners, confidences = rounded(xyxy, 2), rounded(scores, 4)
        parts = [slice(start, min(end, start + max_detections)) for start, end in pairwise(bounds)]
        return [
            None if box is None else Detected(xyxy[at], scores[at], labels[at], Written(corners[at], confidences[at]))
            for box, at in zip(boxes, parts, strict=True)
        ]

    def _detected(self, found: Candidates, box: Letterbox, limits: Any) -> Detected:
        found = kept(found, overlaps=FAMILIES[self.layout].overlaps, **limits)
        return Detected(to_image(found.xyxy, box), found.confidence, found.class_id)


def detect_reader(spec: ModelSpec, labels: tuple[str, ...] | None = None, *, output: str | None = None) -> DetectReader:
    """Picks the reader for a model from its metadata.

    Class names are the model's parameter `class_names`, else `labels`, else `class_0`, `class_1`, ...

    Args:
        output: name of the output tensor; None takes the one whose shape fits.

    Raises:
        ModelRejected: the layout is unknown, or there are more or fewer names than classes.
    """
    require_task(spec, "detect")
    form = input_format(spec)
    names = class_names(spec, labels)
    source = "its parameter class_names" if "class_names" in spec.parameters else "TRITON_LABELS"
    declared = spec.parameters.get("layout")
    if declared in FAMILY_LAYOUTS:
        return _family_reader(spec, form, declared, names, source, output)
    if declared is None and output is None and efficient_nms(spec):
        return _family_reader(spec, form, "efficient_nms", names, source, output)
    if declared is not None and declared not in LAYOUTS:
        raise unknown_layout(spec, declared, (*LAYOUTS, *FAMILY_LAYOUTS))
    cells = anchors(form)

    def sure(rows: int, columns: int) -> bool:
        return rows == 4 + len(names) if names else columns == cells and rows >= 5 and rows not in _POSE

    def likely(rows: int, columns: int) -> bool:
        # A raw head has more anchors than rows: [N, 25200, 85] is YOLOv5's, [N, A, 4 + classes] a transposed raw head,
        # [N, 100, 4] the boxes of a detector whose scores stand elsewhere.
        open_or_more = columns < 0 or columns > rows
        return rows >= 5 and rows not in (*_POSE, cells, 3 * cells) and columns not in _POSE and open_or_more

    head = find_head(spec, form, columns=6, sure=sure, likely=likely, output=output, known=KNOWN, may_be_open=True)
    tensor, layout = head.tensor, head.layout
    if layout == "raw" and tensor.shape[1] < 0:
        if not names:
            raise ModelRejected(
                f"model {spec.name!r}: output {tensor.name!r} {list(tensor.shape)} does not show the number of "
                "classes; name them with the parameter class_names"
            )
    elif layout == "raw":
        count = tensor.shape[1] - 4
        if names and len(names) != count:
            hint = {
                1: ": oriented boxes have a row more, an angle, and stage `obb` reads them",
                32: ": a segmentation model has 32 rows more, and stage `segment` reads them",
            }
            raise ModelRejected(
                f"model {spec.name!r}: output {tensor.name!r} {list(tensor.shape)} has {count} classes, "
                f"but {source} names {len(names)}{hint.get(count - len(names), '')}"
            )
        names = names or tuple(f"class_{i}" for i in range(count))
    return DetectReader(spec, form, tensor.name, layout, names, head.declared)


def _family_reader(
    spec: ModelSpec, form: InputFormat, layout: Layout, names: tuple[str, ...], source: str, output: str | None
) -> DetectReader:
    head = find_family_head(spec, form, layout, len(names), output)
    if layout == "torchvision" and names and names[0] != _BACKGROUND:
        names = (_BACKGROUND, *names)
    if head.classes is not None:
        if layout == "boxes_logits" and len(names) == head.classes - 1:
            names = (*names, f"class_{head.classes - 1}")  # RF-DETR has one more, which it never learns
        if names and len(names) != head.classes:
            of_coco = (
                ": RF-DETR trained on COCO numbers classes as COCO's annotations do, from 0 to 90: give 91 names"
                if (len(names), head.classes) == (80, 91)
                else ""
            )
            raise ModelRejected(
                f"model {spec.name!r}: its layout {layout}, {FAMILIES[layout].shapes}, has {head.classes} classes, but "
                f"{source} names {len(names)}{of_coco}"
            )
        names = names or tuple(f"class_{i}" for i in range(head.classes))
    first, *more = head.outputs
    return DetectReader(spec, form, first, layout, names, "layout" in spec.parameters, tuple(more))


def detections(detected: Detected, track_ids: NDArray[Any] | None, names: tuple[str, ...]) -> list[Detection]:
    """Objects as the wire has them: pixels to 2 decimals, confidence to 4. `track_ids` `[n]`: -1 means no id."""
    count = len(detected.class_id)
    ids = [-1] * count if track_ids is None else track_ids.tolist()
    written = detected.written or Written(rounded(detected.xyxy, 2), rounded(detected.confidence, 4))
    return [
        Detection(
            class_id,
            names[class_id] if 0 <= class_id < len(names) else f"class_{class_id}",
            confidence,
            Box(*corners),
            track_id if track_id >= 0 else None,
        )
        for class_id, confidence, corners, track_id in zip(
            detected.class_id.tolist(),
            written.confidence,
            written.boxes,
            ids,
            strict=True,
        )
    ]


class DetectStage(PipelineStage):
    """Objects of the classes that a detection model knows."""

    name = "detect"
    title = "Objects"
    description = "Boxes, classes and scores of the objects that the detection model knows."
    runs = "anywhere"
    part = Part(
        "objects",
        list[Detection],
        shapes=(Shape("box", "box", label="{class_name} {confidence} {track_id}"),),
    )
    model_type = DetectModel
    fleet = True

    @classmethod
    def check(cls, settings: Settings) -> None:
        try:
            read_labels(settings.triton.triton_labels)
        except ModelRejected as error:
            raise ConfigurationError(str(error)) from None

    def model(self) -> str | None:
        return self.settings.triton.triton_detect_model

    def reader(self, spec: ModelSpec) -> DetectReader:
        return detect_reader(spec, read_labels(self.settings.triton.triton_labels))

    def describe(self, reader: DetectReader) -> DetectModel:
        return DetectModel(display_name(reader.spec), reader.class_names)

    def write(self, state: FrameState, batch: Batch) -> list[Detection]:
        found = state.found.get("detect")
        if found is None:
            return []
        return detections(found, state.track_ids.get("detect"), batch.model_set.readers["detect"].class_names)


def read_labels(path: Path | None) -> tuple[str, ...] | None:
    """Class names from a file, one a line.

    Raises:
        ModelRejected: the file cannot be read, or is not UTF-8.
    """
    if path is None:
        return None
    try:
        return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        seen = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        reason = f"TRITON_LABELS='{path}': {seen}; want a text file, one class name a line"
        raise ModelRejected(reason) from None
