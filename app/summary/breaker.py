"""The circuit breaker before the language model. Pure: the caller passes the time.

closed ──LLM_BREAKER_FAILURES in a row──▶ open ──LLM_BREAKER_S──▶ half-open ──one success──▶ closed
                                           ▲                          │
                                           └────────one failure───────┘
"""

from __future__ import annotations

from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Leaves a failing model alone, then lets one request try it."""

    def __init__(self, failures: int, open_s: float) -> None:
        self._allowed = failures
        self._open_s = open_s
        self._failures = 0
        self._until: float | None = None
        self._held_until = float("-inf")
        self._trying = False

    def state(self, now: float) -> State:
        """`now`: seconds of a monotonic clock, here and below."""
        if self._until is None:
            return "closed"
        return "open" if now < self._until else "half-open"

    def allows(self, now: float) -> bool:
        """Whether a request may go now. True in `half-open` is given once: say then how it went."""
        state = self.state(now)
        if state == "half-open" and not self._trying:
            self._trying = True
            return True
        return state == "closed"

    def succeeded(self, now: float) -> None:
        """The model answered. What it asked for (`hold`) stands: the answer may be to a request sent before."""
        self._failures, self._trying = 0, False
        if now >= self._held_until:
            self._until = None

    def failed(self, now: float) -> None:
        """A request failed."""
        self._failures += 1
        if self._trying or self._failures >= self._allowed:
            self._until = max(self._until or 0.0, now + self._open_s)
        self._trying = False

    def unsaid(self) -> None:
        """A request ended without a word on the model's health: it was given up from our side."""
        self._trying = False

    def hold(self, now: float, seconds: float) -> None:
        """The model asked to be left alone for so long (429 with Retry-After)."""
        self._until = self._held_until = max(self._until or 0.0, now + seconds)
        self._trying = False
