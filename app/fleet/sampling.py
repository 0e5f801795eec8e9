"""How many frames of a camera are taken: as many as wanted, fewer while nobody keeps up with them."""

from __future__ import annotations

from app.settings import IngestSettings

CALM = 0.1
"""Share of INGEST_MAXLEN up to which a stream's lag is that of readers who keep up."""
FULL = 0.9
"""Share from which Redis is about to drop frames: a lag that cannot grow any more counts as growing."""
_LESS, _MORE = 0.75, 1.25
_BURST = 1.5
"""Frames that may come at once: those of a steady source jitter around their times."""


def adapt(fps: float, lag: int | None, before: int | None, settings: IngestSettings) -> float:
    """Frames a second from now on, given those in force and the stream's lag at the last two looks.

    INGEST_FPS while readers keep up; INGEST_BUSY_FPS once they lag; down to INGEST_MIN_FPS while the lag grows; and up
    again, a quarter more at every look. An unknown lag (no reader yet, Redis away) changes nothing.
    """
    if lag is None:
        return fps
    most = settings.ingest_fps
    busy = min(settings.ingest_busy_fps, most)
    least = min(settings.ingest_min_fps, busy)
    if lag <= CALM * settings.ingest_maxlen:
        return min(most, fps * _MORE)
    if fps > busy:
        return busy
    if lag > (before or 0) or lag >= FULL * settings.ingest_maxlen:
        return max(least, fps * _LESS)
    return fps


class Sampler:
    """Which frames of one source to take, so that `fps` come out a second of its own clock: a token bucket."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        """May be set at any time; holds from the next frame on."""
        self._credit = 1.0
        self._last_s: float | None = None

    def takes(self, at_s: float) -> bool:
        """Whether the frame shown at this moment is taken. Seconds on the source's clock; set back, it costs nothing.

        Not when a frame arrives: networks and playlists deliver seconds of frames at once.
        """
        elapsed = 0.0 if self._last_s is None else max(0.0, at_s - self._last_s)
        self._last_s = at_s
        self._credit = min(_BURST, self._credit + elapsed * self.fps)
        # Thirty times 1/30 is a little under one.
        if self._credit < 1 - 1e-6:
            return False
        self._credit -= 1
        return True
