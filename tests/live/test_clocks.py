"""When a session has lasted long enough."""

from __future__ import annotations

from app.live.clocks import Clocks
from app.settings import LiveSettings

LIVE = LiveSettings(idle_timeout_s=120, max_pause_s=600, max_session_s=3600)


def test_a_pause_in_line_counts_from_the_slot_on() -> None:
    """A page that was hidden while it waited holds no slot; it has the whole pause once it does."""
    clocks = Clocks(LIVE, 0.0)
    clocks.pause(5.0)
    assert clocks.over(700.0) is None
    clocks.serve(700.0)
    assert clocks.over(700.5) is None
    assert clocks.over(1299.0) is None
    assert clocks.over(1301.0) == ("idle", "paused for more than 600 seconds")


def test_one_who_came_back_before_its_turn_must_send_frames() -> None:
    clocks = Clocks(LIVE, 0.0)
    clocks.pause(5.0)
    clocks.resume(10.0)
    clocks.serve(700.0)
    assert clocks.over(819.0) is None
    assert clocks.over(821.0) == ("idle", "no frame for 120 seconds")


def test_a_second_pause_does_not_lengthen_the_first() -> None:
    clocks = Clocks(LIVE, 0.0)
    clocks.serve(0.0)
    clocks.pause(10.0)
    clocks.pause(500.0)
    assert clocks.over(609.0) is None
    assert clocks.over(611.0) is not None
