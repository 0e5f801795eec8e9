"""From COCO keypoints to a person's posture in words: plain geometry, no model. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from app.protocol.result import KEYPOINT_NAMES, Box, Keypoint, Pose

_SURE = 0.5
"""Confidence from which a keypoint counts."""
_UPRIGHT_DEG = 30.0
_FLAT_DEG = 60.0
"""Angle of the trunk to the vertical: up to the first it is upright, from the second it is flat."""
_THIGH = 0.5
"""Drop from hip to knee, trunk lengths: less, and the legs are bent at the hip."""
_LOW = 0.6
"""Drop from hip to ankle, trunk lengths: less, and the person is down on the heels or the floor."""
_ABOVE_SHOULDER = 0.5
"""Drop from wrist to shoulder, trunk lengths, of a raised arm where the face is not seen."""

_FACE = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
_AT = {name: index for index, name in enumerate(KEYPOINT_NAMES)}
_FACE_AT = tuple(_AT[name] for name in _FACE)


class _Point(NamedTuple):
    x: float
    y: float


def posture(pose: Pose) -> str | None:
    """`standing`, `sitting, one arm raised`, `lying`, ...; None where the keypoints do not say.

    Keypoints under 0.5 of confidence are not used. The trunk runs from the middle of the shoulders to the middle of the
    hips; its length is the measure of everything else, its angle is taken to the vertical.

    - upright (up to 30 degrees): `standing` when the knees are at least half a trunk lower than the hips; else
      `crouching` when the ankles are seen and less than 0.6 trunks lower than the hips; else `sitting`.
      Without knees nothing is said: a person behind a desk may do either.
    - flat (from 60 degrees): `bending over` when the legs go down (hips to ankles, or knees, within 45 degrees of the
      vertical), `lying` when they do not; without legs `lying` when the box is wider than high.
    - in between: `leaning`.
    - `arms raised`, `one arm raised`: wrists above the whole face; where no face is seen, at least half a trunk above
      the shoulders. A hand at the ear is no raised arm. Not said of a person who lies.
    """
    points = pose.keypoints
    shoulders = _middle(points, "shoulder")
    hips = _middle(points, "hip")
    body = None if shoulders is None or hips is None else _body(points, shoulders, hips, pose.box)
    if body == "lying":
        return body
    arms = _arms(points, shoulders, hips)
    return ", ".join(word for word in (body, arms) if word) or None


def _body(points: tuple[Keypoint, ...], shoulders: _Point, hips: _Point, box: Box) -> str | None:
    trunk = math.dist(shoulders, hips)
    if trunk == 0:
        return None
    lean = _lean(shoulders, hips)
    knees, ankles = _middle(points, "knee"), _middle(points, "ankle")
    if lean > _FLAT_DEG:
        feet = ankles or knees
        if feet is None:
            return "lying" if box.x2 - box.x1 > box.y2 - box.y1 else None
        return "bending over" if feet.y > hips.y and _lean(hips, feet) < 45 else "lying"
    if lean > _UPRIGHT_DEG:
        return "leaning"
    if knees is None:
        return None
    if knees.y - hips.y >= _THIGH * trunk:
        return "standing"
    return "crouching" if ankles is not None and ankles.y - hips.y < _LOW * trunk else "sitting"


def _arms(points: tuple[Keypoint, ...], shoulders: _Point | None, hips: _Point | None) -> str | None:
    face = [points[index].y for index in _FACE_AT if points[index].confidence >= _SURE]
    if face:
        line = min(face)
    elif shoulders is not None and hips is not None:
        line = shoulders.y - _ABOVE_SHOULDER * math.dist(shoulders, hips)
    else:
        return None
    wrists = (points[_AT["left_wrist"]], points[_AT["right_wrist"]])
    raised = sum(wrist.confidence >= _SURE and wrist.y < line for wrist in wrists)
    return (None, "one arm raised", "arms raised")[raised]


def _middle(points: tuple[Keypoint, ...], part: str) -> _Point | None:
    """Of left and right; one of them where the other is not seen."""
    left, right = points[_AT[f"left_{part}"]], points[_AT[f"right_{part}"]]
    if left.confidence < _SURE:
        return _Point(right.x, right.y) if right.confidence >= _SURE else None
    if right.confidence < _SURE:
        return _Point(left.x, left.y)
    return _Point((left.x + right.x) / 2, (left.y + right.y) / 2)


def _lean(top: _Point, bottom: _Point) -> float:
    """Degrees between the line and the vertical, 0 to 90."""
    return math.degrees(math.atan2(abs(top.x - bottom.x), abs(top.y - bottom.y)))
