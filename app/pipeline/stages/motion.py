"""Motion: dense optical flow between two small grey frames, and the cells that moved from one to the other. Pure.

The grey frames have at most 160 pixels a side (`decode.grey_size`); results are in frame pixels.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
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
from app.pipeline.stage import PipelineStage
from app.pipeline.types import FrameState
from app.protocol.result import OK, Stage
from app.protocol.stages import Figure, Part, Shape


@dataclass(frozen=True)
class CameraMotion:
    """Motion of the whole image since the last frame: a shift, a rotation and a zoom about the middle of the frame.

    A point that was at `q` from the middle is now at `zoom * rotated(q) + (dx, dy)` from it.
    """

    dx: float
    dy: float
    """Shift of the point that was in the middle, pixels. A camera that pans right moves the image left."""
    rotation_deg: float = 0.0
    """Rotation of the image, degrees, clockwise as seen. A camera that rolls clockwise rotates it anticlockwise."""
    zoom: float = 1.0
    """Factor by which the image grew: above 1 the camera zooms in or comes nearer."""


@dataclass(frozen=True)
class MotionGrid:
    """The dense flow since the last frame, as one vector for each cell of a grid over the frame."""

    columns: int
    rows: int
    scale: float
    """Pixels per unit of `data`."""
    data: str
    """Base64 of int8 pairs dx, dy, row by row; the camera's own motion is still in them. 0, 0 where there is no texture
    to follow."""


@dataclass(frozen=True)
class Motion:
    """Motion since the last frame, split into the camera's and that of the rest."""

    score: float
    """Mean motion besides the camera's, in frame diagonals per frame, over all cells; a cell that stands still is 0."""
    direction_deg: float | None
    """Mean direction of the moving cells: 0 right, 90 down, 180 left, 270 up. Null when none moves."""
    moving_fraction: float
    """Share of cells that move besides the camera, 0 to 1."""
    camera: CameraMotion
    grid: MotionGrid | None = None


Method = Literal["dis", "farneback"]

MIN_SIDE = 16
"""Least side of an image that flow can be computed on, because DIS needs a patch of 8 at half the size."""
MOVING = 0.002
"""Share of the frame's diagonal, for each frame, from which a cell counts as moving."""
ERROR = 0.1
"""Share of the motion that flow had to find, added to `MOVING`."""
NOT_THERE = 0.97
"""Correlation up to which a cell may have left the place where the camera's motion puts it."""
SURE = 0.9
"""Correlation from which a cell certainly has not gone far."""
CLEARLY = 0.5
"""Greatest unlikeness of a cell where it went, as a share of its unlikeness where the camera's motion puts it."""
GAIN = 0.03
"""Least gain in correlation where a cell went."""
LOST = 0.5
"""Correlation below which a cell is not where the camera's motion puts it."""
CHANGED = 0.6
"""Correlation below which the content of a cell may have changed."""
MANY_LOST = 0.03
"""Share of lost cells (`LOST`) from which `_faster` searches for them."""
ONE_WAY = 0.1
"""Least length of the sum of vectors, over the sum of their lengths, that still gives a direction."""
A_FEW = 0.01
"""Share of the cells that must move for a direction, because noise sometimes moves one or two of 300."""
GRID_SCALE = 0.25
"""Finest unit of the grid, frame pixels."""


def obstacle(previous: Grey | None, current: Grey) -> str | None:
    """The reason why no flow can be computed between two grey frames, as a `Stage.reason`; None if it can be."""
    if min(current.shape) < MIN_SIDE:
        return "frame_too_small"
    if previous is None:
        return "first_frame"
    if previous.shape != current.shape:
        return "size_changed"
    return None


class Flow:
    """Dense flow of one stream. Only one thread at a time may use it, because DIS keeps its buffers.

    `dis`: Dense Inverse Search (Kroeger et al. 2016, https://arxiv.org/abs/1603.03590) as OpenCV's ULTRAFAST
    preset, but down to half the image's size instead of a quarter: at a quarter of 160x120 a pan of a 640x480 frame
    comes out up to a fifth too short. Patches of 8 that do not overlap save most of the additional time. The mean of
    each patch is removed, so that a change of exposure is no motion.

    `farneback`: Farneback 2003 with OpenCV's usual parameters; ten times as slow and no better.
    """

    last: GreyFrame | None = None
    """The frame that `motion` saw last, with its statistics: usually the first of the next pair."""

    def __init__(self, method: Method) -> None:
        self._dis: Any = None
        if method == "dis":
            self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
            self._dis.setFinestScale(1)
            self._dis.setPatchStride(8)
            self._dis.setGradientDescentIterations(12)

    def __call__(self, previous: Grey, current: Grey) -> Floats:
        """Flow float32 `[h, w, 2]`: the motion of each pixel of `previous`, dx and dy in grey pixels.

        Both frames are uint8 `[h, w]`, C-contiguous.

        Raises:
            ValueError: there is an `obstacle`. OpenCV's DIS would crash the process on an image of 160x8.
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
    """Measures the motion from one frame to the next, by cells of 8x8 grey pixels.

    A cell moves by itself where it departs from the camera's motion by more than 0.2% of the frame's diagonal (1.6
    pixels at 640x480, less than half a grey pixel) plus a tenth of the motion that flow had to find, which is its error
    on photographs. The cell must look alike where it went, and less alike where the camera's motion would have put it,
    so that neither light nor noise counts as motion.

    Args:
        flow: the flow of this stream; it keeps the statistics of `current`.
        previous: uint8 `[h, w]`, C-contiguous, without an `obstacle` to `current`.
        current: uint8 `[h, w]`, C-contiguous.
        width: width of the frame as sent, pixels.
        height: height of the frame as sent, pixels.
        grid: whether to add the cells' vectors, which contain the camera's motion; vectors of untrusted cells are 0.
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
    camera, field = found.camera, found.field
    own, moving = _own(pair, found, field)
    lost = found.seen & (found.alike < LOST) & ~moving
    if np.count_nonzero(lost) > MANY_LOST * lost.size and (faster := _faster(pair, flow, found, moving)) is not None:
        more, found_now = _own(pair, found, faster)
        gained = found_now & ~moving & (faster.alike > found.field.alike)
        own, moving = np.where(gained, more, own), moving | gained
    speed = np.abs(own[moving])
    # Sums and counts instead of `mean`, which takes 4 µs before it adds anything up.
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


