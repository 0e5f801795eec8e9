"""Whether summaries fall behind what is seen, and what a client is told of it. Pure."""

from __future__ import annotations

BEHIND, CAUGHT_UP = 0.5, 0.2
"""Pressure of the backlog (0.5: memory is full) from which it is said, and below which it is over."""


class Lag:
    """Says every change once."""

    def __init__(self) -> None:
        self._behind = False

    def change(self, pressure: float, waiting: int) -> str | None:
        """What to tell now, or None. `pressure`: 0 to 1; `waiting`: observations."""
        if not self._behind and pressure >= BEHIND:
            self._behind = True
            return f"summaries are behind: {waiting} observations wait"
        if self._behind and pressure <= CAUGHT_UP:
            self._behind = False
            return "summaries have caught up"
        return None
