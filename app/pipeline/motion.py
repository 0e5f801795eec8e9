"""Dense optical flow between two small grey pictures, and what it says about the frame. Pure.

The pictures have at most 160 pixels a side (`decode.grey_size`); everything that leaves is in frame pixels.
"""

from __future__ import annotations

import base64
import math
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from app.protocol.result import CameraMotion, Motion, MotionGrid

Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]
Method = Literal["dis", "farneback"]

MIN_SIDE = 16
"""Least side of a picture that flow can be computed on: DIS wants a patch of 8 at half the size."""
CELL = 8
"""Side of a cell, grey pixels: 160x120 has 20x15."""
MIN_TEXTURE = 2.0
"""Grey levels: the standard deviation from which a cell has texture. Of a blank wall, noise and codec leave about 1."""
MOVING = 0.002
"""Share of the frame's diagonal, a frame, from which a cell moves."""
CAMERA_ERROR = 0.15
"""Share of the camera's motion that is added to that."""
ONE_WAY = 0.1
"""Least length of the sum of vectors over the sum of their lengths that still is a direction."""
A_FEW = 0.01
"""Share of the cells that must move for a direction: noise moves one or two of 300 now and then."""
GRID_SCALE = 0.25
"""Finest unit of the grid, frame pixels."""


def obstacle(previous: Grey | None, current: Grey) -> str | None:
    """Why there is no flow from one picture to the next, in a word for `Stage.reason`; None where there is."""
    if min(current.shape) < MIN_SIDE:
        return "frame_too_small"
    if previous is None:
        return "first_frame"
    if previous.shape != current.shape:
        return "size_changed"
    return None


class Flow:
    """Dense flow of one stream. Not for two threads at a time: DIS keeps its buffers.

    `dis`: Dense Inverse Search (Kroeger et al. 2016, https://arxiv.org/abs/1603.03590) as OpenCV's ULTRAFAST
    preset, but down to half the picture's size, not a quarter: at a quarter of 160x120 a pan of a
    640x480 frame comes out up to a fifth too short. Patches of 8 side by side, not overlapping, make up
    for most of the time. Each patch's mean is taken out, so that a change of exposure is no motion.

    `farneback`: Farneback 2003 with OpenCV's usual parameters; ten times as slow and no better.
    """

    def __init__(self, method: Method) -> None:
        self._dis: Any = None
        if method == "dis":
            self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
            self._dis.setFinestScale(1)
            self._dis.setPatchStride(8)
            self._dis.setGradientDescentIterations(12)

    def __call__(self, previous: Grey, current: Grey) -> Floats:
        """Flow float32 `[h, w, 2]`: where the pixel of `previous` went, dx and dy in grey pixels.

        Both uint8 `[h, w]`, C-contiguous.

        Raises:
            ValueError: there is an `obstacle`. OpenCV's DIS would crash the process on a picture of 160x8.
        """
        if reason := obstacle(previous, current):
            raise ValueError(f"no flow from {previous.shape} to {current.shape}: {reason}")
        flow: Any
        if self._dis is not None:
            flow = self._dis.calc(previous, current, None)
        else:
            flow = cv2.calcOpticalFlowFarneback(previous, current, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
        return flow  # type: ignore[no-any-return]


def measure(flow: Floats, previous: Grey, *, width: int, height: int, grid: bool) -> Motion:
    """What the flow says, a cell of 8x8 grey pixels at a time.

    The camera's motion is the median cell's, each axis by itself. What a cell moves besides is its own; it counts
    as moving from 0.2% of the frame's diagonal (1.6 pixels of 640x480, less than half a grey one) plus
    15% of the camera's motion, within which flow errs on photographs. A cell without texture cannot show where it
    goes: the flow there is noise or its neighbours', and it counts as still.

    Args:
        flow: float32 `[h, w, 2]` of `Flow`.
        previous: the uint8 `[h, w]` picture that it starts from.
        width: of the frame as sent, pixels.
        height: likewise.
        grid: whether to add the cells' flow, the camera's in it.
    """
    rows, columns = (max(1, round(side / CELL)) for side in previous.shape)
    cells = _mean(flow, columns, rows).reshape(-1, 2)
    cells *= _to_frame(width, height, previous.shape)
    textured = _variance(previous, columns, rows).ravel() >= MIN_TEXTURE**2
    seen = cells[textured]
    middle = len(seen) // 2
    camera = np.partition(seen, middle, axis=0)[middle] if len(seen) else np.zeros(2, np.float32)
    own = cells - camera
    own[~textured] = 0
    speed = np.hypot(own[:, 0], own[:, 1])
    diagonal = math.hypot(width, height)
    camera_x, camera_y = camera.tolist()
    moving = speed > MOVING * diagonal + CAMERA_ERROR * math.hypot(camera_x, camera_y)
    # Sums and counts of our own: each `mean` of numpy's takes 4 µs before it adds anything up.
    moving_fraction = int(np.count_nonzero(moving)) / moving.size
    return Motion(
        score=round(float(speed.sum()) / speed.size / diagonal, 5),
        direction_deg=_direction(own[moving], speed[moving]) if moving_fraction >= A_FEW else None,
        moving_fraction=round(moving_fraction, 4),
        camera=CameraMotion(round(camera_x, 2), round(camera_y, 2)),
        grid=_grid(cells, columns, rows) if grid else None,
    )


@lru_cache(maxsize=256)
def _to_frame(width: int, height: int, shape: tuple[int, int]) -> Floats:
    """Frame pixels a grey pixel: x, y."""
    return np.array((width / shape[1], height / shape[0]), np.float32)


def _mean(values: NDArray[Any], columns: int, rows: int) -> Floats:
    """The mean of each cell. `INTER_AREA` is that, also where cells are no whole number of pixels."""
    return cv2.resize(values, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)


def _variance(picture: Grey, columns: int, rows: int) -> Floats:
    """The variance of each cell's grey levels."""
    levels = picture.astype(np.float32)
    mean = _mean(levels, columns, rows)
    return _mean(levels * levels, columns, rows) - mean * mean


def _direction(moving: Floats, speed: Floats) -> float | None:
    """Of the sum of the vectors: a mean direction, each by its length. None where they cancel each other out."""
    x, y = moving.sum(axis=0).tolist()
    if math.hypot(x, y) < ONE_WAY * float(speed.sum()):
        return None
    return round(math.degrees(math.atan2(y, x)) % 360, 1) % 360


def _grid(cells: Floats, columns: int, rows: int) -> MotionGrid:
    """Quarter pixels while int8 holds them (to 31.75 pixels), coarser where something is faster."""
    scale = max(GRID_SCALE, float(np.abs(cells).max()) / 127)
    units = np.clip(np.round(cells / scale), -127, 127).astype(np.int8)
    return MotionGrid(columns, rows, round(scale, 6), base64.b64encode(units.tobytes()).decode("ascii"))
