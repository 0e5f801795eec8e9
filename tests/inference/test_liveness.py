"""When silence is a hang, by the clock alone."""

from __future__ import annotations

from app.inference.liveness import Awake, Pulse, Standstill


def asked_every_half_deadline(pulse: Pulse, until: float, answer_s: float, start: float = 0.0) -> None:
    """One question at a time, each answered after `answer_s`."""
    now = start
    while now < until:
        number = pulse.ask(now)
        pulse.answer(number, now + answer_s)
        now += pulse.interval_s


def test_d7_nothing_answered_for_two_deadlines_is_a_hang() -> None:
    pulse = Pulse(5)
    asked_every_half_deadline(pulse, 10, 0.1)  # last answered at 7.6
    pulse.ask(10)
    assert pulse.hung(16.0) is None
    assert pulse.hung(17.6) is not None


def test_d7_slow_answers_are_none() -> None:
    pulse = Pulse(5)
    numbers = [pulse.ask(at) for at in (0, 2.5, 5)]
    pulse.answer(numbers[0], 4)
    pulse.answer(numbers[1], 8)  # each takes longer than the last
    assert pulse.hung(15) is None
    pulse.answer(numbers[2], 17)
    late = pulse.ask(20)
    assert pulse.hung(40) is None  # three times 12 s
    pulse.answer(late, 50)
    assert not pulse.asked


def test_d7_others_that_are_answered_are_a_sign_of_life() -> None:
    pulse = Pulse(5)
    asked_every_half_deadline(pulse, 10, 0.1)
    pulse.ask(10)  # behind a queue of others
    for now in range(11, 60):
        pulse.sign(now)
        assert pulse.hung(now + 0.5) is None


def test_d7_a_question_that_later_ones_overtake_is_sat_on() -> None:
    pulse = Pulse(5)
    asked_every_half_deadline(pulse, 10, 0.1)
    pulse.ask(10)
    asked_every_half_deadline(pulse, 17, 0.1, start=12.5)  # by another process of the model
    assert pulse.hung(17) is None
    assert pulse.hung(17.5) is not None
    slow = Pulse(5)
    slow.ask(0)
    slow.answer(slow.ask(2.5), 12)  # which took as long itself
    assert slow.hung(20) is None


def test_d7_what_never_answered_is_not_started_anew() -> None:
    pulse = Pulse(5)
    pulse.ask(0)
    assert pulse.hung(1000) is None
    pulse.sign(1000)
    assert pulse.hung(2000) is None


def test_d7_a_process_that_is_not_well_and_does_not_recover() -> None:
    pulse = Pulse(5)
    pulse.refuse(pulse.ask(0), 0.1)
    assert pulse.hung(5) is None
    assert pulse.hung(8) is not None
    pulse.recover()
    assert pulse.hung(8) is None


def test_d7_time_that_passed_without_us_does_not_count() -> None:
    clock = Awake()
    clock.tick(100.0)
    assert clock.tick(100.25) == 0.25
    assert clock.tick(3700.25) == 1.25  # an hour's suspension
    standstill = Standstill(5)
    assert standstill.look({7}, 0) is None
    assert standstill.look({7}, 8.9) is None
    assert standstill.look({7}, 9.5) == 7
    assert standstill.look(set(), 9.6) is None
    assert standstill.look({7}, 10) is None
