"""The sampling rate of ingest: the full rate, and a lower one while the stream's lag grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.fleet.ingest import Sampler, adapt_rate
from app.settings import IngestSettings

SETTINGS = IngestSettings(ingest_fps=30, ingest_busy_fps=15, ingest_min_fps=1, ingest_maxlen=100)


def looks(fps: float, *lags: int | None) -> list[float]:
    """The rate (frames a second) after each look at the lag."""
    found, before = [], None
    for lag in lags:
        fps = adapt_rate(fps, lag, before, SETTINGS)
        found.append(round(fps, 2))
        before = lag
    return found


def test_full_rate_while_readers_keep_up() -> None:
    assert looks(30, 0, 3, 10, 0) == [30, 30, 30, 30]


def test_half_the_rate_once_they_lag_then_less_while_the_lag_grows() -> None:
    assert looks(30, 20, 25, 30, 40) == [15, 11.25, 8.44, 6.33]


def test_a_lag_that_stays_or_shrinks_holds_the_rate() -> None:
    assert looks(30, 20, 20, 18, 15) == [15, 15, 15, 15]


def test_a_full_stream_counts_as_a_growing_lag() -> None:
    assert looks(8, 100, 100, 95) == [6, 4.5, 3.38]


def test_it_never_falls_below_the_least() -> None:
    assert looks(30, *range(20, 100))[-1] == 1


def test_it_rises_again_by_a_quarter_a_look_up_to_the_full_rate() -> None:
    assert looks(12, 0, 0, 0, 0, 0, 0) == [15, 18.75, 23.44, 29.3, 30, 30]


def test_an_unknown_lag_changes_nothing() -> None:
    assert looks(7, None, None) == [7, 7]


def test_a_busy_rate_over_the_full_one_is_the_full_one() -> None:
    settings = IngestSettings(ingest_fps=5, ingest_busy_fps=15, ingest_min_fps=8)
    assert adapt_rate(5, 50, 50, settings) == 5
    assert adapt_rate(5, 60, 50, settings) == 5


@given(fps=st.floats(1, 30), lag=st.integers(0, 300), before=st.none() | st.integers(0, 300))
def test_the_rate_stays_within_its_bounds(fps: float, lag: int, before: int | None) -> None:
    assert 1 <= adapt_rate(fps, lag, before, SETTINGS) <= 30


@pytest.mark.parametrize(("source_fps", "wanted", "taken"), [(30, 30, 300), (25, 30, 250), (30, 15, 150), (60, 1, 10)])
def test_a_steady_source_gives_the_wanted_rate_or_its_own(source_fps: int, wanted: float, taken: int) -> None:
    sampler = Sampler(wanted)
    found = sum(sampler.takes(number / source_fps) for number in range(10 * source_fps))
    assert abs(found - taken) <= 1


@given(gaps=st.lists(st.floats(0, 2), min_size=1, max_size=200), fps=st.floats(1, 60))
def test_never_more_than_the_rate_allows_however_frames_come(gaps: list[float], fps: float) -> None:
    sampler, at, taken = Sampler(fps), 0.0, 0
    for gap in gaps:
        at += gap
        taken += sampler.takes(at)
    assert taken <= at * fps + 1.5


def test_frames_in_even_steps_are_taken_in_even_steps() -> None:
    sampler = Sampler(10)
    assert [number for number in range(30) if sampler.takes(number / 30)] == list(range(0, 30, 3))


def test_a_clock_set_back_stops_nothing() -> None:
    sampler = Sampler(10)
    taken = [sampler.takes(at) for at in (100.0, 0.0, 0.1, 0.2)]
    assert taken == [True, False, True, True]


def test_a_new_rate_holds_from_the_next_frame_on() -> None:
    sampler = Sampler(30)
    first = sum(sampler.takes(number / 30) for number in range(30))
    sampler.fps = 5
    assert (first, sum(sampler.takes(1 + number / 30) for number in range(30))) == (30, 5)
