"""When silence is a hang, by the clock alone."""

from __future__ import annotations

from app.inference.liveness import AwakeClock, ProbeRecord, StoppedProcesses


def asked_every_half_deadline(record: ProbeRecord, until: float, answer_s: float, start: float = 0.0) -> None:
    """One question at a time, each answered after `answer_s`."""
    now = start
    while now < until:
        number = record.send(now)
        record.answer(number, now + answer_s)
        now += record.interval_s


def test_d7_nothing_answered_for_two_deadlines_is_a_hang() -> None:
    record = ProbeRecord(5)
    asked_every_half_deadline(record, 10, 0.1)  # last answered at 7.6
    record.send(10)
    assert record.hung(16.0) is None
    assert record.hung(17.6) is not None


def test_d7_slow_answers_are_none() -> None:
    record = ProbeRecord(5)
    numbers = [record.send(at) for at in (0, 2.5, 5)]
    record.answer(numbers[0], 4)
    record.answer(numbers[1], 8)  # each takes longer than the last
    assert record.hung(15) is None
    record.answer(numbers[2], 17)
    late = record.send(20)
    assert record.hung(40) is None  # three times 12 s
    record.answer(late, 50)
    assert not record.pending


def test_d7_others_that_are_answered_are_a_sign_of_life() -> None:
    record = ProbeRecord(5)
    asked_every_half_deadline(record, 10, 0.1)
    record.send(10)  # behind a queue of others
    for now in range(11, 60):
        record.answered_another(now)
        assert record.hung(now + 0.5) is None


def test_d7_a_question_that_later_ones_overtake_is_sat_on() -> None:
    record = ProbeRecord(5)
    asked_every_half_deadline(record, 10, 0.1)
    record.send(10)
    asked_every_half_deadline(record, 17, 0.1, start=12.5)  # by another process of the model
    assert record.hung(17) is None
    assert record.hung(17.5) is not None
    slow = ProbeRecord(5)
    slow.send(0)
    slow.answer(slow.send(2.5), 12)  # which took as long itself
    assert slow.hung(20) is None


def test_d7_what_never_answered_is_not_started_anew() -> None:
    record = ProbeRecord(5)
    record.send(0)
    assert record.hung(1000) is None
    record.answered_another(1000)
    assert record.hung(2000) is None


def test_d7_a_process_that_is_not_well_and_does_not_recover() -> None:
    record = ProbeRecord(5)
    record.refuse(record.send(0), 0.1)
    assert record.hung(5) is None
    assert record.hung(8) is not None
    record.recover()
    assert record.hung(8) is None


def test_d7_time_that_passed_without_us_does_not_count() -> None:
    clock = AwakeClock()
    clock.tick(100.0)
    assert clock.tick(100.25) == 0.25
    assert clock.tick(3700.25) == 1.25  # an hour's suspension
    standstill = StoppedProcesses(5)
    assert standstill.check({7}, 0) is None
    assert standstill.check({7}, 8.9) is None
    assert standstill.check({7}, 9.5) == 7
    assert standstill.check(set(), 9.6) is None
    assert standstill.check({7}, 10) is None
