"""Blurs faces beyond recognition, also shortly before and after the models find them.

Faces are the boxes of the detector's class `face`, the heads of poses, and, for people with neither, the top of their
box.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from app.pipeline.boxes import Floats, iou
from app.pipeline.stages.pose import Keypoint, Pose, is_human
from app.protocol.result import Box, FrameResult
from app.segments.video.writer import Plane, YuvFrame

FACE_CLASS = "face"
"""The class whose boxes are faces. Upper and lower case do not matter."""
HOLD_S = 0.5
"""Seconds of the video for which a face is blurred before it is first found and after it is last found."""
MAX_HELD_PIXELS = 64_000_000
"""Pixels of all held frames together, 1.5 bytes each: half a second of 1920x1080 at 60 frames per second; of larger
frames less time."""
CELLS = 6
"""A face is scaled down to this many cells across before it is blurred, so that the lost detail cannot be restored."""
_MIN_CONFIDENCE = 0.2
"""Keypoints above this confidence are used. It is lower than for drawing, because an unneeded blur does no harm."""
_DETECTOR_MARGIN = 1.3
"""Factor by which a detected face's box grows, because detectors draw it tightly."""
_ASPECT = 1.15
"""A face's height divided by its width."""
_MAX_SIZE_RATIO = 2.0
"""Two faces whose sizes differ by more than this factor belong to different people."""
_MIN_IOU = 0.3
"""Two boxes belong to the same face or the same person only if their IoU is above this."""
_NOSE, _LEFT_EYE, _RIGHT_EYE, _LEFT_EAR, _RIGHT_EAR, _LEFT_SHOULDER, _RIGHT_SHOULDER = range(7)
_REACH = {
    (_LEFT_EAR, _RIGHT_EAR): 0.9,
    (_LEFT_EYE, _RIGHT_EYE): 2.1,
    (_NOSE, _LEFT_EAR): 1.2,
    (_NOSE, _RIGHT_EAR): 1.2,
    (_LEFT_EYE, _LEFT_EAR): 1.7,
    (_RIGHT_EYE, _RIGHT_EAR): 1.7,
    (_NOSE, _LEFT_EYE): 2.8,
    (_NOSE, _RIGHT_EYE): 2.8,
    (_LEFT_SHOULDER, _RIGHT_SHOULDER): 0.33,
}
"""The head's radius divided by the distance between two keypoints. Turning or bowing a head shortens only some of these
distances, so the largest radius is used."""


class FaceBlur:
    """Blurs the faces of one video, whose frames are added in order.

    A newly found face was probably visible before the models found it. Frames are therefore held for HOLD_S, so that
    the face can be blurred in them, too.

    Args:
        max_pixels: limit of all held frames together, pixels. Beyond it the oldest frame is finished early.
    """

    def __init__(self, max_pixels: int = MAX_HELD_PIXELS) -> None:
        self._max_pixels = max_pixels
        self._faces: list[tuple[Face, float]] = []
        """Each face at its last place, and the time at which it was found there, seconds of the video."""
        self._held: deque[tuple[float, YuvFrame]] = deque()
        self._pixels = 0

    def add(self, frame: YuvFrame, result: FrameResult | None, at_s: float) -> list[YuvFrame]:
        """Blurs the next frame's faces and those found shortly before; blurs its new faces in the held frames, too.

        Args:
            result: None if the frame could not be analysed. Then the whole frame is blurred, because its faces are
                unknown.
            at_s: the frame's time, seconds of the video.

        Returns:
            The frames that are finished now, in order. Every frame is returned once, by `add` or by `flush`.
        """
        self._held.append((at_s, frame))
        self._pixels += frame.width * frame.height
        if result is None:
            _blur_box(frame, 0, 0, frame.width, frame.height)
        else:
            self._follow(_faces(result), at_s)
            for face, found_at in self._faces:
                _blur_face(frame, face, at_s - found_at)
        return self._finished(at_s)

    def flush(self) -> list[YuvFrame]:
        """Returns the frames that are still held, in order. To be called once, after the last frame."""
        left = [frame for _, frame in self._held]
        self._held.clear()
        return left

    def _follow(self, found: list[Face], at_s: float) -> None:
        """Updates the known faces. A known face is blurred at its new place in the held frames since it was last found,
        a new face in those of the last HOLD_S.
        """
        known = [(face, found_at) for face, found_at in self._faces if at_s - found_at < HOLD_S]
        matches = _matches([face for face, _ in known], found)
        for face, match in zip(found, matches, strict=True):
            since = at_s - HOLD_S if match is None else known[match][1]
            for held_at, frame in self._held:
                if since < held_at < at_s:
                    _blur_face(frame, face, at_s - held_at)
        matched = set(matches)
        missed = [entry for index, entry in enumerate(known) if index not in matched]
        self._faces = [*missed, *((face, at_s) for face in found)]

    def _finished(self, at_s: float) -> list[YuvFrame]:
        finished = []
        while self._held and (self._held[0][0] <= at_s - HOLD_S or self._pixels > self._max_pixels):
            _, frame = self._held.popleft()
            self._pixels -= frame.width * frame.height
            finished.append(frame)
        return finished


