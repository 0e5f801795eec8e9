"""Back-off between attempts, token buckets that bound rates, and latches that log a lasting condition once."""

from __future__ import annotations

import time
from collections.abc import Callable

_MAX_DOUBLINGS = 32


def backoff_s(failures: int, first_s: float, longest_s: float) -> float:
    """Seconds to wait after `failures` failures in a row: 0 after none, then `first_s`, doubled up to `longest_s`."""
    return min(longest_s, first_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS)) if failures > 0 else 0.0


class TokenBucket:
    """Allows `rate` events per second on average, and `burst` at once. Not thread-safe.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._level = self._size = max(1.0, burst)
        self._clock = clock
        self._at = clock()

    def take(self) -> bool:
        """Takes a token; False if there is none."""
        now = self._clock()
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


class Latch:
    """Remembers a condition that lasts, so that it is logged once when it begins or changes, and once when it ends."""

    def __init__(self) -> None:
        self._condition: str | None = None

    def begins(self, condition: str) -> bool:
        """Records that the condition holds; True unless the same one held already."""
        before, self._condition = self._condition, condition
        return condition != before

    def ends(self) -> bool:
        """Records that no condition holds; True if one held."""
        before, self._condition = self._condition, None
        return before is not None
