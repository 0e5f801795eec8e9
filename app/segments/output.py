"""Where an analysed film goes: its results, and the film drawn on. The work of one thread."""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

from app import metrics
from app.protocol.result import FrameResult
from app.segments.annotate import annotate
from app.segments.blur import Faces
from app.segments.footage import Footage
from app.segments.keys import Mode
from app.segments.recording import Recording
from app.segments.reel import DOOR, Shot
from app.segments.results import Results
from app.segments.sheet import Sheet

log = logging.getLogger(__name__)

Found = FrameResult | Exception
"""What the pipeline gave for a frame, or why it gave nothing."""


class Output:
    """Takes every frame of a film, in order, and counts what became of it.

    Args:
        lines: file for the results.
        picture: file for the film; None: none is written.
    """

    def __init__(self, lines: Path, picture: Path | None, film: Footage, mode: Mode) -> None:
        self._stack = ExitStack()
        self._results = Results(self._stack.enter_context(lines.open("wb")))
        self._recording = None if picture is None else Recording(picture, film)
        self._faces = Faces() if mode == "blur_faces" else None
        self._shots: deque[Shot] = deque()
        """Whose sheets are not written yet: faces that are still to be found may have to be hidden in them, too."""
        self._complete = False
        self.frames = self.failed = 0
        self.until: Fraction = film.position.start
        """When the last frame is shown, seconds of the whole film."""
        self.last_error: Exception | None = None

    def write(self, shots: list[Shot], found: list[Found]) -> None:
        """Writes the next frames."""
        for shot, one in zip(shots, found, strict=True):
            self._results.write(shot, one)
            if self._recording is not None:
                self._record(self._recording, shot, one)
            self.frames += 1
            self.until = shot.at
            if isinstance(one, FrameResult):
                metrics.FRAMES_PROCESSED.labels(DOOR).inc()
            else:
                self._failed(shot, one)

    def complete(self) -> None:
        """All frames are here: what is left of them and of the sound is written, and the files are ended."""
        if self._recording is not None and self._faces is not None:
            for sheet in self._faces.rest():
                self._recording.write(sheet, self._shots.popleft())
        self._complete = True
        self.close()

    def close(self) -> None:
        """Ends the files as they are."""
        recording, self._recording = self._recording, None
        if recording is not None:
            self._stack.callback(recording.close, complete=self._complete)
        self._stack.close()

    def _record(self, recording: Recording, shot: Shot, found: Found) -> None:
        clock = time.perf_counter()
        sheets = [sheet := Sheet(shot.frame, shot.turn)]
        if self.frames:
            shot.frame = None  # only the first is asked for its colours
        self._shots.append(shot)
        result = found if isinstance(found, FrameResult) else None
        if self._faces is not None:
            sheets = self._faces.hide(sheet, result, float(shot.at))
        elif result is not None:
            annotate(sheet, result)
        drawn = time.perf_counter()
        for one in sheets:
            recording.write(one, self._shots.popleft())
        metrics.STAGE_SECONDS.labels(DOOR, "draw").observe(drawn - clock)
        metrics.STAGE_SECONDS.labels(DOOR, "encode").observe(time.perf_counter() - drawn)

    def _failed(self, shot: Shot, error: Exception) -> None:
        metrics.FRAMES_FAILED.labels(DOOR, "pipeline").inc()
        if not self.failed:
            log.warning("frame %d of the film could not be analysed (said of the first only): %s", shot.number, error)
        self.failed += 1
        self.last_error = error
