"""A result drawn over its picture: boxes with labels, skeletons, texts."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from app.protocol.result import SKELETON, FrameResult
from app.segments.sheet import Sheet

Points = NDArray[np.int32]

_SURE = 0.3
"""Keypoints less confident than this are not drawn."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DARK, _LIGHT = 16, 235
"""Brightness of letters."""


@dataclass(frozen=True, slots=True)
class Colour:
    y: int
    u: int
    v: int

    @classmethod
    def rgb(cls, red: int, green: int, blue: int) -> Colour:
        """ITU-R BT.601, limited range."""
        y = 16 + (65.738 * red + 129.057 * green + 25.064 * blue) / 256
        u = 128 + (-37.945 * red - 74.494 * green + 112.439 * blue) / 256
        v = 128 + (112.439 * red - 94.154 * green - 18.285 * blue) / 256
        return cls(round(y), round(u), round(v))


_PALETTE = tuple(
    Colour.rgb(*one)
    for one in (
        (255, 64, 84), (64, 224, 255), (255, 196, 0), (144, 90, 255), (112, 230, 60), (255, 120, 200),
        (0, 150, 255), (255, 140, 40), (0, 210, 160), (210, 210, 90), (190, 120, 255), (255, 90, 40),
    )
)  # fmt: skip
_LIMB, _JOINT, _TEXT = Colour.rgb(0, 230, 118), Colour.rgb(255, 255, 255), Colour.rgb(255, 210, 60)


def annotate(sheet: Sheet, found: FrameResult) -> None:
    """Draws what was found on the picture itself."""
    pen = _Pen(sheet)
    for one in found.objects:
        pen.box(one.box.x1, one.box.y1, one.box.x2, one.box.y2, _colour(one.class_id, one.track_id))
    for pose in found.poses:
        points = [(round(k.x), round(k.y)) if k.confidence > _SURE else None for k in pose.keypoints]
        pen.lines([(a, b) for i, j in SKELETON if (a := points[i]) is not None and (b := points[j]) is not None], _LIMB)
        pen.dots([point for point in points if point is not None], _JOINT)
    for text in found.texts:
        corners = np.array(text.polygon, np.float32).round().astype(np.int32)
        pen.polygon(corners, _TEXT)
        pen.label(text.text, int(corners[:, 0].min()), int(corners[:, 1].max()), _TEXT, below=True)
    for one in found.objects:  # last, where they stay readable
        name = f"{one.class_name} {one.confidence:.2f}" + ("" if one.track_id is None else f" #{one.track_id}")
        pen.label(name, round(one.box.x1), round(one.box.y1), _colour(one.class_id, one.track_id))


def _colour(class_id: int, track: int | None) -> Colour:
    return _PALETTE[(class_id if track is None else track) % len(_PALETTE)]


class _Pen:
    """Draws the same on all planes; those of colour are half as large, which OpenCV's `shift` takes care of."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet
        scale = max(sheet.width, sheet.height) / 1000
        self._thick = max(2, round(3 * scale))
        self._letters = max(0.45, 0.6 * scale)
        self._weight = max(1, round(1.2 * scale))
        self._pad = max(3, round(5 * scale))

    def box(self, x1: float, y1: float, x2: float, y2: float, colour: Colour) -> None:
        start, end = (round(x1), round(y1)), (round(x2), round(y2))
        for plane, value, shift, thick in self._planes(colour):
            cv2.rectangle(plane, start, end, value, thick, cv2.LINE_8, shift)

    def lines(self, ends: list[tuple[tuple[int, int], tuple[int, int]]], colour: Colour) -> None:
        for plane, value, shift, thick in self._planes(colour):
            for start, end in ends:
                cv2.line(plane, start, end, value, thick, cv2.LINE_AA, shift)

    def dots(self, centres: list[tuple[int, int]], colour: Colour) -> None:
        for plane, value, shift, _ in self._planes(colour):
            for centre in centres:
                cv2.circle(plane, centre, self._thick, value, cv2.FILLED, cv2.LINE_AA, shift)

    def polygon(self, corners: Points, colour: Colour) -> None:
        for plane, value, shift, thick in self._planes(colour):
            cv2.polylines(plane, [corners], True, value, thick, cv2.LINE_AA, shift)

    def label(self, text: str, x: int, y: int, colour: Colour, *, below: bool = False) -> None:
        """Text on a filled box that stands on the point, or hangs from it; moved to lie in the picture."""
        (width, height), descent = cv2.getTextSize(text, _FONT, self._letters, self._weight)
        width, tall = width + 2 * self._pad, height + descent + self._pad
        left = max(0, min(x, self._sheet.width - width))
        top = max(0, min(y if below else y - tall, self._sheet.height - tall))
        for plane, value, shift, _ in self._planes(colour):
            cv2.rectangle(plane, (left, top), (left + width, top + tall), value, cv2.FILLED, cv2.LINE_8, shift)
        place = (left + self._pad, top + self._pad // 2 + height)
        shade = _DARK if colour.y > 128 else _LIGHT
        cv2.putText(self._sheet.planes[0], text, place, _FONT, self._letters, shade, self._weight, cv2.LINE_8)

    def _planes(self, colour: Colour) -> list[tuple[NDArray[np.uint8], int, int, int]]:
        """Each plane with the colour's value in it, by how many bits coordinates shrink, and how thick lines are."""
        y, u, v = self._sheet.planes
        half = (self._thick + 1) // 2
        return [(y, colour.y, 0, self._thick), (u, colour.u, 1, half), (v, colour.v, 1, half)]
