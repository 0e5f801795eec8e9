"""Work of the event loop that is too long for one turn of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Pieces:
    """One piece a turn of the loop, over all that ask; whatever else the loop has to do comes between two."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], bool]] = deque()
        self._running = False

    def add(self, work: Callable[[], bool]) -> None:
        """`work` does one piece, soon, and again and again while it returns True: there is more."""
        self._waiting.append(work)
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        work = self._waiting.popleft()
        try:
            if work():
                self._waiting.append(work)
        finally:
            self._running = bool(self._waiting)
            if self._running:
                asyncio.get_running_loop().call_soon(self._turn)
