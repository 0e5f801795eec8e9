"""Draws a result on the planes of its frame, by the shapes that the stages declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from app.drawing import JOINT, LIMB, Mark, fill, marks
from app.protocol.result import FrameResult
from app.protocol.stages import Shape
from app.segments.video.writer import YuvFrame

Points = NDArray[np.int32]

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
_JOINT = Colour.rgb(*JOINT)


def annotate(frame: YuvFrame, result: FrameResult, models: Mapping[str, Any] | None = None) -> None:
    """Draws a result on the planes of the frame, in place. The result's coordinates are pixels of the frame.

    Args:
        models: the descriptions of models by stage, as in `ready.models`, which say what points are connected.
    """
    painter = _Painter(frame)
    groups = marks(result, models=models)
    for shape, entries in groups:
        for mark in entries:
            painter.draw(shape, mark, _colour(mark))
    # Labels last, so that nothing covers them: those of the first stages above others, those of the whole frame on top,
    # because they cannot stand elsewhere.
    labelled = [mark for _, entries in reversed(groups) for mark in entries if mark.label]
    top = 0
    for mark in sorted(labelled, key=lambda mark: mark.anchor is None):
        if mark.anchor is None:
            top = painter.label(mark.label, 0, top, _colour(mark), below=True)
        else:
            x1, y1, _, y2 = mark.anchor
            painter.label(mark.label, round(x1), round(y2 if mark.below else y1), _colour(mark), below=mark.below)


def _colour(mark: Mark) -> Colour:
    """The same colour for all marks of a track, or of a class if there is no track."""
    if mark.rgb is not None:
        return Colour.rgb(*mark.rgb)
    number = mark.class_id if mark.track_id is None else mark.track_id
    return Colour.rgb(*LIMB) if mark.class_id is None or number is None else _PALETTE[number % len(_PALETTE)]


class _Painter:
    """Draws each shape on all planes. The colour planes have half the size: OpenCV's `shift` halves coordinates."""

    def __init__(self, frame: YuvFrame) -> None:
        self._frame = frame
        scale = max(frame.width, frame.height) / 1000
        self._thick = max(2, round(3 * scale))
        self._letters = max(0.45, 0.6 * scale)
        self._weight = max(1, round(1.2 * scale))
        self._pad = max(3, round(5 * scale))

    def draw(self, shape: Shape, mark: Mark, colour: Colour) -> None:
        """Draws an entry, without its label."""
        if shape.kind == "box":
            (x1, y1), (x2, y2) = mark.rings[0].tolist()
            self.box(x1, y1, x2, y2, colour)
        elif shape.kind == "points":
            points = [(round(x), round(y)) for x, y in mark.rings[0].tolist()]
            self.lines([(points[a], points[b]) for a, b in mark.limbs], colour)
            assert mark.shown is not None
            self.dots([point for point, shown in zip(points, mark.shown, strict=True) if shown], _JOINT)
        elif shape.kind in ("arrow", "field"):
            for ends in mark.rings:
                self.arrow(ends.round().astype(int).tolist(), colour)
        elif shape.kind != "label":
            rings = [ring.round().astype(np.int32) for ring in mark.rings]
            if shape.kind == "mask":
                for plane, value, shift, _ in self._planes(colour):
                    fill(plane, [ring >> shift for ring in rings], value)
            for ring in rings:
                self.polygon(ring, colour, closed=shape.kind != "polyline")

    def arrow(self, ends: Sequence[tuple[int, int]], colour: Colour) -> None:
        for plane, value, shift, thick in self._planes(colour):
            cv2.arrowedLine(plane, ends[0], ends[1], value, thick, cv2.LINE_AA, shift)

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

    def polygon(self, corners: Points, colour: Colour, *, closed: bool = True) -> None:
        for plane, value, shift, thick in self._planes(colour):
            cv2.polylines(plane, [corners], closed, value, thick, cv2.LINE_AA, shift)

    def label(self, text: str, x: int, y: int, colour: Colour, *, below: bool = False) -> int:
        """Draws text on a filled box above the point, or with `below` under it. The box is moved into the frame.

        Returns:
            The first row below the box.
        """
        (width, height), descent = cv2.getTextSize(text, _FONT, self._letters, self._weight)
        width, tall = width + 2 * self._pad, height + descent + self._pad
        left = max(0, min(x, self._frame.width - width))
        top = max(0, min(y if below else y - tall, self._frame.height - tall))
        for plane, value, shift, _ in self._planes(colour):
            cv2.rectangle(plane, (left, top), (left + width, top + tall), value, cv2.FILLED, cv2.LINE_8, shift)
        place = (left + self._pad, top + self._pad // 2 + height)
        shade = _DARK if colour.y > 128 else _LIGHT
        cv2.putText(self._frame.planes[0], text, place, _FONT, self._letters, shade, self._weight, cv2.LINE_8)
        return top + tall + 1

    def _planes(self, colour: Colour) -> list[tuple[NDArray[np.uint8], int, int, int]]:
        """For each plane: the plane, the colour's value in it, the bits by which coordinates are shifted, and the line
        width, pixels.
        """
        y, u, v = self._frame.planes
        half = (self._thick + 1) // 2
        return [(y, colour.y, 0, self._thick), (u, colour.u, 1, half), (v, colour.v, 1, half)]
