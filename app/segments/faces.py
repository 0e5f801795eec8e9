"""Where the faces of a frame are: by the detector, by the poses' heads, and where a person's must be whose head nobody
found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.pipeline.boxes import Floats, iou
from app.protocol.result import Box, FrameResult, Keypoint, Pose
from app.segments.served import FACE

_SURE = 0.2
"""Less than for drawing: a blur too many does no harm."""
_GROWN = 1.3
"""Of a box that a detector has drawn tightly around a face."""
_TALL = 1.15
"""A face's height by its width."""
_ALIKE = 2.0
"""Faces of which one is larger than the other by more than this are of two persons."""
_SAME = 0.3
"""Least overlap of two boxes that are of the same thing."""
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

    def box(self, grown: float = 1.0) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        across, down = grown * self.reach, grown * _TALL * self.reach
        return self.x - across, self.y - down, self.x + across, self.y + down


def followed(before: Sequence[Face], now: Sequence[Face]) -> list[int | None]:
    """For each face of now, which of those before it is the same one: of like size, and where that was.

    Each is one alone: a face that was not found must not be taken for the one beside it that was.
    """
    if not before or not now:
        return [None] * len(now)
    of = dict(_pairs(_likeness(now, before)))
    return [of.get(new) for new in range(len(now))]


def faces(found: FrameResult) -> list[Face]:
    """All of a frame. Of a person, or a pose, whose face nobody found it is the top of the box: as high as the box is
    wide, and a third of it at least.
    """
    detected = [_of_box(one.box) for one in found.objects if one.class_name.casefold() == FACE]
    heads = [(pose, head) for pose in found.poses if (head := _head(pose)) is not None]
    persons = [one.box for one in found.objects if one.class_name.casefold() == "person"]
    persons += [pose.box for pose in found.poses if _head(pose) is None]
    tops = [_top(box) for box in _faceless(persons, heads, detected)]
    return [*detected, *(head for _, head in heads), *tops]


def _of_box(box: Box) -> Face:
    reach = _GROWN * max(box.x2 - box.x1, box.y2 - box.y1) / 2
    return Face((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2, reach)


def _top(box: Box) -> Face:
    width, height = box.x2 - box.x1, box.y2 - box.y1
    reach = max(width, height / 3) / 2
    return Face((box.x1 + box.x2) / 2, box.y1 + reach, reach)


def _faceless(persons: list[Box], heads: list[tuple[Pose, Face]], detected: list[Face]) -> list[Box]:
    """The persons who have neither a pose with a head nor a detected face of their own."""
    if not persons:
        return []
    of_pose = _pairs(_above(iou(_boxes(persons), _boxes([pose.box for pose, _ in heads])), _SAME))
    with_head = {person for person, _ in of_pose}
    # A face and a head of the same person are one: another person's face is still to be found.
    used = {face for _, face in _pairs(_likeness([heads[pose][1] for _, pose in of_pose], detected))}
    left = [index for index in range(len(persons)) if index not in with_head]
    free = [face for index, face in enumerate(detected) if index not in used]
    with_face = {left[person] for person, _ in _pairs(_closeness([persons[index] for index in left], free))}
    return [persons[index] for index in left if index not in with_face]


def _likeness(some: Sequence[Face], others: Sequence[Face]) -> Floats:
    """Overlap `[some, others]`; 0 of those that cannot be the same."""
    if not some or not others:
        return np.zeros((len(some), len(others)), np.float32)
    overlap = iou(
        np.array([one.box() for one in some], np.float32), np.array([one.box() for one in others], np.float32)
    )
    reach, other = np.array([one.reach for one in some])[:, None], np.array([one.reach for one in others])
    alike = (reach <= _ALIKE * other) & (other <= _ALIKE * reach)
    return np.where(alike, _above(overlap, _SAME), np.float32(0))


def _closeness(persons: Sequence[Box], found: Sequence[Face]) -> Floats:
    """How near each face `[persons, faces]` is to the middle of a person's top, 1 at it; 0 outside the upper half."""
    close = np.zeros((len(persons), len(found)), np.float32)
    for row, box in enumerate(persons):
        width, height = max(box.x2 - box.x1, 1.0), max(box.y2 - box.y1, 1.0)
        for column, face in enumerate(found):
            aside, down = abs(face.x - (box.x1 + box.x2) / 2) / width, (face.y - box.y1) / height
            if aside <= 0.5 and 0 <= down <= 0.5 and face.reach <= _GROWN * width:
                close[row, column] = 1 - aside - down / 2
    return close


def _pairs(scores: Floats) -> list[tuple[int, int]]:
    """Rows and columns that belong together, one to one, the largest score first; none whose score is 0."""
    rows, columns = np.nonzero(scores > 0)
    pairs: list[tuple[int, int]] = []
    taken: tuple[set[int], set[int]] = set(), set()
    for place in np.argsort(-scores[rows, columns], kind="stable").tolist():
        row, column = int(rows[place]), int(columns[place])
        if row not in taken[0] and column not in taken[1]:
            taken[0].add(row)
            taken[1].add(column)
            pairs.append((row, column))
    return pairs


def _above(scores: NDArray[np.float32], least: float) -> Floats:
    return np.where(scores > least, scores, np.float32(0))


def _boxes(boxes: Sequence[Box]) -> Floats:
    return np.array([(one.x1, one.y1, one.x2, one.y2) for one in boxes], np.float32).reshape(-1, 4)


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
