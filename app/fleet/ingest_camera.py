"""One source's thread: opens it, takes pictures at the pace wanted, and opens it again when it is lost."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Literal

from app import metrics
from app.fleet.ingest_outbox import Outbox, Outgoing
from app.fleet.sampling import Sampler
from app.fleet.sources import Source
from app.settings import IngestSettings
from app.sources.reader import MAX_PIXELS, Limits, Reader, Shot, SourceError, SourceLost, open_source, played

log = logging.getLogger(__name__)

State = Literal["connecting", "running", "retrying", "ended"]
STATES: tuple[State, ...] = ("connecting", "running", "retrying", "ended")
_FIRST_PAUSE_S = 0.5
_LATE_S = 2.0
"""A recording that is so far behind goes on from where it is: what was missed is not rushed through."""
_STARVED_S = 2.0
"""A live frame is taken after so long without one, whatever the camera's own clock says."""
_LEFT_OUT = metrics.INGEST_FRAMES.labels("sampled_out")
_UNDECODABLE = metrics.INGEST_FRAMES.labels("undecodable")


class Camera:
    """A source being read. Its thread ends with `stop`, or when a recording that does not loop is over."""

    def __init__(
        self, source: Source, settings: IngestSettings, outbox: Outbox, *, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.source = source
        if source.options.fps is not None:
            settings = settings.model_copy(update={"ingest_fps": source.options.fps})
        self.settings = settings
        """As they are for this source: its own `fps` in place of INGEST_FPS."""
        self.sampler = Sampler(settings.ingest_fps)
        self._limits = Limits(max_pixels=max_pixels, picture_s=1 / settings.ingest_fps)
        self.state: State = "connecting"
        self.problem = ""
        """Why it is being tried again."""
        self.taken = 0
        """Frames handed to the outbox."""
        self.lag: int | None = None
        """Of its stream, at the last look; None: nobody reads it, or nobody could say."""
        self._outbox = outbox
        self._damage_said = False
        self._stopping = threading.Event()
        self._random = random.Random()
        self._thread = threading.Thread(target=self._run, name=f"ingest-{source.camera_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks it to end; returns at once."""
        self._stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Whether the thread ended in time. One that waits for its source's data ends with that wait."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause_s, name, shown = _FIRST_PAUSE_S, self.source.camera_id, self.source.shown
        while not self._stopping.is_set():
            began, before = time.monotonic(), self.taken
            try:
                self._play()
                self.state, self.problem = "ended", ""
                return
            except SourceError as error:
                self._lost(str(error))
            except Exception as error:  # whatever a codec does must not end the camera's thread unseen
                # The trace may name the address as it is.
                trace = "".join(traceback.format_exception(error))
                log.error("source %s (%s) failed\n%s", name, shown, self.source.place.redact(trace))
                self._lost(f"{shown}: {type(error).__name__}: {self.source.place.redact(str(error))}")
            if self.taken > before and time.monotonic() - began > pause_s:
                pause_s = _FIRST_PAUSE_S  # it worked for a while
            # Half of it by chance: a switch that comes back is not met by all its cameras at once.
            self._stopping.wait(pause_s * self._random.uniform(0.5, 1))
            pause_s = min(self.settings.ingest_reconnect_max_s, pause_s * 2)
            metrics.INGEST_RECONNECTS.inc()

    def _lost(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("source %s is lost, and tried again: %s", self.source.camera_id, problem)
        self.state, self.problem = "retrying", problem

    def _play(self) -> None:
        began: float | None = None
        taken_at = -math.inf
        for reader, shot in self._shots():
            now = time.monotonic()
            at_s = float(shot.at)
            # A recording's frames are due one after the other, and so are those that come seconds at once; what is live
            # is due now.
            if began is None or now - began - at_s > _LATE_S:
                began = now - at_s
            due = now if reader.pace == "live" else began + at_s
            if self._stopping.wait(max(0.0, due - now)) if due > now else self._stopping.is_set():
                return
            if self.problem:
                log.info("source %s is back", self.source.camera_id)
            self.state, self.problem = "running", ""
            starved = reader.pace == "live" and now - taken_at > max(_STARVED_S, 2 / self.sampler.fps)
            if self.sampler.takes(at_s) or starved:
                taken_at = now
                self._take(shot)
            else:
                _LEFT_OUT.inc()

    def _shots(self) -> Iterator[tuple[Reader, Shot]]:
        """The source's pictures, over and over where it loops.

        Raises:
            SourceError: it cannot be opened or read, holds nothing, or is live and came to its end.
        """
        reader: Reader | None = None
        for reader, shot in played(self._open, again=self.source.loop):
            yield reader, shot
        if reader is None:
            raise SourceLost(f"{self.source.shown}: no picture in it")
        if reader.pace != "recorded":
            raise SourceLost(f"{self.source.shown}: it ended")

    def _open(self) -> Reader:
        self._damage_said = False
        return open_source(self.source.place, self.source.options, self._limits, self._damaged)

    def _damaged(self, problem: str, code: str) -> None:
        metrics.INGEST_FRAMES.labels(code).inc()
        if not self._damage_said:
            log.warning("source %s: %s (said of the first only)", self.source.camera_id, problem)
        self._damage_said = True

    def _take(self, shot: Shot) -> None:
        captured_at_ms = time.time() * 1000
        try:
            jpeg = shot.encoded(self.settings.ingest_jpeg_quality)
        except ValueError:
            _UNDECODABLE.inc()
            return
        self.taken += 1
        self._outbox.put(Outgoing(self.source.camera_id, self.source.camera_type, jpeg, captured_at_ms))
