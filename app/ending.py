"""SIGTERM before a command heeds it itself: its imports take seconds, and it was asked to end, so it ends with 0."""

from __future__ import annotations

import signal


def heed_early() -> None:
    """Until the command puts its own handler in place. In the main thread only."""
    signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> None:
    raise SystemExit(0)
