"""Pose: people and their keypoints from a YOLO pose model's output, in every layout of `layouts`. Pure numpy."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.inference.client import ModelSpec
from app.pipeline.boxes import Floats, Letterbox, points_to_image, to_image
from app.pipeline.layouts import (
    InputFormat,
    Layout,
    Rows,
    Written,
    batch_candidates,
    candidates,
    confirm,
    find_head,
    input_format,
    rounded,
    scoring_rows,
    to_images,
)
from app.pipeline.parameters import require_task
from app.pipeline.stage import PipelineStage, display_name
from app.pipeline.types import Batch, FrameState
from app.protocol.result import Box, many
from app.protocol.stages import Part, Shape

KEYPOINT_NAMES = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
"""COCO's 17 keypoints, in its order (https://cocodataset.org/#keypoints-2020). Left is the person's left."""

SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7),
    (6, 8), (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
"""COCO's limbs as pairs of indices into KEYPOINT_NAMES, counted from 0."""


@many
class Keypoint:
    """One of KEYPOINT_NAMES; position in pixels, `confidence` 0 to 1."""

    name: str
    x: float
    y: float
    confidence: float


@many
class Pose:
    """The keypoints of one person, with the person's box and confidence, 0 to 1."""

    confidence: float
    box: Box
    keypoints: tuple[Keypoint, ...]
    """17, in COCO's order."""
    track_id: int | None = None
    """Track of the person that the pose belongs to; null without one."""


@dataclass(frozen=True, slots=True)
class PoseModel:
    """The pose model that is loaded. `skeleton` has the limbs, as pairs of indices into `keypoints`."""

    name: str
    keypoints: tuple[str, ...] = KEYPOINT_NAMES
    skeleton: tuple[tuple[int, int], ...] = SKELETON


_KEYPOINTS = len(KEYPOINT_NAMES)
_RAW_ROWS = 4 + 1 + 3 * _KEYPOINTS
_COLUMNS = 6 + 3 * _KEYPOINTS
_DIGITS = np.array((100.0, 100.0, 10_000.0))
"""Scales of x, y and confidence, so that one call rounds all three."""
KNOWN = (
    f"[N, {_RAW_ROWS}, A] (layout raw: YOLOv8-pose, YOLO11-pose), [N, K, {_COLUMNS}] (layout end_to_end; or prepared, "
    f"behind a UINT8 image [N, H, W, 3]), FP32 or FP16: one class, COCO's {_KEYPOINTS} keypoints of x, y, confidence"
)


@dataclass(frozen=True, slots=True)
class Posed:
    """n people in one frame, best first."""

    xyxy: Floats
    """`[n, 4]`, frame pixels."""
    confidence: Floats
    keypoints: Floats
    """`[n, 17, 3]`: x, y in frame pixels, confidence."""
    written: Written | None = None
    columns: list[list[list[float]]] | None = None
    """For each person x, y and confidence, 17 each, as the wire has them. Set, with `written`, where a whole
    batch was read at once."""


