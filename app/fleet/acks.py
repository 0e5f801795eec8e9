"""Acknowledgements to Redis, many in one pipeline."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import redis

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

    def __len__(self) -> int:
        """Entries that Redis is still to be told of."""
        return len(self._waiting)

    def add(self, origin: Origin) -> None:
        with self._lock:
            self._waiting.append(origin)

    def flush(self, *, last: bool = False) -> None:
        """Tells Redis what has gathered: every few milliseconds, or when it is much, or when it is the last time."""
        if not self._waiting or (self._outage.resting and not last):
            return
        if len(self._waiting) < _MANY and time.monotonic() - self._flushed < _GATHER_S and not last:
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
            answers = pipe.execute(raise_on_error=False)
        except AWAY as error:
            self._later(now, error)
            return
        refused = {
            stream: answer
            for stream, answer in zip(streams, answers, strict=True)
            if isinstance(answer, redis.RedisError) and not _is_gone(answer)
        }
        told = [origin for origin in now if origin.stream not in refused]
        self._flushed = time.monotonic()
        self._in_hand.settle(told)
        if refused:  # READONLY and the like: a failover, for one
            self._later([origin for origin in now if origin.stream in refused], next(iter(refused.values())))
        else:
            self._outage.ended()

    def _later(self, origins: list[Origin], error: Exception) -> None:
        self._outage.again(error)
        self._client.connection_pool.disconnect()  # the name may stand for another server by then
        with self._lock:
            self._waiting[:0] = origins

    def close(self) -> None:
        self._client.close()


def _is_gone(error: redis.RedisError) -> bool:
    """Whether something else has the stream's name by now: there is nothing to acknowledge any more."""
    return "WRONGTYPE" in str(error)
