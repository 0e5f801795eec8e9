"""How long the end of a session waits for the disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

log = logging.getLogger(__name__)

PATIENCE_S = 1.0


class Patience:
    """Waits for the last work of a session, but not for long; the work goes on all the same.

    Cancelled half-way it would leave rows on disk that nobody owns up to while the process lives.
    """

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Begins it, and does not wait at all."""
        task = asyncio.create_task(work, name=f"end of the summaries {self._session_id}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def wait(self, work: Coroutine[None, None, None]) -> None:
        """PATIENCE_S at most. Work that fails is logged."""
        task = self.start(work)
        await asyncio.wait({task}, timeout=PATIENCE_S)
        if not task.done():
            log.warning("session %s ended before the disk took its summaries", self._session_id)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the summaries of session %s could not be ended", self._session_id, exc_info=error)
