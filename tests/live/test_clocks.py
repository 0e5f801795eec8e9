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


def test_a6_resume_without_a_pause_changes_nothing() -> None:
    clocks = Clocks(LIVE, 0.0)
    clocks.serve(0.0)
    for second in range(1, 120):
        clocks.resume(float(second))
    assert clocks.over(119.0) is None
    assert clocks.over(121.0) == ("idle", "no frame for 120 seconds")


def test_a6_pause_and_resume_over_and_over_keep_no_slot() -> None:
    clocks = Clocks(LIVE, 0.0)
    clocks.serve(0.0)
    now = 0.0
    while clocks.over(now) is None:
        clocks.pause(now)
        clocks.resume(now + 0.5)
        now += 1.0
        assert now < 300.0
    assert clocks.over(now) == ("idle", "no frame for 120 seconds")
    assert now > 200.0  # half of the time it was paused


def test_a6_pauses_share_one_budget() -> None:
    """Frames between them or not: a session holds its slot unused for MAX_PAUSE_S in all."""
    clocks = Clocks(LIVE, 0.0)
    clocks.serve(0.0)
    now = 0.0
    for _ in range(5):
        clocks.pause(now)
        now += 119.0
        assert clocks.over(now) is None
        clocks.resume(now)
        clocks.frame(now)
    clocks.pause(now)
    assert clocks.over(now + 4.0) is None
    assert clocks.over(now + 6.0) == ("idle", "paused for more than 600 seconds")


def test_a6_the_idle_clock_goes_on_from_where_it_stood() -> None:
    clocks = Clocks(LIVE, 0.0)
    clocks.serve(0.0)
    clocks.frame(10.0)
    clocks.pause(50.0)
    clocks.resume(150.0)  # 40 of 120 seconds are gone
    assert clocks.over(229.0) is None
    assert clocks.over(231.0) is not None
    clocks = Clocks(LIVE, 0.0)
    clocks.serve(0.0)
    clocks.pause(50.0)
    clocks.frame(100.0)  # in the pause, which goes on
    clocks.resume(200.0)
    assert clocks.over(319.0) is None
    assert clocks.over(321.0) is not None


def test_a6_frames_that_are_no_pictures_keep_no_slot() -> None:
    clocks = Clocks(LIVE, 0.0)
    clocks.serve(0.0)
    clocks.frame(1.0)
    clocks.judged(False, 1.1)
    for second in range(2, 121):
        clocks.frame(float(second))
        clocks.judged(False, second + 0.1)
    assert clocks.over(122.0) == ("idle", "no frame for 120 seconds")
    clocks.judged(True, 122.0)  # one was a picture
    clocks.frame(150.0)
    assert clocks.over(269.0) is None