def _own(pair: FramePair, found: Registration, field: FlowField) -> tuple[Points, Mask]:
    """The motion of each cell apart from the camera's, complex64 `[n]`, and which cells move."""
    camera = found.camera
    own = field.vectors
    if camera is not STILL:
        own = own - (np.complex64(camera.a - 1) * pair.layout.points + np.complex64(camera.t))
    far = np.abs(own)
    least = MOVING * pair.diagonal
    moving = field.inside & (found.alike < NOT_THERE)
    if moving.any():
        # The error of vectors in this image, from those that certainly are the camera's.
        sure = far[field.inside & (found.alike > SURE)]
        error = float(np.partition(sure, sure.size // 4)[sure.size // 4]) if sure.size else 0.0
        moving &= far > least + min(3 * error, least / 2) + ERROR * field.found
    if moving.any():
        moving &= field.matched & (1 - field.alike < CLEARLY * (1 - found.alike)) & (field.alike > found.alike + GAIN)
    return own, moving


def _faster(pair: FramePair, flow: DenseFlow, found: Registration, moving: Mask) -> FlowField | None:
    """Searches for objects that moved too far for flow: a shift of the cells that the camera's motion leaves unlike."""
    changed = (found.alike < CHANGED) & ~moving
    mask = cv2.resize(changed.reshape(pair.layout.rows, pair.layout.columns).astype(np.float32), pair.layout.size)
    there = pair.after.half if found.camera is STILL else pair.drawn_back(pair.after.half, found.camera)
    for shift in shifts(pair, there, 1, mask):  # type: ignore[arg-type]
        a, t = found.camera
        return FlowField(pair, flow, Similarity(a, a * shift.t + t))
    return None


def _vectors(pair: FramePair, found: Registration, own: Points, moving: Mask) -> Points:
    """The vectors of the trusted cells, the camera's motion included; 0 for all others."""
    camera = found.camera
    path = np.complex64(camera.a - 1) * pair.layout.points + np.complex64(camera.t)
    trusted = moving | found.field.matched
    vectors: Points = np.where(trusted, own + path, np.complex64(0))
    return vectors


def _direction(moving: Points, speed: Floats) -> float | None:
    """Direction of the sum of the vectors, so that each counts by its length; degrees, clockwise from the right. None
    where they cancel each other out."""
    whole = complex(moving.sum())
    x, y = whole.real, whole.imag
    if math.hypot(x, y) < ONE_WAY * float(speed.sum()):
        return None
    return round(math.degrees(math.atan2(y, x)) % 360, 1) % 360


def _grid(vectors: Points, pair: FramePair) -> MotionGrid:
    """Encodes vectors in quarter pixels while int8 holds them (to 31.75 pixels), and coarser where one is longer."""
    cells = vectors.view(np.float32)
    scale = max(GRID_SCALE, float(np.abs(cells).max()) / 127)
    units = np.clip(np.round(cells / scale), -127, 127).astype(np.int8)
    return MotionGrid(
        pair.layout.columns, pair.layout.rows, round(scale, 6), base64.b64encode(units.tobytes()).decode("ascii")
    )


class MotionStage(PipelineStage):
    """Motion since the stream's last frame. Runs in the threads that decode, beside other frames' models."""

    name = "motion"
    title = "Motion"
    description = "Motion since the last frame, split into the camera's and that of the rest."
    runs = "anywhere"
    part = Part(
        "motion",
        Motion | None,
        empty=lambda: None,
        shapes=(Shape("field", "grid", camera="camera"),),
        figures=(
            Figure("figures", "{moving_fraction:percent} {direction_deg:arrow}"),
            Figure("status", "score {score:.3}"),
            Figure("sentence", "moving {direction_deg:direction}", where="moving_fraction", least=0.02),
        ),
    )
    single = False
    needs_grey = True

    def prepare(self, state: FrameState, previous: Grey | None, grey: Grey) -> None:
        memory, info = state.job.memory, state.info
        assert info is not None
        reason = obstacle(previous, grey)
        if reason is not None:
            state.stages["motion"] = Stage("skipped", reason)
            return
        assert previous is not None
        flow = memory.parts.get("motion")
        if flow is None:
            flow = memory.parts["motion"] = Flow(self.settings.pipeline.motion_method)
        state.found["motion"] = motion(
            flow, previous, grey, width=info.width, height=info.height, grid=state.job.settings.motion_grid
        )
        state.stages["motion"] = OK