# --- blurring ---


def _blur_face(frame: YuvFrame, face: Face, apart_s: float) -> None:
    """Blurs a face that was found `apart_s` seconds before or after; the box grows, because the face may have moved."""
    _blur_box(frame, *face.box(1 + 0.5 * apart_s / HOLD_S))


def _blur_box(frame: YuvFrame, x1: float, y1: float, x2: float, y2: float) -> None:
    """Scales a box down to a few cells and up again, in all planes."""
    y, *colours = frame.planes
    _blur_plane(y, x1, y1, x2, y2)
    for plane in colours:
        _blur_plane(plane, x1 / 2, y1 / 2, x2 / 2, y2 / 2)


def _blur_plane(plane: Plane, x1: float, y1: float, x2: float, y2: float) -> None:
    height, width = plane.shape
    left, top = max(0, int(x1)), max(0, int(y1))
    part = plane[top : min(height, int(y2) + 1), left : min(width, int(x2) + 1)]
    if part.size == 0:
        return
    rows, columns = part.shape
    cell = max(rows, columns) / CELLS
    small = cv2.resize(part, (max(1, round(columns / cell)), max(1, round(rows / cell))), interpolation=cv2.INTER_AREA)
    part[:] = cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC)


# --- where the faces are ---


@dataclass(frozen=True, slots=True)
class Face:
    """A face's centre and radius, pixels of the frame."""

    x: float
    y: float
    radius: float

    def box(self, scale: float = 1.0) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        across, down = scale * self.radius, scale * _ASPECT * self.radius
        return self.x - across, self.y - down, self.x + across, self.y + down


def _faces(result: FrameResult) -> list[Face]:
    """All faces of a frame.

    The face of a person or pose without a known face is the top of the box: as high as the box is wide, and at least a
    third of its height.
    """
    detected = [_from_box(found.box) for found in result.objects if found.class_name.casefold() == FACE_CLASS]
    heads = [(pose, head) for pose in result.poses if (head := _head(pose)) is not None]
    people = [found.box for found in result.objects if found.class_name.casefold() == "person"]
    people += [pose.box for pose in result.poses if is_human(pose) and _head(pose) is None]
    tops = [_top(box) for box in _faceless(people, heads, detected)]
    return [*detected, *(head for _, head in heads), *tops]


