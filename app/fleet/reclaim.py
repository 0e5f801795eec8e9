"""What workers that died left behind: claimed, given up after too many deliveries, or found to be trimmed away."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any, cast

import redis

from app import metrics
from app.fleet.frames import CameraFrame, read_entry
from app.fleet.inhand import InHand
from app.fleet.roster import DEAD
from app.fleet.tally import Tally
from app.settings import FleetSettings, RedisSettings

DEAD_MAXLEN = 1000
_MOST = 100
_BEGINNING = "0-0"


class Reclaimer:
    """Goes over this worker's streams now and then. Used by one thread."""

    def __init__(
        self,
        client: redis.Redis,
        name: str,
        settings: RedisSettings,
        fleet: FleetSettings,
        in_hand: InHand,
        tally: Tally,
    ) -> None:
        self._client = client
        self._name = name
        self._group = settings.fleet_group
        self._prefix = settings.fleet_stream_prefix
        self._fleet = fleet
        self._in_hand = in_hand
        self._tally = tally
        self._places: deque[tuple[str, str]] = deque()
        """Streams that are still to be gone over, and from which entry on."""

    @property
    def busy(self) -> bool:
        """Whether there is something to be claimed."""
        return bool(self._places)

    def begin(self, streams: Iterable[str], workers: frozenset[str]) -> None:
        """Notes the streams with entries pending that are not in this worker's hands; forgets consumers long gone.

        Raises:
            redis.RedisError: Redis is away, or a stream is gone.
        """
        asked = sorted(streams)
        pipe = self._client.pipeline(transaction=False)
        for stream in asked:
            pipe.xpending(stream, self._group)
            pipe.xinfo_consumers(stream, self._group)
        answers = pipe.execute() if asked else []
        ours = self._in_hand.count_by_stream()
        self._places.clear()
        for stream, pending, consumers in zip(asked, answers[::2], answers[1::2], strict=True):
            if pending["pending"] > ours.get(stream, 0):
                self._places.append((stream, _BEGINNING))
            self._forget(stream, consumers, workers)

    def _forget(self, stream: str, consumers: list[dict[str, Any]], workers: frozenset[str]) -> None:
        """Every start of a worker has a name of its own: the empty ones of the past would pile up."""
        for one in consumers:
            gone = one["idle"] > 2 * self._fleet.fleet_reclaim_idle_ms and one["name"].decode() not in workers
            if gone and one["pending"] == 0:
                self._client.xgroup_delconsumer(stream, self._group, one["name"])

    def claim(self, room: int) -> list[CameraFrame]:
        """Some of what was left behind, `room` frames at most; empty does not mean that all is done.

        Raises:
            redis.RedisError: Redis is away, or the stream is gone.
        """
        stream, start = self._places.popleft()
        answer = self._client.xautoclaim(
            stream,
            self._group,
            self._name,
            min_idle_time=self._fleet.fleet_reclaim_idle_ms,
            start_id=start,
            count=min(room, _MOST),
        )
        following, entries, trimmed = cast("tuple[bytes, list[Any], list[bytes]]", answer)
        if following.decode() != _BEGINNING:
            self._places.appendleft((stream, following.decode()))
        # Redis has taken them off the pending list itself. Those in hand will be answered all the same.
        self._give_up("trimmed", sum((stream, entry.decode()) not in self._in_hand for entry in trimmed))
        found = [(entry, fields) for entry, fields in entries if (stream, entry.decode()) not in self._in_hand]
        return self._sift(stream, found)

    def _sift(self, stream: str, found: list[tuple[bytes, dict[bytes, bytes]]]) -> list[CameraFrame]:
        """Those that have not been delivered too often; the others go to the dead letters."""
        pipe = self._client.pipeline(transaction=False)
        for entry, _ in found:
            pipe.xpending_range(stream, self._group, entry, entry, 1)
        frames = []
        arrived = time.perf_counter()
        for (entry, fields), pending in zip(found, pipe.execute() if found else (), strict=True):
            deliveries = pending[0]["times_delivered"] if pending else 1
            if deliveries > self._fleet.fleet_max_deliveries:
                self._bury(stream, entry, fields, deliveries)
            else:
                frames.append(read_entry(self._prefix, stream, entry, fields, arrived=arrived, claimed=True))
        metrics.FLEET_RECLAIMED.inc(len(frames))
        return frames

    def _bury(self, stream: str, entry: bytes, fields: dict[bytes, bytes], deliveries: int) -> None:
        """Written to the dead letters and acknowledged at once, or neither."""
        most = self._fleet.fleet_max_deliveries
        why = f"delivered {deliveries} times, never acknowledged: its workers ended on it (FLEET_MAX_DELIVERIES={most})"
        letter: dict[Any, Any] = {**fields, b"stream": stream, b"entry_id": entry, b"deliveries": deliveries}
        pipe = self._client.pipeline(transaction=True)
        pipe.xadd(self._prefix + DEAD, letter | {b"error": why}, maxlen=DEAD_MAXLEN, approximate=True)
        pipe.xack(stream, self._group, entry)
        pipe.execute()
        metrics.FLEET_DEAD_LETTERS.inc()
        self._give_up("dead_letter", 1)

    def _give_up(self, reason: str, count: int) -> None:
        if count:
            self._tally.received(count)
            self._tally.dropped(reason, count)

    def keep(self) -> None:
        """Tells Redis that what has long been in hand is still at work, so that nobody claims it.

        Raises:
            redis.ConnectionError: Redis is away.
        """
        held = self._in_hand.older_than(self._fleet.fleet_reclaim_idle_ms / 3000)
        pipe = self._client.pipeline(transaction=False)
        for stream, entries in held.items():
            pipe.xclaim(stream, self._group, self._name, 0, cast("Any", entries), justid=True)
        if held:
            pipe.execute(raise_on_error=False)
