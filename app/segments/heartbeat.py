"""Keeps a message hidden while somebody works on it."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from app.metrics import SEGMENT_MESSAGES
from app.segments.ports import Message, MessageGone, Queue

log = logging.getLogger(__name__)


class Heartbeat:
    """While the block lasts, the message stays hidden for `visibility_s` from now, again and again.

    A heartbeat that fails is counted, logged and tried again; when they all fail, the message comes back in the end
    and the work is done twice, which does no harm.
    """

    def __init__(self, queue: Queue, message: Message, visibility_s: float) -> None:
        self._queue = queue
        self._message = message
        self._visibility_s = visibility_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()  # a beat after the end would hide a message that was given back

    def _beat(self) -> None:
        while not self._ended.wait(self._visibility_s / 3):
            try:
                self._queue.extend(self._message, self._visibility_s)
            except MessageGone as error:
                log.warning("%s; somebody else may work on it, too", error)
                SEGMENT_MESSAGES.labels(self._queue.name, "not_prolonged").inc()
                return
            except Exception:  # whatever the queue has against this beat: the next one may do
                log.exception("message %s could not be kept hidden", self._message.id)
                SEGMENT_MESSAGES.labels(self._queue.name, "not_prolonged").inc()
