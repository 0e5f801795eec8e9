"""Pose: keypoints of people, or of anything else, from a YOLO pose model's output, in every layout of `layouts`.

A model's string parameters say what its keypoints are: `kpt_shape` (`21x3`: so many of x, y and confidence; `5x2`:
without confidence), `kpt_names` (a JSON array) and `skeleton` (JSON pairs of indices from 0). Without them they are
COCO's 17.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ModelRejected
from app.inference.client import ModelSpec
from app.pipeline.boxes import Floats, Letterbox, points_to_image, to_image
from app.pipeline.layouts import (
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
    rounded,
    scoring_rows,
    to_images,
)
from app.pipeline.parameters import class_name, class_names, require_task
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
PEOPLE = ("person",)
"""The class of a pose model that has none but people."""


@many
class Keypoint:
    """One keypoint; position in pixels, `confidence` 0 to 1, and 1 where the model gives none."""

    name: str
    x: float
    y: float
    confidence: float


@many
class Pose:
    """The keypoints of one person or thing, with its box and confidence, 0 to 1."""

    confidence: float
    box: Box
    keypoints: tuple[Keypoint, ...]
    """In the order of the model's `keypoints`: COCO's 17, unless the model has others."""
    track_id: int | None = None
    """Track of the person or thing that the pose belongs to; null without one."""


@many
class ClassPose(Pose):
    """A pose of a model that knows other classes than one of people. Other poses do not have the two fields."""

    _: KW_ONLY
    class_id: int
    class_name: str


@dataclass(frozen=True, slots=True)
class PoseModel:
    """The pose model that is loaded. `skeleton` has the limbs, as pairs of indices into `keypoints`."""

    name: str
    keypoints: tuple[str, ...] = KEYPOINT_NAMES
    skeleton: tuple[tuple[int, int], ...] = SKELETON
    classes: tuple[str, ...] = PEOPLE


_DIGITS = np.array((100.0, 100.0, 10_000.0))
"""Scales of x, y and confidence, so that one call rounds all three."""
MOST_KEYPOINTS = 500


def known(keypoints: int, numbers: int, classes: int) -> str:
    """The layouts of a head with so many keypoints of so many numbers, for messages."""
    extra = keypoints * numbers
    return (
        f"[N, {4 + classes + extra}, A] (layout raw: YOLOv8-pose, YOLO11-pose), [N, K, {6 + extra}] (layout "
        "end_to_end; or prepared, behind a UINT8 image [N, H, W, 3]), FP32 or FP16: "
        f"{classes} {'class' if classes == 1 else 'classes'}, {keypoints} keypoints of "
        f"{'x, y, confidence' if numbers == 3 else 'x, y'}; for others set the parameter kpt_shape, such as 21x3"
    )


@dataclass(frozen=True, slots=True)
class Posed:
    """n people or things in one frame, best first."""

    xyxy: Floats
    """`[n, 4]`, frame pixels."""
    confidence: Floats
    keypoints: Floats
    """`[n, keypoints, 3]`: x, y in frame pixels, confidence."""
    written: Written | None = None
    columns: list[list[list[float]]] | None = None
    """For each pose x, y and confidence of all keypoints, as the wire has them. Set, with `written`, where a whole
    batch was read at once."""


@dataclass(frozen=True, slots=True)
class ClassPosed(Posed):
    """Poses of a model that knows other classes than one of people."""

    _: KW_ONLY
    class_id: Classes


@dataclass(frozen=True, slots=True)
class PoseReader:
    """Reads the output of one pose model; made by `pose_reader`."""

    spec: ModelSpec
    input: InputFormat
    output_name: str
    layout: Layout
    declared: bool = True
    """Whether the model declares the layout of its head; else `check` must confirm it."""
    class_names: tuple[str, ...] = PEOPLE
    keypoint_names: tuple[str, ...] = KEYPOINT_NAMES
    skeleton: tuple[tuple[int, int], ...] = SKELETON
    numbers: int = 3
    """Of each keypoint: x and y, or also its confidence."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs that it reads."""
        return (self.output_name,)

    def check(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Checks an answer as `DetectReader.check` does. Raises ModelRejected."""
        if not self.declared:
            count = len(self.class_names)
            shape = known(len(self.keypoint_names), self.numbers, count)
            confirm(self.spec, outputs[self.output_name][0], self.layout, count, known=shape)

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
        """The poses in image `index` of a batch; see `layouts.candidates`. `classes` is ignored: it is about objects.

        Keypoints keep their place at any confidence; Ultralytics moves those below 0.5 to 0, 0.
        """
        found = candidates(
            outputs[self.output_name][index],
            self.layout,
            class_count=len(self.class_names),
            confidence=confidence,
            iou=iou,
            classes=None,
            max_detections=max_detections,
        )
        keypoints = self._keypoints(found.extra)
        keypoints[..., :2] = points_to_image(keypoints[..., :2], box)
        xyxy = to_image(found.xyxy, box)
        if self.class_names == PEOPLE:
            return Posed(xyxy, found.confidence, keypoints)
        return ClassPosed(xyxy, found.confidence, keypoints, class_id=found.class_id)

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
        if self.layout != "raw" and self.class_names == PEOPLE:
            heads = outputs[self.output_name]
            rows = rows or scoring_rows(heads, confidence)
            found = batch_candidates(heads, rows, iou=iou, suppress=self.layout == "prepared")
        if found is None:
            more: Any = {**limits, "max_detections": max_detections}
            return [None if box is None else self.read(outputs, at, box, **more) for at, box in enumerate(boxes)]
        best, image, bounds = found
        xyxy = to_images(best[:, :4].reshape(-1, 2, 2), image, boxes).reshape(-1, 4)
        keypoints = self._keypoints(best[:, 6:])
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

    def _keypoints(self, numbers: Floats) -> Floats:
        """A copy of `[n, keypoints * numbers]` as `[n, keypoints, 3]`. Numbers that are not finite are replaced."""
        points = numbers.reshape(-1, len(self.keypoint_names), self.numbers)
        if self.numbers == 2:
            points = np.concatenate((points, np.ones_like(points[..., :1])), axis=2)
        with np.errstate(invalid="ignore", over="ignore"):
            if not math.isfinite(points.sum()):
                return np.nan_to_num(points, posinf=1e9, neginf=-1e9)
        return points.copy()


def _columns(keypoints: Floats) -> list[list[list[float]]]:
    """`[n, keypoints, 3]` to x, y and confidence for each pose; pixels to 2 decimals, confidences to 4."""
    return (np.rint(keypoints * _DIGITS) / _DIGITS).transpose(0, 2, 1).tolist()  # type: ignore[no-any-return]


def pose_reader(spec: ModelSpec, *, output: str | None = None) -> PoseReader:
    """Picks the reader for a model from its metadata.

    Args:
        output: name of the output tensor; None takes the one whose shape fits.

    Raises:
        ModelRejected: the layout is unknown, or a parameter about keypoints or classes does not fit it.
    """
    require_task(spec, "pose")
    form = input_format(spec)
    count, numbers = _shape(spec)
    keypoint_names = _keypoint_names(spec, count)
    ours = keypoint_names == KEYPOINT_NAMES
    extra = count * numbers
    # Only where the model says that it is for poses: the names may be those of the ensemble that it is in.
    names = class_names(spec) if spec.parameters.get("task") == "pose" else ()
    cells = anchors(form)

    def sure(rows: int, columns: int) -> bool:
        return rows == 4 + (len(names) or 1) + extra

    def likely(rows: int, columns: int) -> bool:
        enough = "kpt_shape" in spec.parameters and rows >= 5 + extra
        return sure(rows, columns) or (enough and (columns < 0 or columns == cells or columns > rows))

    head = find_head(
        spec,
        form,
        columns=6 + extra,
        sure=sure,
        likely=likely,
        output=output,
        known=known(count, numbers, len(names) or 1),
    )
    classes = head.tensor.shape[1] - 4 - extra if head.layout == "raw" else len(names) or 1
    if names and len(names) != classes:
        raise ModelRejected(
            f"model {spec.name!r}: output {head.tensor.name!r} {list(head.tensor.shape)} has {classes} classes beside "
            f"{count} keypoints of {numbers} numbers, but class_names has {len(names)}"
        )
    names = names or (PEOPLE if ours and classes == 1 else tuple(f"class_{i}" for i in range(classes)))
    skeleton = _skeleton(spec, count, SKELETON if ours else ())
    return PoseReader(
        spec, form, head.tensor.name, head.layout, head.declared, names, keypoint_names, skeleton, numbers
    )


def _shape(spec: ModelSpec) -> tuple[int, int]:
    """How many keypoints there are, and of how many numbers: the parameter `kpt_shape`, else COCO's."""
    text = spec.parameters.get("kpt_shape")
    if text is None:
        return len(KEYPOINT_NAMES), 3
    count, _, numbers = text.partition("x")
    if not (count.isdecimal() and 1 <= int(count) <= MOST_KEYPOINTS and numbers in ("2", "3")):
        raise ModelRejected(
            f"model {spec.name!r}: parameter kpt_shape={text!r}; want the number of keypoints, up to {MOST_KEYPOINTS}, "
            "and 3 numbers of each (x, y, confidence) or 2, such as 17x3"
        )
    return int(count), int(numbers)


def _keypoint_names(spec: ModelSpec, count: int) -> tuple[str, ...]:
    """The parameter `kpt_names`; without it COCO's names for 17 keypoints, else `keypoint_0` and so on."""
    text = spec.parameters.get("kpt_names")
    if text is None:
        return KEYPOINT_NAMES if count == len(KEYPOINT_NAMES) else tuple(f"keypoint_{i}" for i in range(count))
    names = _json(text)
    if not (isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)):
        raise ModelRejected(
            f"model {spec.name!r}: parameter kpt_names={text[:60]!r}; want a JSON array of {count} names, as many as "
            "the model has keypoints"
        )
    return tuple(names)


