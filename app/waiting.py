"""A start says what it waits for, for as long as it waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

EVERY_S = 3.0


@contextmanager
def waiting_for(what: str, every_s: float = EVERY_S) -> Iterator[None]:
    """Logs a line every few seconds while the block lasts; none where it takes less.

    From a thread: what a start waits for is often an import, which holds up an event loop.
    """
    over, begun = threading.Event(), time.monotonic()

    def say() -> None:
        while not over.wait(every_s):
            log.info("starting: waiting for %s, %.0f s so far", what, time.monotonic() - begun)

    saying = threading.Thread(target=say, name="waiting", daemon=True)
    saying.start()
    try:
        yield
    finally:
        over.set()
