"""The interval between two summaries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings import SummarySettings
from app.summary.session import SummarySchedule, interval_s

BOUNDS = {"least_s": 5.0, "most_s": 60.0}
WELL = {"failures": 0, "answer_s": 0.0}


@pytest.mark.parametrize(("pressure", "seconds"), [(0.0, 60.0), (0.25, 32.5), (0.5, 5.0), (1.0, 5.0)])
def test_more_that_waits_is_told_sooner(pressure, seconds):
    assert interval_s(pressure, **WELL, **BOUNDS) == seconds


@pytest.mark.parametrize(("failures", "seconds"), [(0, 5.0), (1, 10.0), (2, 20.0), (3, 40.0), (4, 60.0), (900, 60.0)])
def test_every_failure_in_a_row_doubles_it_however_much_waits(failures, seconds):
    assert interval_s(1.0, failures=failures, answer_s=0.0, **BOUNDS) == seconds


def test_a_slow_model_is_left_alone_for_twice_as_long_as_it_took():
    assert interval_s(1.0, failures=0, answer_s=9.0, **BOUNDS) == 18.0
    assert interval_s(1.0, failures=0, answer_s=90.0, **BOUNDS) == 60.0


def test_a_longest_below_the_shortest_is_the_shortest():
    assert interval_s(0.0, **WELL, least_s=10.0, most_s=2.0) == 10.0


@given(
    st.floats(0, 1), st.floats(0, 1), st.integers(0, 50), st.floats(0, 600), st.floats(0.01, 100), st.floats(0.01, 1000)
)
def test_it_keeps_its_bounds_and_never_grows_with_what_waits(less, more, failures, answer_s, least_s, most_s):
    less, more = sorted((less, more))
    rest = {"failures": failures, "answer_s": answer_s, "least_s": least_s, "most_s": most_s}
    assert least_s <= interval_s(more, **rest) <= interval_s(less, **rest) <= max(least_s, most_s)


def pace():
    return SummarySchedule(SummarySettings(summary_min_interval_s=5, summary_max_interval_s=60), now=100)


def test_the_first_summary_comes_as_soon_as_any_may_after_something_was_seen():
    rate = pace()
    assert not rate.due(1000, 1.0)
    rate.observed(1000)
    rate.observed(1004)
    assert [rate.due(1004.9, 0.0), rate.due(1005, 0.0)] == [False, True]


def test_the_next_waits_for_the_interval_which_shrinks_while_things_gather():
    rate = pace()
    rate.observed(100)
    rate.emptied()
    rate.summarized(105)
    assert not rate.due(1000, 0.0)  # nothing was seen since
    rate.observed(106)
    assert [rate.due(130, 0.0), rate.due(130, 0.4), rate.due(165, 0.0)] == [False, True, True]


def test_what_was_seen_after_a_long_quiet_is_told_as_a_scene_not_as_its_first_moment():
    rate = pace()
    rate.summarized(105)
    rate.observed(900)
    assert [rate.due(901, 0.0), rate.due(905, 0.0)] == [False, True]
