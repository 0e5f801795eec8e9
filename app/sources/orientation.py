"""Which way up pictures are: a film's display matrix, a JPEG's EXIF orientation, turned upright. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

ROTATIONS = (0, 90, 180, 270)
"""Degrees, clockwise, that a source's pictures can be turned by."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """What is to be done to a picture for it to be upright: rows and columns exchanged first, then mirrored."""

    transposed: bool = False
    left_right: bool = False
    upside_down: bool = False

    @classmethod
    def from_matrix(cls, matrix: tuple[int, ...]) -> Orientation:
        """Of FFmpeg's display matrix (nine integers): x' = a x + c y, y' = b x + d y; the nearest of the eight ways."""
        a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transposed=True, left_right=c < 0, upside_down=b < 0)
        return cls(left_right=a < 0, upside_down=d < 0)

    @classmethod
    def from_degrees(cls, clockwise: int) -> Orientation:
        """Of a turn by a multiple of 90 degrees."""
        return {
            0: cls(),
            90: cls(transposed=True, left_right=True),
            180: cls(left_right=True, upside_down=True),
            270: cls(transposed=True, upside_down=True),
        }[clockwise % 360]

    @property
    def upright(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.transposed or self.left_right or self.upside_down)

    def apply(self, picture: NDArray[Any]) -> NDArray[Any]:
        """The picture upright, uint8 `[height, width]` or `[height, width, channels]`: itself, or a copy."""
        if self.transposed:
            picture = cv2.transpose(picture)
        if self.left_right or self.upside_down:
            picture = cv2.flip(picture, -1 if self.left_right and self.upside_down else 1 if self.left_right else 0)
        return picture

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an upright picture of a stored one of this size."""
        return (height, width) if self.transposed else (width, height)


UPRIGHT = Orientation()
_BY_EXIF = {
    2: Orientation(left_right=True),
    3: Orientation(left_right=True, upside_down=True),
    4: Orientation(upside_down=True),
    5: Orientation(transposed=True),
    6: Orientation(transposed=True, left_right=True),
    7: Orientation(transposed=True, left_right=True, upside_down=True),
    8: Orientation(transposed=True, upside_down=True),
}


def of_frame(frame: Any) -> Orientation:
    """Of a decoded `av.VideoFrame`, as its file or stream asks for it."""
    try:
        found = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    except ValueError:  # side data of a kind that PyAV has no name for hides all of it; flips are not seen then
        return Orientation.from_degrees(-round(frame.rotation / 90) * 90)
    if not found or len(found[0]) < 36:
        return UPRIGHT
    return Orientation.from_matrix(struct.unpack("=9i", found[0][:36]))


def of_exif(orientation: int) -> Orientation:
    """Of EXIF's tag, 1 to 8; upright for anything else."""
    return _BY_EXIF.get(orientation, UPRIGHT)


def contiguous(picture: NDArray[Any]) -> NDArray[np.uint8]:
    """The picture in one piece of memory, as coders want it."""
    return np.ascontiguousarray(picture)
