"""The times of frames become one clock, and frames are sampled by it."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest

from app.fleet.ingest import Sampler
from app.sources.reader import Clock

PERIOD = Fraction(1, 25)


def run(times: list[float | None], *, gap_s: float | None = 10) -> list[float]:
    clock = Clock(PERIOD, gap_s=gap_s)
    return [float(clock.at(None if time is None else Fraction(time).limit_denominator(90_000))) for time in times]


def steps(count: int, start: float = 0.0) -> list[float | None]:
    return [start + number / 25 for number in range(count)]


@pytest.mark.parametrize(
    "times",
    [
        steps(10, 1.5) + steps(10, 1.5) + steps(10, 1.5),  # joined
        steps(3) + steps(3) + steps(3) + steps(21),  # joined, and short
        steps(10) + steps(20, 3600),  # an hour missing
        steps(10, 95_443.6) + steps(20, -95_443.717),  # a counter of 33 bits wraps
        steps(10) + [None] * 20,
        [None] * 5 + steps(25, 77),
        [0.0] * 30,  # none of them is right
        [*steps(10), 9e5, *steps(19, 11 / 25)],  # one of them is wrong
    ],
)
def test_c12_times_that_jump_make_one_steady_clock(times: list[float | None]) -> None:
    found = run(times)
    assert found[0] == 0
    assert found == pytest.approx([number / 25 for number in range(30)], abs=0.001 + 1 / 25 * (9e5 in times))
    assert all(after > before for before, after in pairwise(found))


def test_c12_pauses_stay_pauses() -> None:
    assert run([0, 1, 2, 9, 10, 10.04]) == [0, 1, 2, 9, 10, 10.04]
    assert run([0, 60, 120, 180], gap_s=None) == [0, 60, 120, 180]
    # A picture a minute is no row of jumps.
    assert run([0, 60, 120, 180, 240])[1:] == [0.04, 60.04, 120.04, 180.04]


def test_c12_a_picture_that_comes_out_of_order_changes_nothing_for_the_others() -> None:
    found = run([0, 0.08, 0.04, 0.12, 0.16, 0.2])
    assert found[-2:] == [pytest.approx(0.162, abs=0.01), pytest.approx(0.2)]
    assert all(after > before for before, after in pairwise(found))


@pytest.mark.parametrize(("fps", "rate", "count"), [(25, 10, 448), (30, 10, 900), (30, 12.5, 900), (15, 30, 100)])
def test_c11_pictures_are_sampled_by_their_own_times(fps: float, rate: float, count: int) -> None:
    sampler = Sampler(rate)
    taken = sum(sampler.takes(number / fps) for number in range(count))
    assert taken == pytest.approx(min(count, count / fps * rate), abs=1.5)
