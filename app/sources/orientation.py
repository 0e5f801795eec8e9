"""Turns frames upright, by a video's display matrix or a JPEG's EXIF orientation. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import cv2
from numpy.typing import NDArray

ROTATIONS = (0, 90, 180, 270)
"""Degrees, clockwise, by which a source's frames can be turned."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """How an image must be turned to be upright: first rows and columns are exchanged, then it is mirrored."""

    transposed: bool = False
    left_right: bool = False
    upside_down: bool = False

    @classmethod
    def from_matrix(cls, matrix: tuple[int, ...]) -> Orientation:
        """From FFmpeg's display matrix (nine integers), x' = a x + c y, y' = b x + d y: the nearest of the eight
        ways.
        """
        a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transposed=True, left_right=c < 0, upside_down=b < 0)
        return cls(left_right=a < 0, upside_down=d < 0)

    @classmethod
    def from_degrees(cls, clockwise: int) -> Orientation:
        """From a turn by a multiple of 90 degrees."""
        return {
            0: cls(),
            90: cls(transposed=True, left_right=True),
            180: cls(left_right=True, upside_down=True),
            270: cls(transposed=True, upside_down=True),
        }[clockwise % 360]

    @property
    def upright(self) -> bool:
        """Whether the image is upright already."""
        return not (self.transposed or self.left_right or self.upside_down)

    def apply(self, image: NDArray[Any]) -> NDArray[Any]:
        """The image upright, uint8 `[height, width]` or `[height, width, channels]`: the same array or a copy."""
        if self.transposed:
            image = cv2.transpose(image)
        if self.left_right or self.upside_down:
            image = cv2.flip(image, -1 if self.left_right and self.upside_down else 1 if self.left_right else 0)
        return image

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the upright image, for a stored one of this size."""
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
    """The orientation that the file or stream of an `av.VideoFrame` asks for."""
    try:
        found = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    except ValueError:  # PyAV fails if a frame has side data of a kind that it has no name for; flips are then unknown
        return Orientation.from_degrees(-round(frame.rotation / 90) * 90)
    if not found or len(found[0]) < 36:
        return UPRIGHT
    return Orientation.from_matrix(struct.unpack("=9i", found[0][:36]))


def of_exif(orientation: int) -> Orientation:
    """The orientation of EXIF's tag, 1 to 8; any other value means upright."""
    return _BY_EXIF.get(orientation, UPRIGHT)
