"""Converts results to supervision's types, and draws them over their images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from app.pipeline.stages.pose import SKELETON
from app.protocol.result import FrameResult

if TYPE_CHECKING:
    import supervision

_SURE = 0.3
"""Confidence above which a keypoint is drawn."""
_TEXT = (255, 210, 60)
"""Colour of texts. RGB, as all colours here except those passed to supervision, which assumes BGR."""


def to_supervision(frame: FrameResult) -> tuple[supervision.Detections, supervision.KeyPoints]:
    """The result as supervision's types: boxes xyxy float32 [n, 4] and keypoints xy float32 [n, 17, 2], frame pixels.

    `Detections.data["class_name"]` has the names; `tracker_id` is -1 where there is no track yet.
    """
    import supervision

    objects, people = frame.objects, frame.poses
    if objects:
        detections = supervision.Detections(
            xyxy=np.array([[o.box.x1, o.box.y1, o.box.x2, o.box.y2] for o in objects], np.float32),
            confidence=np.array([o.confidence for o in objects], np.float32),
            class_id=np.array([o.class_id for o in objects], int),
            tracker_id=np.array([-1 if o.track_id is None else o.track_id for o in objects], int),
            data={"class_name": np.array([o.class_name for o in objects])},
        )
    else:
        detections = supervision.Detections.empty()
    if not people:
        return detections, supervision.KeyPoints.empty()
    points = np.array([[(k.x, k.y, k.confidence) for k in pose.keypoints] for pose in people], np.float32)
    keypoints = supervision.KeyPoints(
        xy=points[:, :, :2],
        keypoint_confidence=points[:, :, 2],
        class_id=np.zeros(len(people), int),
    )
    return detections, keypoints


def annotate(image: NDArray[np.uint8], frame: FrameResult) -> NDArray[np.uint8]:
    """Draws boxes with labels, skeletons and texts over a copy of the image, RGB uint8 [height, width, 3]."""
    import supervision

    detections, keypoints = to_supervision(frame)
    palette = supervision.ColorPalette.DEFAULT
    scale = max(image.shape[:2]) / 1000
    thickness = max(1, round(3 * scale))
    out: Any = image.copy()
    out = supervision.BoxAnnotator(color=palette, thickness=thickness).annotate(out, detections)
    _draw_skeletons(out, keypoints, thickness)
    # Labels last, so that they stay readable; `smart_position` keeps them inside the image and apart.
    label = {"text_scale": max(0.4, 0.6 * scale), "text_padding": max(3, round(6 * scale)), "smart_position": True}
    names = [_label(found.class_name, found.confidence, found.track_id) for found in frame.objects]
    out = supervision.LabelAnnotator(color=palette, **label).annotate(out, detections, labels=names)
    if frame.texts:
        polygons = [np.array(text.polygon, np.float32) for text in frame.texts]
        cv2.polylines(
            out, [polygon.round().astype(np.int32) for polygon in polygons], True, _TEXT, thickness, cv2.LINE_AA
        )
        boxes = np.array([[*polygon.min(axis=0), *polygon.max(axis=0)] for polygon in polygons], np.float32)
        below = supervision.LabelAnnotator(
            color=supervision.Color(*_TEXT[::-1]),
            text_color=supervision.Color.BLACK,
            text_position=supervision.Position.BOTTOM_LEFT,
            **label,
        )
        places = supervision.Detections(xyxy=boxes, class_id=np.zeros(len(boxes), int))
        out = below.annotate(out, places, labels=[text.text for text in frame.texts])
    drawn: NDArray[np.uint8] = out
    return drawn


def _label(name: str, confidence: float, track: int | None) -> str:
    return f"{name} {confidence:.2f}" + ("" if track is None else f" #{track}")


def _draw_skeletons(image: NDArray[np.uint8], keypoints: supervision.KeyPoints, thickness: int) -> None:
    if keypoints.keypoint_confidence is None:
        return
    for points, confidences in zip(keypoints.xy, keypoints.keypoint_confidence, strict=True):
        for start, end in SKELETON:
            if confidences[start] > _SURE and confidences[end] > _SURE:
                ends = [tuple(int(v) for v in points[index]) for index in (start, end)]
                cv2.line(image, ends[0], ends[1], (0, 230, 118), thickness, cv2.LINE_AA)
        for index, (x, y) in enumerate(points):
            if confidences[index] > _SURE:
                cv2.circle(image, (int(x), int(y)), thickness + 1, (255, 255, 255), -1, cv2.LINE_AA)
