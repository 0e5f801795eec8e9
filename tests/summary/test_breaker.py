"""The circuit breaker: when it opens, and when it admits a probe."""

from app.summary.llm import CircuitBreaker


def opened():
    breaker = CircuitBreaker(failures=3, open_s=60)
    for now in (0, 1, 2):
        assert breaker.allows(now)
        breaker.failed(now)
    return breaker


def test_it_opens_after_so_many_failures_in_a_row():
    breaker = opened()
    assert breaker.state(2) == "open"
    assert not breaker.allows(61)


def test_a_success_between_failures_starts_the_count_again():
    breaker = CircuitBreaker(failures=2, open_s=60)
    breaker.failed(0)
    breaker.succeeded(0)
    breaker.failed(1)
    assert breaker.state(1) == "closed"


def test_after_its_time_one_request_tries_and_only_one():
    breaker = opened()
    assert breaker.state(62) == "half-open"
    assert [breaker.allows(62), breaker.allows(62)] == [True, False]


def test_a_success_of_that_one_closes_it():
    breaker = opened()
    breaker.allows(62)
    breaker.succeeded(62)
    assert breaker.state(62) == "closed"
    assert breaker.allows(62)


def test_a_failure_of_that_one_opens_it_anew():
    breaker = opened()
    breaker.allows(62)
    breaker.failed(63)
    assert breaker.state(122) == "open"
    assert breaker.state(123) == "half-open"


def test_when_that_one_was_given_up_the_next_may_try():
    breaker = opened()
    breaker.allows(62)
    breaker.released()
    assert breaker.allows(62)


def test_a_server_that_asks_for_time_gets_it_at_once():
    breaker = CircuitBreaker(failures=3, open_s=60)
    breaker.hold(0, 90)
    assert breaker.state(89) == "open"
    assert breaker.allows(90)


def test_an_answer_to_a_request_sent_before_does_not_cut_that_time_short():
    breaker = CircuitBreaker(failures=3, open_s=60)
    breaker.hold(0, 90)
    breaker.succeeded(1)
    assert breaker.state(89) == "open"
    breaker.allows(90)
    breaker.succeeded(91)
    assert breaker.state(91) == "closed"
