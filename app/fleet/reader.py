"""The thread that reads from Redis and hands frames on, as many as there is room for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from app.errors import ConfigurationError
from app.fleet.frames import CameraFrame
from app.fleet.inhand import InHand
from app.fleet.source import Source

log = logging.getLogger(__name__)

_PATIENCE_S = 0.1


class Reader:
    """Reads until it is stopped.

    Args:
        least: frames that there must be room for, before it reads: many small reads would cost more than they bring.
        deliver: called from the reader's thread with what was read.
        on_failure: called from the reader's thread when it ends by an error of its own.
    """

    def __init__(
        self,
        source: Source,
        in_hand: InHand,
        *,
        least: int,
        deliver: Callable[[list[CameraFrame]], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._source = source
        self._in_hand = in_hand
        self._least = least
        self._deliver = deliver
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redis", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns once nothing more is read; what was read has been delivered."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                frames = self._source.read(self._in_hand.room(self._least, _PATIENCE_S))
                if frames:
                    self._deliver(frames)
        except ConfigurationError as error:  # this Redis will never do
            self._on_failure(str(error))
        except Exception as error:
            log.exception("reading from Redis failed")
            self._on_failure(f"reading from Redis failed: {type(error).__name__}: {error}")