def _from_box(box: Box) -> Face:
    radius = _DETECTOR_MARGIN * max(box.x2 - box.x1, box.y2 - box.y1) / 2
    return Face((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2, radius)


def _top(box: Box) -> Face:
    width, height = box.x2 - box.x1, box.y2 - box.y1
    radius = max(width, height / 3) / 2
    return Face((box.x1 + box.x2) / 2, box.y1 + radius, radius)


def _head(pose: Pose) -> Face | None:
    """The face of a pose; None if neither nose, eyes nor ears are known."""
    if not is_human(pose):
        return None
    known = {index: point for index, point in enumerate(pose.keypoints[:7]) if point.confidence > _MIN_CONFIDENCE}
    head = [point for index, point in known.items() if index <= _RIGHT_EAR]
    if not head:
        return None
    radii = (factor * _distance(known[a], known[b]) for (a, b), factor in _REACH.items() if a in known and b in known)
    box = pose.box
    side = max(box.x2 - box.x1, box.y2 - box.y1)
    radius = min(max(max(radii, default=0.0), 0.06 * side, 4.0), 0.75 * side)
    return Face(sum(point.x for point in head) / len(head), sum(point.y for point in head) / len(head), radius)


def _faceless(people: list[Box], heads: list[tuple[Pose, Face]], detected: list[Face]) -> list[Box]:
    """The people who have neither a pose with a head nor a detected face of their own."""
    if not people:
        return []
    of_pose = _pairs(_over(iou(_boxes(people), _boxes([pose.box for pose, _ in heads])), _MIN_IOU))
    with_head = {person for person, _ in of_pose}
    # A detected face that matches a pose's head belongs to that person, so it cannot be the face of another one.
    used = {face for _, face in _pairs(_similarity([heads[pose][1] for _, pose in of_pose], detected))}
    left = [index for index in range(len(people)) if index not in with_head]
    free = [face for index, face in enumerate(detected) if index not in used]
    with_face = {left[person] for person, _ in _pairs(_closeness([people[index] for index in left], free))}
    return [people[index] for index in left if index not in with_face]


def _matches(before: Sequence[Face], now: Sequence[Face]) -> list[int | None]:
    """For each face of `now` the index of the same face in `before`, which has a similar size and overlaps; else None.

    Each face is matched at most once, so that a face that is missing now is not matched to a neighbouring one.
    """
    if not before or not now:
        return [None] * len(now)
    matched = dict(_pairs(_similarity(now, before)))
    return [matched.get(index) for index in range(len(now))]


def _similarity(some: Sequence[Face], others: Sequence[Face]) -> Floats:
    """IoU, float32 `[some, others]`; 0 for faces that cannot be the same."""
    if not some or not others:
        return np.zeros((len(some), len(others)), np.float32)
    overlap = iou(
        np.array([face.box() for face in some], np.float32), np.array([face.box() for face in others], np.float32)
    )
    radius, other = np.array([face.radius for face in some])[:, None], np.array([face.radius for face in others])
    alike = (radius <= _MAX_SIZE_RATIO * other) & (other <= _MAX_SIZE_RATIO * radius)
    return np.where(alike, _over(overlap, _MIN_IOU), np.float32(0))


def _closeness(people: Sequence[Box], faces: Sequence[Face]) -> Floats:
    """Nearness of each face to the top centre of each person's box, float32 `[people, faces]`: 1 there, 0 outside the
    upper half.
    """
    closeness = np.zeros((len(people), len(faces)), np.float32)
    for row, box in enumerate(people):
        width, height = max(box.x2 - box.x1, 1.0), max(box.y2 - box.y1, 1.0)
        for column, face in enumerate(faces):
            aside, down = abs(face.x - (box.x1 + box.x2) / 2) / width, (face.y - box.y1) / height
            if aside <= 0.5 and 0 <= down <= 0.5 and face.radius <= _DETECTOR_MARGIN * width:
                closeness[row, column] = 1 - aside - down / 2
    return closeness


def _pairs(scores: Floats) -> list[tuple[int, int]]:
    """Matches rows and columns one to one, largest scores first; pairs with a score of 0 are not matched.

    Returns:
        (row, column) of each match.
    """
    rows, columns = np.nonzero(scores > 0)
    pairs: list[tuple[int, int]] = []
    used_rows, used_columns = set[int](), set[int]()
    for position in np.argsort(-scores[rows, columns], kind="stable").tolist():
        row, column = int(rows[position]), int(columns[position])
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return pairs


def _over(scores: NDArray[np.float32], least: float) -> Floats:
    """The scores, 0 for those that are not larger than `least`."""
    return np.where(scores > least, scores, np.float32(0))


def _boxes(boxes: Sequence[Box]) -> Floats:
    return np.array([(box.x1, box.y1, box.x2, box.y2) for box in boxes], np.float32).reshape(-1, 4)


def _distance(a: Keypoint, b: Keypoint) -> float:
    return float(((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5)