def _skeleton(spec: ModelSpec, count: int, default: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    text = spec.parameters.get("skeleton")
    if text is None:
        return default
    pairs = _json(text)
    if not (isinstance(pairs, list) and all(_is_pair(pair, count) for pair in pairs)):
        raise ModelRejected(
            f"model {spec.name!r}: parameter skeleton={text[:60]!r}; want a JSON array of pairs of keypoints, counted "
            f"from 0 to {count - 1}, such as [[0, 1], [1, 2]]"
        )
    return tuple((start, end) for start, end in pairs)


def _is_pair(pair: Any, count: int) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(end) is int and 0 <= end < count for end in pair)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def is_human(pose: Pose) -> bool:
    """Whether the keypoints are COCO's 17, so that their places in the list mean parts of a person."""
    return len(pose.keypoints) == len(KEYPOINT_NAMES) and pose.keypoints[0].name == KEYPOINT_NAMES[0]


def poses(
    posed: Posed,
    track_ids: NDArray[Any] | None,
    keypoint_names: tuple[str, ...] = KEYPOINT_NAMES,
    names: tuple[str, ...] = PEOPLE,
) -> list[Pose]:
    """Poses as the wire has them: pixels to 2 decimals, confidences to 4. `track_ids` `[n]`: -1 means no id."""
    ids = [-1] * len(posed.confidence) if track_ids is None else track_ids.tolist()
    written = posed.written or Written(rounded(posed.xyxy, 2), rounded(posed.confidence, 4))
    made = [
        Pose(
            confidence,
            Box(*corners),
            tuple(map(Keypoint, keypoint_names, *columns)),
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
    if not isinstance(posed, ClassPosed):
        return made
    return [
        ClassPose(**vars(pose), class_id=class_id, class_name=class_name(names, class_id))
        for pose, class_id in zip(made, posed.class_id.tolist(), strict=True)
    ]


class PoseStage(PipelineStage):
    """People and their keypoints."""

    name = "pose"
    title = "Poses"
    description = "Keypoints of people, with a box and a score for each; or of what else the pose model knows."
    runs = "anywhere"
    part = Part("poses", list[ClassPose | Pose], shapes=(Shape("points", "keypoints", least=0.3, lines="skeleton"),))
    model_type = PoseModel
    fleet = True

    def model(self) -> str | None:
        return self.settings.triton.triton_pose_model

    def reader(self, spec: ModelSpec) -> PoseReader:
        return pose_reader(spec)

    def describe(self, reader: PoseReader) -> PoseModel:
        return PoseModel(display_name(reader.spec), reader.keypoint_names, reader.skeleton, reader.class_names)

    def write(self, state: FrameState, batch: Batch) -> list[Pose]:
        found = state.found.get("pose")
        if found is None:
            return []
        reader = batch.model_set.readers["pose"]
        return poses(found, state.track_ids.get("pose"), reader.keypoint_names, reader.class_names)
