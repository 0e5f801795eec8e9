"""Faces made unrecognisable, and kept so when they are not found for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2

from app.protocol.result import FrameResult, Keypoint, Pose
from app.segments.served import FACE
from app.segments.sheet import Plane, Sheet

HOLD_S = 0.5
"""How long a face stays blurred after it was last seen, seconds of the film."""
CELLS = 6
"""A face is brought down to so many cells across before it is blurred: what is gone is gone."""
_SURE = 0.2
"""Less than for drawing: a blur too many does no harm."""
_GROWN = 1.3
"""Of a box that a detector has drawn tightly around a face."""
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
"""How far a head reaches from its middle, by the distance between two points of it. A head that is turned or bowed
brings some of these closer together and leaves others: the largest counts."""


@dataclass(frozen=True, slots=True)
class Face:
    """Where one is: its middle and how far it reaches, pixels of the frame."""

    x: float
    y: float
    reach: float

    def holds(self, other: Face) -> bool:
        return abs(self.x - other.x) < self.reach and abs(self.y - other.y) < self.reach


class Faces:
    """The faces of one film, in the order of its frames."""

    def __init__(self) -> None:
        self._held: list[tuple[Face, float]] = []

    def hide(self, sheet: Sheet, found: FrameResult | None, at_s: float) -> None:
        """Blurs every face that was found, and those seen a moment ago that were not; everything where `found` is None.

        Nobody knows where the faces are in a frame that was not analysed.
        """
        if found is None:
            blur(sheet, 0, 0, sheet.width, sheet.height)
            return
        seen = [*faces(found)]
        held = [
            (face, until)
            for face, until in self._held
            if at_s < until and not any(one.holds(face) for one in seen)  # else it is there, and has moved
        ]
        self._held = [*held, *((face, at_s + HOLD_S) for face in seen)]
        for face, until in self._held:
            reach = face.reach * (1 + 0.5 * (1 - (until - at_s) / HOLD_S))  # it may have moved meanwhile
            blur(sheet, face.x - reach, face.y - 1.15 * reach, face.x + reach, face.y + 1.15 * reach)


def faces(found: FrameResult) -> Iterator[Face]:
    """Faces that a detector found, and heads by the poses' eyes, nose and ears."""
    for one in found.objects:
        if one.class_name.casefold() == FACE:
            box = one.box
            reach = _GROWN * max(box.x2 - box.x1, box.y2 - box.y1) / 2
            yield Face((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2, reach)
    for pose in found.poses:
        if (face := _head(pose)) is not None:
            yield face


def _head(pose: Pose) -> Face | None:
    sure = {index: point for index, point in enumerate(pose.keypoints[:7]) if point.confidence > _SURE}
    head = [point for index, point in sure.items() if index <= _RIGHT_EAR]
    if not head:
        return None
    reach = max((r * _apart(sure[a], sure[b]) for (a, b), r in _REACH.items() if a in sure and b in sure), default=0.0)
    box = pose.box
    side = max(box.x2 - box.x1, box.y2 - box.y1)
    reach = min(max(reach, 0.06 * side, 4.0), 0.75 * side)
    middle = sum(point.x for point in head) / len(head), sum(point.y for point in head) / len(head)
    return Face(*middle, reach)


def _apart(a: Keypoint, b: Keypoint) -> float:
    return float(((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5)


def blur(sheet: Sheet, x1: float, y1: float, x2: float, y2: float) -> None:
    """Blurs a box for good: down to a few cells, then smooth."""
    y, *colours = sheet.planes
    _blur(y, x1, y1, x2, y2)
    for plane in colours:
        _blur(plane, x1 / 2, y1 / 2, x2 / 2, y2 / 2)


def _blur(plane: Plane, x1: float, y1: float, x2: float, y2: float) -> None:
    height, width = plane.shape
    left, top = max(0, int(x1)), max(0, int(y1))
    part = plane[top : min(height, int(y2) + 1), left : min(width, int(x2) + 1)]
    if part.size == 0:
        return
    rows, columns = part.shape
    cell = max(rows, columns) / CELLS
    small = cv2.resize(part, (max(1, round(columns / cell)), max(1, round(rows / cell))), interpolation=cv2.INTER_AREA)
    part[:] = cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC)
