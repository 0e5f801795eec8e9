"""Dense optical flow between two small grey pictures, and what moved from one to the other. Pure.

The pictures have at most 160 pixels a side (`decode.grey_size`); everything that leaves is in frame pixels.
"""

from __future__ import annotations

import base64
import math
from typing import Any, Literal

import cv2
import numpy as np

from app.pipeline.registration import (
    STILL,
    DenseFlow,
    Floats,
    FlowField,
    FramePair,
    Grey,
    GreyFrame,
    Mask,
    Points,
    Registration,
    Similarity,
    register,
    same,
    shifts,
)
from app.protocol.result import CameraMotion, Motion, MotionGrid

Method = Literal["dis", "farneback"]

MIN_SIDE = 16
"""Least side of a picture that flow can be computed on: DIS wants a patch of 8 at half the size."""
MOVING = 0.002
"""Share of the frame's diagonal, a frame, from which a cell moves."""
ERROR = 0.1
"""Share of what flow had to look for that is added to that."""
NOT_THERE = 0.97
"""Correlation up to which a cell may have left the place where the camera's motion puts it."""
SURE = 0.9
"""Correlation from which it surely has not gone far."""
CLEARLY = 0.5
"""What may be left unlike where it went, of what is left there."""
GAIN = 0.03
"""How much more alike it must be where it went."""
LOST = 0.5
"""Correlation under which a cell is not where the camera's motion puts it."""
CHANGED = 0.6
"""Correlation under which something else may be there."""
MANY_LOST = 0.03
"""Share of the cells that must be lost for a search after them."""
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

    last: GreyFrame | None = None
    """What `motion` found out about the picture it saw last, which as a rule is the first of its next pair."""

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


def motion(flow: Flow, previous: Grey, current: Grey, *, width: int, height: int, grid: bool) -> Motion:
    """What moved from one picture to the next, a cell of 8x8 grey pixels at a time.

    What departs from the camera's motion moves by itself: by 0.2% of the frame's diagonal (1.6 pixels of 640x480,
    less than half a grey one) and a tenth of what flow had to look for, within which it errs on photographs. It must
    look alike where it went, and less so where the camera's motion would have put it: neither light nor noise is
    motion.

    Args:
        flow: the stream's own; it remembers what is known of `current`.
        previous: uint8 `[h, w]`, C-contiguous; there is no `obstacle` between it and
        current: likewise.
        width: of the frame as sent, pixels.
        height: likewise.
        grid: whether to add the cells' vectors, the camera's motion in them; none where they cannot be trusted.
    """
    before = flow.last
    if before is None or before.grey is not previous:
        before = GreyFrame(previous)
    flow.last = after = GreyFrame(current, before)
    pair = FramePair(before, after, width, height)
    if same(pair):
        none = _grid(np.zeros(pair.layout.points.size, np.complex64), pair) if grid else None
        return Motion(0.0, None, 0.0, CameraMotion(0.0, 0.0), none)
    found = register(pair, flow)
    camera, way = found.camera, found.way
    own, moving = _own(pair, found, way)
    lost = found.seen & (found.alike < LOST) & ~moving
    if np.count_nonzero(lost) > MANY_LOST * lost.size and (faster := _faster(pair, flow, found, moving)) is not None:
        way = faster
        more, found_now = _own(pair, found, way)
        gained = found_now & ~moving & (way.alike > found.way.alike)
        own, moving = np.where(gained, more, own), moving | gained
    speed = np.abs(own[moving])
    # Sums and counts of our own: each `mean` of numpy's takes 4 µs before it adds anything up.
    moving_fraction = speed.size / moving.size
    return Motion(
        score=round(float(speed.sum()) / moving.size / pair.diagonal, 5),
        direction_deg=_direction(own[moving], speed) if moving_fraction >= A_FEW else None,
        moving_fraction=round(moving_fraction, 4),
        camera=CameraMotion(
            round(camera.t.real, 2), round(camera.t.imag, 2), round(camera.rotation_deg, 3), round(camera.zoom, 5)
        ),
        grid=_grid(_vectors(pair, found, own, moving), pair) if grid else None,
    )


def _own(pair: FramePair, found: Registration, way: FlowField) -> tuple[Points, Mask]:
    """What each cell moves besides the camera, complex64 `[n]`, and which cells move."""
    camera = found.camera
    own = way.vectors
    if camera is not STILL:
        own = own - (np.complex64(camera.a - 1) * pair.layout.points + np.complex64(camera.t))
    far = np.abs(own)
    least = MOVING * pair.diagonal
    moving = way.inside & (found.alike < NOT_THERE)
    if moving.any():
        # What vectors err by in this picture, of those that surely are the camera's.
        sure = far[way.inside & (found.alike > SURE)]
        error = float(np.partition(sure, sure.size // 4)[sure.size // 4]) if sure.size else 0.0
        moving &= far > least + min(3 * error, least / 2) + ERROR * way.found
    if moving.any():
        moving &= way.matched & (1 - way.alike < CLEARLY * (1 - found.alike)) & (way.alike > found.alike + GAIN)
    return own, moving


def _faster(pair: FramePair, flow: DenseFlow, found: Registration, moving: Mask) -> FlowField | None:
    """Looks for what moved too far for flow: the shift of what the camera's motion leaves unlike, if there is one."""
    changed = (found.alike < CHANGED) & ~moving
    mask = cv2.resize(changed.reshape(pair.layout.rows, pair.layout.columns).astype(np.float32), pair.layout.size)
    there = pair.after.half if found.camera is STILL else pair.drawn_back(found.camera)
    for shift in shifts(pair, there, 1, mask):  # type: ignore[arg-type]
        a, t = found.camera
        return FlowField(pair, flow, Similarity(a, a * shift.t + t))
    return None


def _vectors(pair: FramePair, found: Registration, own: Points, moving: Mask) -> Points:
    """Of the cells that can be trusted, the camera's motion in them; 0 elsewhere."""
    camera = found.camera
    path = np.complex64(camera.a - 1) * pair.layout.points + np.complex64(camera.t)
    trusted = moving | found.way.matched
    vectors: Points = np.where(trusted, own + path, np.complex64(0))
    return vectors


def _direction(moving: Points, speed: Floats) -> float | None:
    """Of the sum of the vectors: a mean direction, each by its length. None where they cancel each other out."""
    whole = complex(moving.sum())
    x, y = whole.real, whole.imag
    if math.hypot(x, y) < ONE_WAY * float(speed.sum()):
        return None
    return round(math.degrees(math.atan2(y, x)) % 360, 1) % 360


def _grid(vectors: Points, pair: FramePair) -> MotionGrid:
    """Quarter pixels while int8 holds them (to 31.75 pixels), coarser where something is faster."""
    cells = vectors.view(np.float32)
    scale = max(GRID_SCALE, float(np.abs(cells).max()) / 127)
    units = np.clip(np.round(cells / scale), -127, 127).astype(np.int8)
    return MotionGrid(
        pair.layout.columns, pair.layout.rows, round(scale, 6), base64.b64encode(units.tobytes()).decode("ascii")
    )
