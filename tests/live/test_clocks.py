"""When a session has lasted long enough."""

from __future__ import annotations

from app.live.session import Timeouts
from app.settings import LiveSettings

LIVE = LiveSettings(idle_timeout_s=120, max_pause_s=600, max_session_s=3600)


def test_a_pause_in_line_counts_from_the_slot_on() -> None:
    """A page that was hidden while it waited holds no slot; it has the whole pause once it does."""
    timeouts = Timeouts(LIVE, 0.0)
    timeouts.pause(5.0)
    assert timeouts.over(700.0) is None
    timeouts.serve(700.0)
    assert timeouts.over(700.5) is None
    assert timeouts.over(1299.0) is None
    assert timeouts.over(1301.0) == ("idle", "paused for more than 600 seconds")


def test_one_who_came_back_before_its_turn_must_send_frames() -> None:
    timeouts = Timeouts(LIVE, 0.0)
    timeouts.pause(5.0)
    timeouts.resume(10.0)
    timeouts.serve(700.0)
    assert timeouts.over(819.0) is None
    assert timeouts.over(821.0) == ("idle", "no frame for 120 seconds")


def test_a_second_pause_does_not_lengthen_the_first() -> None:
    timeouts = Timeouts(LIVE, 0.0)
    timeouts.serve(0.0)
    timeouts.pause(10.0)
    timeouts.pause(500.0)
    assert timeouts.over(609.0) is None
    assert timeouts.over(611.0) is not None


def test_a6_resume_without_a_pause_changes_nothing() -> None:
    timeouts = Timeouts(LIVE, 0.0)
    timeouts.serve(0.0)
    for second in range(1, 120):
        timeouts.resume(float(second))
    assert timeouts.over(119.0) is None
    assert timeouts.over(121.0) == ("idle", "no frame for 120 seconds")


def test_a6_pause_and_resume_over_and_over_keep_no_slot() -> None:
    timeouts = Timeouts(LIVE, 0.0)
    timeouts.serve(0.0)
    now = 0.0
    while timeouts.over(now) is None:
        timeouts.pause(now)
        timeouts.resume(now + 0.5)
        now += 1.0
        assert now < 300.0
    assert timeouts.over(now) == ("idle", "no frame for 120 seconds")
    assert now > 200.0  # half of the time it was paused


def test_a6_pauses_share_one_budget() -> None:
    """Frames between them or not: a session holds its slot unused for MAX_PAUSE_S in all."""
    timeouts = Timeouts(LIVE, 0.0)
    timeouts.serve(0.0)
    now = 0.0
    for _ in range(5):
        timeouts.pause(now)
        now += 119.0
        assert timeouts.over(now) is None
        timeouts.resume(now)
        timeouts.frame(now)
    timeouts.pause(now)
    assert timeouts.over(now + 4.0) is None
    assert timeouts.over(now + 6.0) == ("idle", "paused for more than 600 seconds")


def test_a6_the_idle_clock_goes_on_from_where_it_stood() -> None:
    timeouts = Timeouts(LIVE, 0.0)
    timeouts.serve(0.0)
    timeouts.frame(10.0)
    timeouts.pause(50.0)
    timeouts.resume(150.0)  # 40 of 120 seconds are gone
    assert timeouts.over(229.0) is None
    assert timeouts.over(231.0) is not None
    timeouts = Timeouts(LIVE, 0.0)
    timeouts.serve(0.0)
    timeouts.pause(50.0)
    timeouts.frame(100.0)  # in the pause, which goes on
    timeouts.resume(200.0)
    assert timeouts.over(319.0) is None
    assert timeouts.over(321.0) is not None


def test_a6_frames_that_are_no_pictures_keep_no_slot() -> None:
    timeouts = Timeouts(LIVE, 0.0)
    timeouts.serve(0.0)
    timeouts.frame(1.0)
    timeouts.judged(False, 1.1)
    for second in range(2, 121):
        timeouts.frame(float(second))
        timeouts.judged(False, second + 0.1)
    assert timeouts.over(122.0) == ("idle", "no frame for 120 seconds")
    timeouts.judged(True, 122.0)  # one was a image
    timeouts.frame(150.0)
    assert timeouts.over(269.0) is None
