"""Dense flow: Farneback on the whole frame and on the small frame, and DIS on the small frame; time and error.

The error is the mean end-point error in frame pixels on photographs that were warped by a known motion (a pan, a turn
and a zoom at once), away from the edge, where what came in from outside has no match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from app.pipeline.boxes import letterbox
from app.pipeline.decode import small_grey
from app.pipeline.stages.motion import Flow
from app.process import tune
from benchmarks import inner, photographs, turns
from benchmarks.turns import Ratio

VARIANTS = {
    "farneback-640": "Farneback, 640x480",
    "farneback-160": "Farneback, 160x120",
    "dis-160": "DIS, 160x120 (ours)",
}
RATIOS = (
    Ratio("flow: Farneback at 160x120 over 640x480", "cpu_us", "farneback-640", "farneback-160", at_least=15),
    Ratio("flow: ours over Farneback at 640x480", "cpu_us", "farneback-640", "dis-160", at_least=200),
)
WIDTH, HEIGHT = photographs.WIDTH, photographs.HEIGHT
MOTIONS = ((6, 2, 0.5, 1.004), (-4, 5, -0.8, 0.995), (12, -3, 0.0, 1.01), (1.5, 1, 1.0, 1))
"""Pan in pixels (x, y), turn in degrees, zoom."""
MARGIN = 48
"""Frame pixels at each edge that are not judged."""


@dataclass(frozen=True, slots=True)
class Plan(turns.Plan):
    variants: tuple[str, ...] = tuple(VARIANTS)


def warps() -> list[NDArray[np.float32]]:
    """Motions as affine matrices `[2, 3]`, frame pixels: about the frame's centre, then a pan."""
    out = []
    for pan_x, pan_y, degrees, zoom in MOTIONS:
        matrix = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), degrees, zoom).astype(np.float32)
        matrix[:, 2] += (pan_x, pan_y)
        out.append(matrix)
    return out


def truth(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """The flow of a warp, `[HEIGHT, WIDTH, 2]`: where each pixel goes."""
    x, y = np.meshgrid(np.arange(WIDTH, dtype=np.float32), np.arange(HEIGHT, dtype=np.float32))
    points = np.stack((x, y), -1)
    moved: NDArray[np.float32] = points @ matrix[:, :2].T + matrix[:, 2] - points
    return moved


def pairs() -> list[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]]:
    """RGB frames before and after a known motion, and that motion."""
    out = []
    for index, name in enumerate(photographs.NAMES[:6]):
        matrix = warps()[index % 4]
        frame = np.ascontiguousarray(photographs.picture(name)[:HEIGHT, :WIDTH])
        after = cv2.warpAffine(frame, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        out.append((frame, after, truth(matrix)))
    return out  # type: ignore[return-value]


def work(variant: str, clips: Sequence[Sequence[bytes]]) -> inner.Work:
    """The step that computes the flow between two grey frames, and its error on known warps."""
    tune()
    method, _, width = variant.partition("-")
    small = width == "160"
    flow = Flow("dis" if method == "dis" else "farneback")
    made = [(_grey(before, small), _grey(after, small), true) for before, after, true in pairs()]
    errors = [error(flow(a, b), true) for a, b, true in made]
    known = {"epe_px": float(np.mean(errors)), "epe_worst_px": float(np.max(errors))}
    return (lambda count: flow(*made[count % len(made)][:2])), known


def error(found: NDArray[np.float32], true: NDArray[np.float32]) -> float:
    """The mean end-point error, frame pixels."""
    scale = np.array((WIDTH / found.shape[1], HEIGHT / found.shape[0]), np.float32)
    there = cv2.resize(true, found.shape[1::-1], interpolation=cv2.INTER_AREA)
    distance = np.hypot(*np.moveaxis(found * scale - there, -1, 0))
    x, y = (round(MARGIN / side) for side in scale.tolist())
    return float(distance[y:-y, x:-x].mean())


def _grey(frame: NDArray[np.uint8], small: bool) -> NDArray[np.uint8]:
    if small:
        return small_grey(frame, letterbox(WIDTH, HEIGHT, WIDTH, HEIGHT))
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements."""
    return turns.run("flow", plan, lambda variant: inner.ask("flow", variant, plan), RATIOS, say)


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {
        "cpu_us": "CPU µs a frame",
        "p99_us": "p99 µs",
        "epe_px": "end-point error, px",
        "epe_worst_px": "worst picture",
        "faults": "page faults a frame",
    }
    turns.show(results, "flow", VARIANTS, columns, console, "errors in pixels of the 640x480 frame, on known warps")


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, given)
