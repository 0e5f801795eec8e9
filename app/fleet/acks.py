"""Acknowledgements to Redis, many in one step."""

from __future__ import annotations

import threading
import time

import redis

from app import metrics
from app.fleet.connection import Outage
from app.fleet.frames import Origin
from app.fleet.inhand import InHand
from app.fleet.leases import Leases

_GATHER_S = 0.02
_MANY = 128
_MOST = 1024
_ANSWERED_TWICE = metrics.FLEET_FENCED.labels("acknowledgement")


class Acks:
    """Any thread may add; one thread flushes. What Redis could not be told is kept and told later."""

    def __init__(self, client: redis.Redis, leases: Leases, in_hand: InHand) -> None:
        """`client`: the one of `leases`."""
        self._client = client
        self._leases = leases
        self._in_hand = in_hand
        self._outage = Outage("acknowledgements")
        self._lock = threading.Lock()
        self._waiting: list[tuple[Origin, bool]] = []
        self._flushed = 0.0

    def __len__(self) -> int:
        """Entries that Redis is still to be told of."""
        return len(self._waiting)

    @property
    def says(self) -> str:
        """What Redis says instead of taking them (`connection.WORDS`); empty: it took the last ones."""
        return self._outage.says

    def add(self, origin: Origin, *, answered: bool) -> None:
        """Done with. `answered`: Kafka has its answer."""
        with self._lock:
            self._waiting.append((origin, answered))

    def flush(self, *, last: bool = False) -> None:
        """Tells Redis what has gathered: every few milliseconds, or when it is much, or when it is the last time."""
        if not self._waiting or (self._outage.resting and not last):
            return
        if len(self._waiting) < _MANY and time.monotonic() - self._flushed < _GATHER_S and not last:
            return
        with self._lock:
            now, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
        try:
            lost = self._leases.acknowledge(origin for origin, _ in now)
        except redis.RedisError as error:  # away, or READONLY and the like: a failover, for one
            self._later(now, error)
            return
        self._flushed = time.monotonic()
        # Another worker has the camera by now, and the entry with it: it answers once more.
        _ANSWERED_TWICE.inc(sum(answered and (origin.stream, origin.epoch) in lost for origin, answered in now))
        self._in_hand.settle([origin for origin, _ in now])
        self._outage.ended()

    def _later(self, now: list[tuple[Origin, bool]], error: Exception) -> None:
        self._outage.again(error)
        self._client.connection_pool.disconnect()  # the name may stand for another server by then
        with self._lock:
            self._waiting[:0] = now

    def close(self) -> None:
        self._client.close()
