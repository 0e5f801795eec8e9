"""How many messages a session may send. Pure but for the clock."""

from __future__ import annotations

import time

_BURST_S = 2.0
_COMPLAINT_S = 1.0


class TokenBucket:
    """`rate` messages a second on average, two seconds' worth at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._level = self._size = rate * _BURST_S
        self._at = time.monotonic()
        self._complained = 0.0

    def take(self) -> bool:
        """Whether one more message is within the rate."""
        now = time.monotonic()
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True

    def may_complain(self) -> bool:
        """True once a second: telling a flood of each dropped message would double it."""
        now = time.monotonic()
        if now - self._complained < _COMPLAINT_S:
            return False
        self._complained = now
        return True
