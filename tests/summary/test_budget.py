"""The token budget of the language model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings import LlmSettings
from app.summary import Spent
from app.summary.llm import Budget, Reservation, estimate_tokens


def budget(**bounds):
    return Budget(LlmSettings(**{"llm_session_tokens": 0, "llm_hour_tokens": 0, **bounds}))


def test_a_session_spends_its_tokens_and_no_more():
    first, other, shared = Spent(), Spent(), budget(llm_session_tokens=1000)
    held = shared.reserve(0, first, 500, 400)
    assert isinstance(held, Reservation)
    assert shared.reserve(0, first, 90, 20) == "session_tokens"
    shared.settle(0, first, held, 500, 10)  # it took less than was held
    assert first.tokens == 510
    assert isinstance(shared.reserve(0, first, 90, 20), Reservation)
    assert isinstance(shared.reserve(0, other, 500, 400), Reservation)


def test_an_hour_counts_what_is_in_flight_and_forgets_after_an_hour():
    shared = budget(llm_hour_tokens=1000)
    first = shared.reserve(0, Spent(), 600, 100)
    assert shared.reserve(1, Spent(), 300, 100) == "hour_tokens"
    shared.settle(10, Spent(), first, 600, 100)
    assert shared.reserve(3609, Spent(), 300, 100) == "hour_tokens"
    assert isinstance(shared.reserve(3610, Spent(), 300, 100), Reservation)


def test_a_request_that_never_reached_the_model_is_given_back():
    session, shared = Spent(), budget(llm_session_tokens=1000, llm_hour_tokens=1000)
    held = shared.reserve(0, session, 600, 400)
    shared.settle(0, session, held, 0, 0)
    assert (session.tokens, shared.spent(0)) == (0, 0)
    assert isinstance(shared.reserve(0, session, 600, 400), Reservation)


def test_no_bounds_no_end():
    assert isinstance(budget().reserve(0, Spent(), 10**9, 10**9), Reservation)


@pytest.mark.parametrize(("text", "tokens"), [("", 1), ("abc", 2), ("a" * 300, 101), ("駅" * 100, 101)])
def test_tokens_are_counted_without_a_tokenizer(text, tokens):
    assert estimate_tokens(text) == tokens


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.floats(0, 2000)), max_size=30))
def test_spent_in_an_hour_never_passes_the_bound_when_nothing_takes_more_than_was_held(requests):
    shared, session, now, most = budget(llm_hour_tokens=2000), Spent(), 0.0, 0
    for read, wrote, pause in requests:
        now += pause
        held = shared.reserve(now, session, read, wrote)
        if isinstance(held, Reservation):
            shared.settle(now, session, held, read, wrote // 2)
        most = max(most, shared.spent(now))
    assert most <= 2000
    assert shared.spent(now + 3601) == 0


@given(st.integers(1, 256), st.integers(0, 10**7), st.integers(1, 64))
def test_workers_have_together_what_was_set_and_no_more(in_flight, tokens, workers):
    part = LlmSettings(llm_max_in_flight=in_flight, llm_hour_tokens=tokens).part(workers)
    assert part.llm_max_in_flight >= 1
    assert part.llm_max_in_flight * workers <= max(in_flight, workers)
    assert (part.llm_hour_tokens == 0) == (tokens == 0)
    assert part.llm_hour_tokens * workers <= max(tokens, workers)
