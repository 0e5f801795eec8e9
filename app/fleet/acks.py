"""Acknowledgements to Redis, many in one pipeline."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

from app.fleet.connection import AWAY, Outage, connect
from app.fleet.frames import Origin
from app.fleet.inhand import InHand
from app.settings import RedisSettings

_GATHER_S = 0.02
_MANY = 128


class Acks:
    """Any thread may add; one thread flushes. What Redis could not be told is kept and told later."""

    def __init__(self, settings: RedisSettings, in_hand: InHand) -> None:
        self._group = settings.fleet_group
        self._client = connect(settings)
        self._in_hand = in_hand
        self._outage = Outage("acknowledgements")
        self._lock = threading.Lock()
        self._waiting: list[Origin] = []
        self._flushed = 0.0

    def add(self, origin: Origin) -> None:
        with self._lock:
            self._waiting.append(origin)

    def flush(self) -> None:
        """Tells Redis what has gathered: every few milliseconds, or when it is much."""
        if not self._waiting or self._outage.resting:
            return
        if len(self._waiting) < _MANY and time.monotonic() - self._flushed < _GATHER_S:
            return
        with self._lock:
            now, self._waiting = self._waiting, []
        streams: dict[str, list[str]] = {}
        for origin in now:
            streams.setdefault(origin.stream, []).append(origin.entry)
        pipe = self._client.pipeline(transaction=False)
        for stream, entries in streams.items():
            pipe.xack(stream, self._group, *cast("list[Any]", entries))
        try:
            # A stream that is gone answers 0, which is as good.
            pipe.execute()
        except AWAY as error:
            self._outage.again(error)
            self._client.connection_pool.disconnect()
            with self._lock:
                self._waiting[:0] = now
            return
        self._outage.ended()
        self._flushed = time.monotonic()
        self._in_hand.settle(now)

    def close(self) -> None:
        self._client.close()
