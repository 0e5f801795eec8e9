"""The video-worker queue: a free place first, then a message, then the backend, in a thread for each message."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from app.metrics import SEGMENT_MESSAGES
from app.segments.heartbeat import Heartbeat
from app.segments.invoking import Invoking, Outcome
from app.segments.pace import Pace
from app.segments.place import Place
from app.segments.ports import Message, MessageGone, Queue
from app.segments.pulse import Pulse
from app.segments.slots import Slots

log = logging.getLogger(__name__)

_PAUSE_S = 0.5


@dataclass
class Work:
    """A message in hand, and who works on it."""

    message: Message
    thread: threading.Thread


class InferenceLoop:
    """Takes messages as long as there are places; nothing is received that cannot be worked on at once."""

    def __init__(
        self,
        queue: Queue,
        invoking: Invoking,
        slots: Slots,
        *,
        visibility_s: float,
        pace: Pace,
        stopping: threading.Event,
        pulse: Pulse,
    ) -> None:
        self._queue = queue
        self._invoking = invoking
        self._slots = slots
        self._visibility_s = visibility_s
        self._pace = pace
        self._stopping = stopping
        self._pulse = pulse
        self._lock = threading.Lock()
        self._in_hand: dict[str, Work] = {}

    def turn(self) -> None:
        """Waits for the backend, for a place and for a message, each a while, and begins to work on it."""
        if not self._invoking.ready():
            self._pulse.failed()
            self._stopping.wait(_PAUSE_S)
            return
        place = Place(self._slots, self._stopping)
        if not place.take(_PAUSE_S):
            return
        try:
            message = self._queue.receive(self._pace.poll_s)
        except BaseException:
            place.give_back()
            raise
        if message is None:
            place.give_back()
            return
        if self._stopping.is_set():
            place.give_back()
            self._end(message, Outcome.RETURNED)
            return
        thread = threading.Thread(target=self._work, args=(message, place), name="segment", daemon=True)
        with self._lock:
            self._in_hand[message.receipt] = Work(message, thread)
        try:
            thread.start()
        except RuntimeError:  # the system has none left
            self._over(message)
            place.give_back()
            self._end(message, Outcome.AGAIN)
            raise

    def drain(self, timeout_s: float) -> None:
        """Waits for what is in hand; gives back what takes longer, so that somebody else may have it at once."""
        for work in self._at_work():
            work.thread.join(timeout_s)
            if work.thread.is_alive():
                timeout_s = 0.0
        for work in self._at_work():
            log.warning("message %s is given back: its segment took longer than DRAIN_TIMEOUT_S", work.message.id)
            self._end(work.message, Outcome.RETURNED)

    def _at_work(self) -> list[Work]:
        with self._lock:
            return list(self._in_hand.values())

    def _work(self, message: Message, place: Place) -> None:
        try:
            with Heartbeat(self._queue, message, self._visibility_s):
                outcome = self._invoking.message(message, place)
        except Exception:  # whatever AWS, the store or a backend has against this message: it comes again
            log.exception("message %s of the video-worker queue", message.id)
            SEGMENT_MESSAGES.labels(self._queue.name, "error").inc()
            self._pulse.failed()
            outcome = Outcome.AGAIN
        finally:
            place.give_back()
        self._end(message, outcome)
        self._over(message)

    def _over(self, message: Message) -> None:
        with self._lock:
            self._in_hand.pop(message.receipt, None)

    def _end(self, message: Message, outcome: Outcome) -> None:
        try:
            if outcome is Outcome.HANDLED:
                self._queue.delete(message)
            elif outcome is Outcome.STRANGE:
                self._queue.release(message, self._pace.strange_s(message.deliveries))
            else:
                self._queue.release(message, self._pace.again_s if outcome is Outcome.AGAIN else 0.0)
        except MessageGone as error:
            log.warning("%s", error)
        except Exception:  # it stays hidden a while, then comes again
            log.exception("message %s could not be deleted or given back", message.id)
            SEGMENT_MESSAGES.labels(self._queue.name, "error").inc()
