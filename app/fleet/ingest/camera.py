"""One camera's thread: it opens the source, samples frames at the wanted rate, and reopens a source that is lost."""

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
from app.fleet.ingest.outbox import Outbox, OutgoingFrame
from app.fleet.ingest.sources import CameraSource
from app.limits import Latch, backoff_s
from app.logging import CAMERA_ID
from app.settings import IngestSettings
from app.sources.reader import MAX_PIXELS, Reader, ReadLimits, SourceError, SourceFrame, SourceLost, open_source, played

log = logging.getLogger(__name__)

State = Literal["connecting", "running", "retrying", "ended"]
STATES: tuple[State, ...] = ("connecting", "running", "retrying", "ended")
_FIRST_PAUSE_S = 0.5
_LATE_S = 2.0
"""A recording that is further behind than this continues from its current frame; it does not rush through the rest."""
_STARVED_S = 2.0
"""After this long without a frame, the next live frame is taken regardless of the camera's own clock."""
_LEFT_OUT = metrics.INGEST_FRAMES.labels("sampled_out")
_UNDECODABLE = metrics.INGEST_FRAMES.labels("undecodable")

KEEPS_UP = 0.1
"""Share of INGEST_MAXLEN up to which a stream's lag means that its readers keep up."""
FULL = 0.9
"""Share of INGEST_MAXLEN from which a lag counts as growing, because at MAXLEN it cannot grow any more."""
_LESS, _MORE = 0.75, 1.25
_BURST = 1.5
"""Frames that may be taken at once, because the frames of a steady source jitter around their times."""


class IngestCamera:
    """A source being read. Its thread ends after `stop`, or at the end of a recording that does not loop."""

    def __init__(
        self, source: CameraSource, settings: IngestSettings, outbox: Outbox, *, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.source = source
        if source.options.fps is not None:
            settings = settings.model_copy(update={"ingest_fps": source.options.fps})
        self.settings = settings
        """This source's settings: its own `fps` replaces INGEST_FPS."""
        self.sampler = Sampler(settings.ingest_fps)
        self._limits = ReadLimits(max_pixels=max_pixels, image_s=1 / settings.ingest_fps)
        self.state: State = "connecting"
        self.problem = ""
        """Why the source is being reopened."""
        self.taken = 0
        """Frames handed to the outbox."""
        self.lag: int | None = None
        """The last known lag of its stream; None: no group reads it, or the lag is unknown."""
        self._outbox = outbox
        self._damage = Latch()
        self._stopping = threading.Event()
        self._random = random.Random()
        self._thread = threading.Thread(target=self._run, name=f"ingest-{source.camera_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end; returns at once."""
        self._stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread; returns whether it ended in time. A thread that is reading ends after that read."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        failures, name, shown = 0, self.source.camera_id, self.source.shown
        CAMERA_ID.set(name)
        while not self._stopping.is_set():
            began, before = time.monotonic(), self.taken
            try:
                self._play()
                self.state, self.problem = "ended", ""
                return
            except SourceError as error:
                self._lost(str(error))
            except Exception as error:  # an unexpected error of a codec must not end the thread silently
                # The traceback may contain the address with its secrets.
                trace = "".join(traceback.format_exception(error))
                log.error("source %s (%s) failed\n%s", name, shown, self.source.place.redact(trace))
                self._lost(f"{shown}: {type(error).__name__}: {self.source.place.redact(str(error))}")
            if self.taken > before and time.monotonic() - began > self._pause_s(failures + 1):
                failures = 0  # it worked for a while
            failures += 1
            # Half of the pause is random, so that the cameras behind one switch do not all reconnect at the same
            # moment.
            self._stopping.wait(self._pause_s(failures) * self._random.uniform(0.5, 1))
            metrics.INGEST_RECONNECTS.inc()

    def _pause_s(self, failures: int) -> float:
        return backoff_s(failures, _FIRST_PAUSE_S, self.settings.ingest_reconnect_max_s)

    def _lost(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("source %s is lost, and is opened again: %s", self.source.camera_id, problem)
        self.state, self.problem = "retrying", problem

    def _play(self) -> None:
        began: float | None = None
        taken_at = -math.inf
        for reader, frame in self._frames():
            now = time.monotonic()
            at_s = float(frame.at)
            # Frames of a recording, or frames that arrive seconds at once, are due at their own times; a live frame is
            # due now.
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
                self._take(frame)
            else:
                _LEFT_OUT.inc()

    def _frames(self) -> Iterator[tuple[Reader, SourceFrame]]:
        """The source's frames, over and over if it loops.

        Raises:
            SourceError: the source cannot be opened or read, is empty, or is live and has ended.
        """
        reader: Reader | None = None
        for reader, frame in played(self._open, again=self.source.loop):
            yield reader, frame
        if reader is None:
            raise SourceLost(f"{self.source.shown}: it contains no frame")
        if reader.pace != "recorded":
            raise SourceLost(f"{self.source.shown}: it ended")

    def _open(self) -> Reader:
        self._damage.ends()
        return open_source(self.source.place, self.source.options, self._limits, self._damaged)

    def _damaged(self, problem: str, code: str) -> None:
        metrics.INGEST_FRAMES.labels(code).inc()
        if self._damage.begins("damaged"):
            log.warning("source %s: %s (only the first is logged)", self.source.camera_id, problem)

    def _take(self, frame: SourceFrame) -> None:
        captured_at_ms = time.time() * 1000
        try:
            jpeg = frame.encoded(self.settings.ingest_jpeg_quality)
        except ValueError:
            _UNDECODABLE.inc()
            return
        self.taken += 1
        self._outbox.put(OutgoingFrame(self.source.camera_id, self.source.camera_type, jpeg, captured_at_ms))


# --- sampling ---


def adapt_rate(fps: float, lag: int | None, lag_before: int | None, settings: IngestSettings) -> float:
    """The next sampling rate (frames per second), from the current rate and the stream's last two lags.

    It is INGEST_FPS while readers keep up, INGEST_BUSY_FPS once they lag, falls to INGEST_MIN_FPS while the lag grows,
    and rises again by a quarter at each call. An unknown lag (the stream has no reader yet, or Redis is unreachable)
    changes nothing.
    """
    if lag is None:
        return fps
    most = settings.ingest_fps
    busy = min(settings.ingest_busy_fps, most)
    least = min(settings.ingest_min_fps, busy)
    if lag <= KEEPS_UP * settings.ingest_maxlen:
        return min(most, fps * _MORE)
    if fps > busy:
        return busy
    if lag > (lag_before or 0) or lag >= FULL * settings.ingest_maxlen:
        return max(least, fps * _LESS)
    return fps


class Sampler:
    """A token bucket on the source's own clock: selects `fps` of its frames per second."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        """May be set at any time; applies from the next frame on."""
        self._credit = 1.0
        self._last_s: float | None = None

    def takes(self, at_s: float) -> bool:
        """Whether to take the frame shown at `at_s`, in seconds on the source's clock. A clock set back costs nothing.

        The time of arrival does not count, because networks and playlists deliver seconds of frames at once.
        """
        elapsed = 0.0 if self._last_s is None else max(0.0, at_s - self._last_s)
        self._last_s = at_s
        self._credit = min(_BURST, self._credit + elapsed * self.fps)
        # Thirty times 1/30 is slightly less than one.
        if self._credit < 1 - 1e-6:
            return False
        self._credit -= 1
        return True
