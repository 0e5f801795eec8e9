"""What the model may cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings import LlmSettings
from app.summary import Spent
from app.summary.llm import Budget, Reservation, estimate_tokens


def budget(**bounds):
    return Budget(LlmSettings(**{"llm_session_tokens": 0, "llm_hour_tokens": 0, **bounds}))


def test_a_session_spends_its_tokens_and_no_more():
    one, other, shared = Spent(), Spent(), budget(llm_session_tokens=1000)
    held = shared.reserve(0, one, 500, 400)
    assert isinstance(held, Reservation)
    assert shared.reserve(0, one, 90, 20) == "session_tokens"
    shared.settle(0, one, held, 500, 10)  # it took less than was held
    assert one.tokens == 510
    assert isinstance(shared.reserve(0, one, 90, 20), Reservation)
    assert isinstance(shared.reserve(0, other, 500, 400), Reservation)


def test_an_hour_counts_what_is_in_flight_and_forgets_after_an_hour():
    shared = budget(llm_hour_tokens=1000)
    first = shared.reserve(0, Spent(), 600, 100)
    assert shared.reserve(1, Spent(), 300, 100) == "hour_tokens"
    shared.settle(10, Spent(), first, 600, 100)
    assert shared.reserve(3609, Spent(), 300, 100) == "hour_tokens"
    assert isinstance(shared.reserve(3610, Spent(), 300, 100), Reservation)


def test_the_cost_of_an_hour_has_a_bound_of_its_own():
    shared = budget(llm_hour_cost=1.0, llm_input_price=2.0, llm_output_price=8.0)
    assert shared.cost(250_000, 50_000) == pytest.approx(0.9)
    held = shared.reserve(0, Spent(), 250_000, 50_000)
    assert shared.reserve(0, Spent(), 250_000, 0) == "hour_cost"
    shared.settle(0, Spent(), held, 0, 0)  # it never reached the model
    assert isinstance(shared.reserve(0, Spent(), 250_000, 0), Reservation)


def test_the_cost_of_a_session_has_a_bound_of_its_own():
    one, other = Spent(), Spent()
    shared = budget(llm_session_cost=1.0, llm_input_price=2.0, llm_output_price=8.0)
    held = shared.reserve(0, one, 250_000, 50_000)
    assert shared.reserve(0, one, 250_000, 0) == "session_cost"
    assert isinstance(shared.reserve(0, other, 250_000, 0), Reservation)
    shared.settle(0, one, held, 250_000, 0)  # it wrote nothing
    assert one.cost == pytest.approx(0.5)
    assert isinstance(shared.reserve(0, one, 250_000, 0), Reservation)


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
        most = max(most, shared.spent(now)[0])
    assert most <= 2000
    assert shared.spent(now + 3601) == (0, 0.0)


@given(st.integers(1, 256), st.integers(0, 10**7), st.floats(0, 1e4, allow_subnormal=False), st.integers(1, 64))
def test_workers_have_together_what_was_set_and_no_more(in_flight, tokens, cost, workers):
    one = LlmSettings(llm_max_in_flight=in_flight, llm_hour_tokens=tokens, llm_hour_cost=cost).part(workers)
    assert one.llm_max_in_flight >= 1
    assert one.llm_max_in_flight * workers <= max(in_flight, workers)
    assert (one.llm_hour_tokens == 0) == (tokens == 0)
    assert one.llm_hour_tokens * workers <= max(tokens, workers)
    assert one.llm_hour_cost * workers == pytest.approx(cost)
    assert (one.llm_hour_cost == 0) == (cost == 0)
