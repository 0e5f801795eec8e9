"""Reasons of failures, and the pauses between attempts."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.summary.llm import LONGEST_S, pause_s, reason_of, retry_after_s


class Failed(Exception):
    def __init__(self, status=None, **headers):
        self.status_code = status
        self.response = SimpleNamespace(headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Failed(429), "rate_limited"),
        (Failed(500), "unavailable"),
        (Failed(529), "unavailable"),
        (Failed(401), "unauthorized"),
        (Failed(400), "rejected"),
        (Failed(404), "rejected"),
        (TimeoutError(), "timeout"),
        (ConnectionRefusedError(), "unavailable"),
        (ValueError("no JSON"), "unparsable"),
    ],
)
def test_every_failure_has_a_reason(error, reason):
    assert reason_of(error) == reason


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry_after": "31536000"}, 3600.0),
        ({"retry_after": "9" * 400}, 3600.0),
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after": "Sat, 21 Nov 2026 10:00:30 GMT"}, 30.0),
        ({"retry_after": "Sat, 21 Nov 2026 09:00:00 GMT"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-3"}, None),
        ({"retry_after_ms": "250", "retry_after": "9"}, 0.25),
    ],
)
def test_how_long_the_server_wants_to_be_left_alone(headers, seconds):
    assert retry_after_s(Failed(429, **headers), datetime(2026, 11, 21, 10, tzinfo=UTC)) == seconds


def test_an_error_without_an_answer_asks_for_nothing():
    assert retry_after_s(ConnectionRefusedError()) is None


@given(st.integers(1, 1000), st.floats(0, 600), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_never_shorter_than_asked_for_and_bounded_beyond(attempt, asked_s, chance):
    assert asked_s <= pause_s(attempt, asked_s, chance) <= asked_s + LONGEST_S


def test_the_bound_doubles_with_every_attempt():
    assert [pause_s(attempt, None, 0.999999) for attempt in (1, 2, 3)] == pytest.approx([0.5, 1.0, 2.0], rel=1e-4)
