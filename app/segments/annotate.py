"""Draws a result on its frame: boxes with labels, skeletons, texts."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from app.pipeline.stages.pose import SKELETON
from app.protocol.result import FrameResult
from app.segments.video.writer import YuvFrame

Points = NDArray[np.int32]

_MIN_CONFIDENCE = 0.3
"""Only keypoints with a confidence above this are drawn."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DARK, _LIGHT = 16, 235
"""Luma of a label's letters, 0 to 255: dark letters on a light box, light ones on a dark box."""


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour as its values in the Y, U and V planes, 0 to 255."""

    y: int
    u: int
    v: int

    @classmethod
    def rgb(cls, red: int, green: int, blue: int) -> Colour:
        """Converts from RGB, 0 to 255 each, by ITU-R BT.601, limited range."""
        y = 16 + (65.738 * red + 129.057 * green + 25.064 * blue) / 256
        u = 128 + (-37.945 * red - 74.494 * green + 112.439 * blue) / 256
        v = 128 + (112.439 * red - 94.154 * green - 18.285 * blue) / 256
        return cls(round(y), round(u), round(v))


_PALETTE = tuple(
    Colour.rgb(*rgb)
    for rgb in (
        (255, 64, 84), (64, 224, 255), (255, 196, 0), (144, 90, 255), (112, 230, 60), (255, 120, 200),
        (0, 150, 255), (255, 140, 40), (0, 210, 160), (210, 210, 90), (190, 120, 255), (255, 90, 40),
    )
)  # fmt: skip
_LIMB, _JOINT, _TEXT = Colour.rgb(0, 230, 118), Colour.rgb(255, 255, 255), Colour.rgb(255, 210, 60)


def annotate(frame: YuvFrame, result: FrameResult) -> None:
    """Draws a result on the planes of the frame, in place. The result's coordinates are pixels of the frame."""
    painter = _Painter(frame)
    for found in result.objects:
        painter.box(found.box.x1, found.box.y1, found.box.x2, found.box.y2, _colour(found.class_id, found.track_id))
    for pose in result.poses:
        points = [(round(k.x), round(k.y)) if k.confidence > _MIN_CONFIDENCE else None for k in pose.keypoints]
        limbs = [(a, b) for i, j in SKELETON if (a := points[i]) is not None and (b := points[j]) is not None]
        painter.lines(limbs, _LIMB)
        painter.dots([point for point in points if point is not None], _JOINT)
    for text in result.texts:
        corners = np.array(text.polygon, np.float32).round().astype(np.int32)
        painter.polygon(corners, _TEXT)
        painter.label(text.text, int(corners[:, 0].min()), int(corners[:, 1].max()), _TEXT, below=True)
    for found in result.objects:  # last, so that nothing covers the labels
        label = f"{found.class_name} {found.confidence:.2f}" + ("" if found.track_id is None else f" #{found.track_id}")
        painter.label(label, round(found.box.x1), round(found.box.y1), _colour(found.class_id, found.track_id))


class _Painter:
    """Draws each shape on all planes. The colour planes have half the size: OpenCV's `shift` halves coordinates."""

    def __init__(self, frame: YuvFrame) -> None:
        self._frame = frame
        scale = max(frame.width, frame.height) / 1000
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
        """Draws text on a filled box above the point, or with `below` under it. The box is moved into the frame."""
        (width, height), descent = cv2.getTextSize(text, _FONT, self._letters, self._weight)
        width, tall = width + 2 * self._pad, height + descent + self._pad
        left = max(0, min(x, self._frame.width - width))
        top = max(0, min(y if below else y - tall, self._frame.height - tall))
        for plane, value, shift, _ in self._planes(colour):
            cv2.rectangle(plane, (left, top), (left + width, top + tall), value, cv2.FILLED, cv2.LINE_8, shift)
        place = (left + self._pad, top + self._pad // 2 + height)
        shade = _DARK if colour.y > 128 else _LIGHT
        cv2.putText(self._frame.planes[0], text, place, _FONT, self._letters, shade, self._weight, cv2.LINE_8)

    def _planes(self, colour: Colour) -> list[tuple[NDArray[np.uint8], int, int, int]]:
        """For each plane: the plane, the colour's value in it, the bits by which coordinates are shifted, and the line
        width, pixels.
        """
        y, u, v = self._frame.planes
        half = (self._thick + 1) // 2
        return [(y, colour.y, 0, self._thick), (u, colour.u, 1, half), (v, colour.v, 1, half)]


def _colour(class_id: int, track: int | None) -> Colour:
    """The same colour for all boxes of a track, or of a class if there is no track."""
    return _PALETTE[(class_id if track is None else track) % len(_PALETTE)]
