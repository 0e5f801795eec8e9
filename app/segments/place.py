"""One place at the backend, from when it is taken to when somebody else has it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.segments.slots import Slots

_LOOK_S = 0.5


class Place:
    """Used by one thread at a time."""

    def __init__(self, slots: Slots, stopping: threading.Event) -> None:
        self._slots = slots
        self._stopping = stopping
        self._taken = False

    def take(self, timeout_s: float) -> bool:
        """Takes one, waited for so long; False when none came free."""
        self._taken = self._taken or self._slots.take(timeout_s)
        return self._taken

    def taken(self) -> bool:
        """Has one, waited for until it is free; False when the worker stops before."""
        while not self.take(_LOOK_S):
            if self._stopping.is_set():
                return False
        return True

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """A call is waited for while the block lasts."""
        self._slots.at_work(+1)
        try:
            yield
        finally:
            self._slots.at_work(-1)

    def hand_over(self, invocation_id: str) -> None:
        """The place is this invocation's now."""
        self._slots.hand_over(invocation_id)
        self._taken = False

    def give_back(self) -> None:
        """Frees it, where it is still ours."""
        if self._taken:
            self._taken = False
            self._slots.give_back()
