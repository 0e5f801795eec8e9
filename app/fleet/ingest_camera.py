"""One source's thread: opens it, takes pictures at the pace wanted, and opens it again when it is lost."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Literal

from app import metrics
from app.fleet.ingest_media import Shot, SourceLost, shots
from app.fleet.ingest_outbox import Outbox, Outgoing
from app.fleet.sampling import Sampler
from app.fleet.sources import Source
from app.settings import IngestSettings

log = logging.getLogger(__name__)

State = Literal["connecting", "running", "retrying", "ended"]
STATES: tuple[State, ...] = ("connecting", "running", "retrying", "ended")
_FIRST_PAUSE_S = 0.5
_LEFT_OUT = metrics.INGEST_FRAMES.labels("sampled_out")
_UNDECODABLE = metrics.INGEST_FRAMES.labels("undecodable")


class Camera:
    """A source being read. Its thread ends with `stop`, or when a recording that does not loop is over."""

    def __init__(self, source: Source, settings: IngestSettings, outbox: Outbox) -> None:
        self.source = source
        self.sampler = Sampler(settings.ingest_fps)
        self.state: State = "connecting"
        self.problem = ""
        """Why it is being tried again."""
        self.taken = 0
        """Frames handed to the outbox."""
        self.lag: int | None = None
        """Of its stream, at the last look; None: nobody reads it, or nobody could say."""
        self._settings = settings
        self._outbox = outbox
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
            except SourceLost as error:
                self._lost(str(error))
            except Exception as error:  # whatever a codec does must not end the camera's thread unseen
                log.exception("source %s (%s) failed", name, shown)
                self._lost(f"{shown}: {type(error).__name__}: {error}")
            if self.taken > before and time.monotonic() - began > pause_s:
                pause_s = _FIRST_PAUSE_S  # it worked for a while
            # Half of it by chance: a switch that comes back is not met by all its cameras at once.
            self._stopping.wait(pause_s * self._random.uniform(0.5, 1))
            pause_s = min(self._settings.ingest_reconnect_max_s, pause_s * 2)
            metrics.INGEST_RECONNECTS.inc()

    def _lost(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("source %s is lost, and tried again: %s", self.source.camera_id, problem)
        self.state, self.problem = "retrying", problem

    def _play(self) -> None:
        started: float | None = None
        for shot in shots(self.source, 1 / self._settings.ingest_fps):
            now = time.monotonic()
            started = now if started is None else started
            # A recording's frames are due one after the other; what is live is due now.
            due = now if shot.at_s is None else started + shot.at_s
            if self._stopping.wait(max(0.0, due - now)) if due > now else self._stopping.is_set():
                return
            if self.problem:
                log.info("source %s is back", self.source.camera_id)
            self.state, self.problem = "running", ""
            if self.sampler.takes(due):
                self._take(shot)
            else:
                _LEFT_OUT.inc()

    def _take(self, shot: Shot) -> None:
        captured_at_ms = time.time() * 1000
        try:
            jpeg = shot.encoded(self._settings.ingest_jpeg_quality)
        except ValueError:
            _UNDECODABLE.inc()
            return
        self.taken += 1
        self._outbox.put(Outgoing(self.source.camera_id, self.source.camera_type, jpeg, captured_at_ms))
