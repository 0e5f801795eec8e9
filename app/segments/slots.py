"""Segments at the backend, at most INFERENCE_MAX_IN_FLIGHT: a semaphore whose places know whom they are held for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from app.metrics import SEGMENTS_IN_FLIGHT


class Slots:
    """Places at the backend, shared by both loops and all threads.

    A place is taken before a message is received, when nobody knows yet for what. It is then either given back by
    whoever took it, or handed over to an asynchronous invocation, whose end gives it back: once, whoever says so and
    how often.
    """

    def __init__(self, most: int, backend: str) -> None:
        self._most = most
        self._taken = 0
        self._busy = 0
        self._held: set[str] = set()
        self._changed = threading.Condition()
        self._gauge = SEGMENTS_IN_FLIGHT.labels(backend)
        self._gauge.set(0)

    @property
    def in_flight(self) -> int:
        """Segments at the backend."""
        return self._busy + len(self._held)

    def take(self, timeout_s: float) -> bool:
        """Takes a place, waited for so long; False when none came free."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._taken + len(self._held) >= self._most:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            self._taken += 1
        return True

    def give_back(self) -> None:
        """Frees a place taken by `take` and not handed over."""
        with self._changed:
            self._taken -= 1
            self._changed.notify_all()

    def hand_over(self, invocation_id: str) -> None:
        """From now on the place is this invocation's. One that has a place needs no second: this one is freed."""
        with self._changed:
            self._taken -= 1
            self._held.add(invocation_id)
            self._show()
            self._changed.notify_all()

    def free(self, invocation_id: str) -> bool:
        """Frees an invocation's place; False when it has none, or no more."""
        with self._changed:
            if invocation_id not in self._held:
                return False
            self._held.remove(invocation_id)
            self._show()
            self._changed.notify_all()
        return True

    def adopt(self, invocation_ids: Iterable[str]) -> None:
        """Invocations that are open in the store hold a place, also beyond the most: they are at the backend."""
        with self._changed:
            self._held.update(invocation_ids)
            self._show()

    def held(self) -> set[str]:
        """Invocations that hold a place."""
        with self._changed:
            return set(self._held)

    def at_work(self, change: int) -> None:
        """So many places more, or less, are at work for a call that is waited for: the gauge counts them."""
        with self._changed:
            self._busy += change
            self._show()

    def _show(self) -> None:
        self._gauge.set(self._busy + len(self._held))
