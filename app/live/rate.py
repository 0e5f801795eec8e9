"""How many messages a session may send. Pure but for the clock."""

from __future__ import annotations

import time

_BURST_S = 2.0


class TokenBucket:
    """`rate` messages a second on average, two seconds' worth at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._level = self._size = max(1.0, rate * _BURST_S)
        self._at = time.monotonic()

    def take(self) -> bool:
        """Whether one more message is within the rate."""
        now = time.monotonic()
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True

    @property
    def wait_s(self) -> float:
        """Seconds until `take` may succeed again."""
        return max(0.0, (1 - self._level) / self._rate)
