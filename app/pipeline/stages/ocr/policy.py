"""When to read text, and how current the last texts are. Decides; does no I/O and reads no clock.

Change is counted in cells of a small grey frame instead of pixels: letters are thin, so a sign that changes all its
words may change only one pixel in a hundred. Where text was read last, one changed cell is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from app.protocol.result import Stage


@dataclass(frozen=True)
class Text:
    """One line of text that was read. `confidence` is 0 to 1."""

    text: str
    confidence: float
    polygon: tuple[tuple[float, float], ...]
    """Four corners, clockwise from the text's own top left, which is the lower right one if the text is upside down."""


JpegSource = bytes | Callable[[], bytes]
"""A frame's JPEG, or a function that makes it."""
PIXEL_STEP = 24
"""Grey levels from which a pixel has changed. Less is noise of the sensor or of JPEG."""
CELL = 8
"""Side of a cell, pixels of the small grey frame."""
CELL_SHARE = 2 / CELL**2
"""Share of a cell's pixels that must change for the cell to count as changed."""
RUNNING = Stage("skipped", "running")
"""The first run is not over yet."""
UNREADABLE = Stage("skipped", "unreadable")
"""There are lines of text, and none can be read in any orientation; this differs from no text."""


@dataclass(slots=True, eq=False)
class OcrMemory:
    """The text state of one stream. All times are monotonic seconds of the caller's clock."""

    texts: list[Text] = field(default_factory=list)
    """Texts of the last run that succeeded."""
    read_at: float | None = None
    """When the frame of `texts` was offered; None before the first success."""
    asked_at: float | None = None
    """When the frame of the last run, finished or not, was offered."""
    scene: NDArray[np.uint8] | None = None
    """That frame, small and grey."""
    text_cells: NDArray[np.bool_] | None = None
    """The cells of `scene` with `texts` in them."""
    waiting: JpegSource | None = None
    """The queued frame's JPEG, or a function that makes it; None while none is queued."""
    running: bool = False
    unreadable: bool = False
    """Whether the last run that succeeded found lines of text but could read none."""
    problem: str | None = None
    """Why the last run failed; None once one succeeds."""

    @property
    def pending(self) -> bool:
        """Whether a frame of the stream is queued or being read."""
        return self.running or self.waiting is not None

    def ask(self, still: JpegSource, grey: NDArray[np.uint8] | None, now: float) -> None:
        """Queues a frame, in place of the one that is queued."""
        self.waiting = still
        self.asked_at = now
        # The next frame may overwrite the caller's array.
        self.scene = None if grey is None else grey.copy()

    def begin(self) -> JpegSource:
        """Takes the frame from the queue."""
        still, self.waiting, self.running = self.waiting, None, True
        assert still is not None
        return still

    def succeed(self, texts: list[Text], width: int, height: int, *, unreadable: bool = False) -> None:
        """Stores the texts. `width` and `height`: size of the frame that was read, pixels."""
        self.texts, self.read_at = texts, self.asked_at
        self.text_cells = None if self.scene is None else text_cells(texts, width, height, self.scene.shape)
        self.running, self.problem, self.unreadable = False, None, unreadable

    def fail(self, problem: str) -> None:
        """Records that the run failed; drops a queued frame."""
        self.waiting, self.running, self.problem = None, False, problem


def has_changed(memory: OcrMemory, grey: NDArray[np.uint8] | None, *, threshold: float) -> bool:
    """Whether the scene differs from that of the last run: in `threshold` of its cells, or in any cell with text."""
    cells = changed_cells(memory.scene, grey)
    if memory.text_cells is not None and memory.text_cells.shape == cells.shape and (cells & memory.text_cells).any():
        return True
    share = cells.mean()
    return bool(share > 0 and share >= threshold)


def changed_cells(before: NDArray[np.uint8] | None, after: NDArray[np.uint8] | None) -> NDArray[np.bool_]:
    """The cells, `[rows, columns]`, in which CELL_SHARE of the pixels changed by more than PIXEL_STEP.

    Both frames are grey uint8 `[height, width]`. Where they cannot be compared (one is missing, or has another size),
    the result is one changed cell.
    """
    if before is None or after is None or before.shape != after.shape or after.size == 0:
        return np.ones((1, 1), np.bool_)
    _, changed = cv2.threshold(cv2.absdiff(before, after), PIXEL_STEP, 255, cv2.THRESH_BINARY)
    rows, columns = grid(after.shape)
    # The mean of a cell, rounded to a whole level, is the share of its changed pixels.
    return cv2.resize(changed, (columns, rows), interpolation=cv2.INTER_AREA) >= round(255 * CELL_SHARE)


def text_cells(texts: list[Text], width: int, height: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The cells of a grey frame of that shape that the texts touch. `width`, `height`: size of the texts' frame."""
    rows, columns = grid(shape)
    cells = np.zeros((rows, columns), np.bool_)
    for text in texts:
        points = np.array(text.polygon) * (columns / width, rows / height)
        (left, top), (right, bottom) = np.floor(points.min(axis=0)).astype(int), np.ceil(points.max(axis=0)).astype(int)
        cells[top:bottom, left:right] = True
    return cells


def grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Number of rows and columns of cells. Cells at the edges are smaller where the size is no multiple of CELL."""
    return -(-shape[0] // CELL), -(-shape[1] // CELL)


def due(memory: OcrMemory, *, changed: bool, min_interval_s: float, now: float) -> bool:
    """Whether this frame starts a run: none is pending, the interval is over, and the scene changed or a run failed."""
    if memory.pending:
        return False
    if memory.asked_at is None:
        return True
    return now - memory.asked_at >= min_interval_s and (changed or memory.problem is not None)


def stage(memory: OcrMemory, *, changed: bool, now: float) -> Stage:
    """The stage's status for a frame that has `changed` since the last run, or has not."""
    if memory.problem is not None:
        return Stage("error", memory.problem)
    if memory.read_at is None:
        return RUNNING
    age_ms = round((now - memory.read_at) * 1000.0, 1)
    if memory.pending:
        return Stage("stale", "running", age_ms)
    if changed:
        return Stage("stale", "throttled", age_ms)
    return UNREADABLE if memory.unreadable else Stage("ok")
