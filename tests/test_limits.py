"""Back-off, which must go on however long an outage lasts."""

from __future__ import annotations

from app.limits import backoff_s


def test_the_wait_doubles_to_its_longest_and_stays_there_however_often_something_fails() -> None:
    assert [backoff_s(failures, 0.5, 5.0) for failures in range(6)] == [0.0, 0.5, 1.0, 2.0, 4.0, 5.0]
    # A float has no 2 ** 1024: weeks of failures must not end the loop that counts them.
    assert backoff_s(1_000_000, 0.5, 5.0) == 5.0
