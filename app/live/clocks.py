"""When a session has lasted long enough. Pure: the caller brings the time."""

from __future__ import annotations

from app.protocol.messages import ByeReason
from app.settings import LiveSettings


class Clocks:
    """A session's clocks; `now` is monotonic seconds everywhere.

    Only a frame says that a session is of use, and pauses share MAX_PAUSE_S: what else a client sends keeps no slot.
    """

    def __init__(self, live: LiveSettings, now: float) -> None:
        self._live = live
        self._started = self._last_frame = now
        self._next_ping = now + live.ping_interval_s
        self._paused_at: float | None = None
        self._paused_s = 0.0
        """Seconds of the pauses that are over, since the session has its slot."""
        self._serving = False
        self._useful = True
        """Whether the last frame that was judged could be used."""

    def serve(self, now: float) -> None:
        """The session has its slot: from now on it must send frames. A pause in line did not hold one."""
        self._serving = True
        self._last_frame = now
        self._paused_s = 0.0
        if self._paused_at is not None:
            self._paused_at = now

    def frame(self, now: float) -> None:
        """A frame came; one that comes in a pause does not end it. After one that was of no use, the next is judged
        before it counts.
        """
        if self._useful:
            self._last_frame = now

    def judged(self, useful: bool, now: float) -> None:
        """A frame got its result, or was none: no picture, or more of one than is taken."""
        self._useful = useful
        if useful:
            self._last_frame = now

    def pause(self, now: float) -> None:
        """The idle clock stops. A second pause does not lengthen the first."""
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """The idle clock goes on from where it stood; without a pause nothing changes."""
        if self._paused_at is not None:
            paused_s = now - self._paused_at
            self._paused_s += paused_s
            self._last_frame += min(paused_s, now - self._last_frame)  # a frame that came meanwhile counts from then
            self._paused_at = None

    def ping_due(self, now: float) -> bool:
        """Whether a `ping` is due; then the next one is an interval from now."""
        due = now >= self._next_ping
        if due:
            self._next_ping = now + self._live.ping_interval_s
        return due

    def over(self, now: float) -> tuple[ByeReason, str] | None:
        """Why the session ends now, and in words; None while it may go on."""
        live = self._live
        if now - self._started > live.max_session_s:
            return "max_session", f"sessions last {live.max_session_s:g} seconds at most"
        if not self._serving:
            return None
        if self._paused_at is not None:
            if self._paused_s + now - self._paused_at > live.max_pause_s:
                return "idle", f"paused for more than {live.max_pause_s:g} seconds"
        elif now - self._last_frame > live.idle_timeout_s:
            return "idle", f"no frame for {live.idle_timeout_s:g} seconds"
        return None