@dataclass(frozen=True, slots=True)
class PoseReader:
    """Reads the output of one pose model; made by `pose_reader`."""

    spec: ModelSpec
    input: InputFormat
    output_name: str
    layout: Layout
    declared: bool = True
    """Whether the model declares the layout of its head; else `check` must confirm it."""
    class_names: tuple[str, ...] = ("person",)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs that it reads."""
        return (self.output_name,)

    def check(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Checks an answer as `DetectReader.check` does. Raises ModelRejected."""
        if not self.declared:
            confirm(self.spec, outputs[self.output_name][0], self.layout, 1, known=KNOWN)

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
        max_detections: int,
        classes: frozenset[int] | None = None,
    ) -> Posed:
        """The people in image `index` of a batch; see `layouts.candidates`. `classes` is ignored: a pose is a person.

        Keypoints keep their place at any confidence; Ultralytics moves those below 0.5 to 0, 0.
        """
        found = candidates(
            outputs[self.output_name][index],
            self.layout,
            class_count=1,
            confidence=confidence,
            iou=iou,
            classes=None,
            max_detections=max_detections,
        )
        keypoints = _finite(found.extra.reshape(-1, _KEYPOINTS, 3))
        keypoints[..., :2] = points_to_image(keypoints[..., :2], box)
        return Posed(to_image(found.xyxy, box), found.confidence, keypoints)

    def read_all(
        self,
        outputs: Mapping[str, NDArray[Any]],
        boxes: Sequence[Letterbox | None],
        *,
        confidence: float,
        iou: float,
        max_detections: int,
        rows: Rows | None = None,
        classes: frozenset[int] | None = None,
    ) -> list[Posed | None]:
        """`read` for all images of a batch; None for images without a box. `rows`: result of `layouts.scoring_rows`."""
        limits = {"confidence": confidence, "iou": iou}
        found = None
        if self.layout != "raw":
            heads = outputs[self.output_name]
            rows = rows or scoring_rows(heads, confidence)
            found = batch_candidates(heads, rows, iou=iou, suppress=self.layout == "prepared")
        if found is None:
            more: Any = {**limits, "max_detections": max_detections}
            return [None if box is None else self.read(outputs, at, box, **more) for at, box in enumerate(boxes)]
        best, image, bounds = found
        xyxy = to_images(best[:, :4].reshape(-1, 2, 2), image, boxes).reshape(-1, 4)
        keypoints = _finite(best[:, 6:].reshape(-1, _KEYPOINTS, 3))
        keypoints[..., :2] = to_images(keypoints[..., :2], image, boxes)
        scores = best[:, 4]
        corners, confidences, columns = rounded(xyxy, 2), rounded(scores, 4), _columns(keypoints)
        parts = [slice(start, min(end, start + max_detections)) for start, end in pairwise(bounds)]
        return [
            None
            if box is None
            else Posed(xyxy[at], scores[at], keypoints[at], Written(corners[at], confidences[at]), columns[at])
            for box, at in zip(boxes, parts, strict=True)
        ]


def _columns(keypoints: Floats) -> list[list[list[float]]]:
    """`[n, 17, 3]` to x, y and confidence for each person; pixels to 2 decimals, confidences to 4."""
    return (np.rint(keypoints * _DIGITS) / _DIGITS).transpose(0, 2, 1).tolist()  # type: ignore[no-any-return]


def _finite(keypoints: Floats) -> Floats:
    """A copy in which numbers that are not finite are replaced."""
    with np.errstate(invalid="ignore", over="ignore"):
        if not math.isfinite(keypoints.sum()):
            return np.nan_to_num(keypoints)
    return keypoints.copy()


def pose_reader(spec: ModelSpec, *, output: str | None = None) -> PoseReader:
    """Picks the reader for a model from its metadata.

    Args:
        output: name of the output tensor; None takes the one whose shape fits.

    Raises:
        ModelRejected: the layout is unknown.
    """
    require_task(spec, "pose")
    form = input_format(spec)

    def raw(rows: int, columns: int) -> bool:
        return rows == _RAW_ROWS

    head = find_head(spec, form, columns=_COLUMNS, sure=raw, likely=raw, output=output, known=KNOWN)
    return PoseReader(spec, form, head.tensor.name, head.layout, head.declared)


def poses(posed: Posed, track_ids: NDArray[Any] | None) -> list[Pose]:
    """Poses as the wire has them: pixels to 2 decimals, confidences to 4. `track_ids` `[n]`: -1 means no id."""
    ids = [-1] * len(posed.confidence) if track_ids is None else track_ids.tolist()
    written = posed.written or Written(rounded(posed.xyxy, 2), rounded(posed.confidence, 4))
    return [
        Pose(
            confidence,
            Box(*corners),
            tuple(map(Keypoint, KEYPOINT_NAMES, *columns)),
            track_id if track_id >= 0 else None,
        )
        for confidence, corners, columns, track_id in zip(
            written.confidence,
            written.boxes,
            _columns(posed.keypoints) if posed.columns is None else posed.columns,
            ids,
            strict=True,
        )
    ]


class PoseStage(PipelineStage):
    """People and their keypoints."""

    name = "pose"
    title = "Poses"
    description = "Keypoints of people, with a box and a score for each person."
    runs = "anywhere"
    part = Part("poses", list[Pose], shapes=(Shape("points", "keypoints", least=0.3, lines="skeleton"),))
    model_type = PoseModel
    fleet = True

    def model(self) -> str | None:
        return self.settings.triton.triton_pose_model

    def reader(self, spec: ModelSpec) -> PoseReader:
        return pose_reader(spec)

    def describe(self, reader: PoseReader) -> PoseModel:
        return PoseModel(display_name(reader.spec), KEYPOINT_NAMES, SKELETON)

    def write(self, state: FrameState, batch: Batch) -> list[Pose]:
        found = state.found.get("pose")
        return [] if found is None else poses(found, state.track_ids.get("pose"))
