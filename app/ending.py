"""How a command ends on SIGTERM: with 0, as it was asked to, and with a line each for stopping, drained, ended."""

from __future__ import annotations

import logging
import signal
import threading
import time

log = logging.getLogger(__name__)


def heed_early() -> None:
    """Ends with 0 until the command has a handler of its own: its imports take seconds. In the main thread only."""
    signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> None:
    raise SystemExit(0)


class LastWords:
    """The lines of one process's end; of several, its parent's."""

    def __init__(self) -> None:
        self._began: float | None = None

    def stopping(self, why: str) -> None:
        """Says so once; signal handlers may call it."""
        if self._began is None:
            self._began = time.monotonic()
            # From a thread: the handler may have interrupted the very code that writes the log.
            threading.Thread(target=log.info, args=("stopping: %s", why), name="stopping").start()

    def drained(self) -> None:
        """What was in hand is done, or given back."""
        if self._began is None:
            self.stopping("the work is over")
        log.info("drained after %.1f s", time.monotonic() - (self._began or 0.0))

    def ended(self) -> None:
        log.info("ended")


def leave_it_to_the_parent() -> None:
    """In one of several processes: their parent says how they end."""
    log.setLevel(logging.WARNING)


LAST_WORDS = LastWords()
