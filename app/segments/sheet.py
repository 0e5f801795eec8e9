"""A decoded picture to be drawn on: its planes as they were coded, so that what is not drawn on stays as it was.

H.264 wants 4:2:0: brightness at full size, the two colours at half. Drawing on these saves turning the whole picture
into RGB and back, which takes longer than the drawing.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from app.sources.orientation import UPRIGHT, Orientation

Plane = NDArray[np.uint8]
FORMAT = "yuv420p"
FULL_FORMAT = "yuv444p"
"""Every plane at full size: the one that has odd sides."""


class Sheet:
    """An upright picture of even sides: an odd one grows by a pixel, its last row or column repeated.

    `size` is its width and height before that. `planes` are Y `[h, w]`, U and V `[h / 2, w / 2]`, uint8, writeable.
    """

    def __init__(self, frame: Any, turn: Orientation = UPRIGHT) -> None:
        if frame.format.name != FORMAT:
            frame = frame.reformat(format=FORMAT)
        if turn.upright and frame.width % 2 == 0 and frame.height % 2 == 0:
            frame.make_writable()  # the decoder still needs its own for the frames to come
            self.frame, self.planes = frame, _views(frame)
            self.size = int(frame.width), int(frame.height)
            return
        planes = [turn.apply(plane) for plane in _views(frame)]
        height, width = planes[0].shape
        self.size = width, height
        self.frame = av.VideoFrame(width + width % 2, height + height % 2, FORMAT)
        self.frame.color_range, self.frame.colorspace = frame.color_range, frame.colorspace
        self.planes = _views(self.frame)
        for target, plane in zip(self.planes, planes, strict=True):
            _lay(plane, target)

    @property
    def width(self) -> int:
        return int(self.frame.width)

    @property
    def height(self) -> int:
        return int(self.frame.height)


def cropped(frame: Any, width: int, height: int) -> Any:
    """The upper left of a picture, its colours at full size: without the row or column that it had grown by."""
    whole = frame.reformat(format=FULL_FORMAT)
    part = av.VideoFrame(width, height, FULL_FORMAT)
    part.color_range, part.colorspace = frame.color_range, frame.colorspace
    for target, plane in zip(_views(part), _views(whole), strict=True):
        target[:] = plane[:height, :width]
    return part


def _views(frame: Any) -> list[Plane]:
    return [
        np.frombuffer(plane, np.uint8)[: plane.line_size * plane.height].reshape(plane.height, -1)[:, : plane.width]
        for plane in frame.planes
    ]


def _lay(plane: NDArray[Any], target: Plane) -> None:
    """Copies; what the target has more of repeats the edge."""
    height, width = plane.shape
    target[:height, :width] = plane
    target[:height, width:] = plane[:, -1:]
    target[height:] = target[height - 1 : height]
