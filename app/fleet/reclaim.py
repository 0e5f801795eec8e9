"""What workers that died left behind: claimed, given up after too many deliveries, or found to be trimmed away.

A frame that ends its worker's process leaves all that was in hand with it, each delivered once more. Which of them it
was shows at the last delivery that FLEET_MAX_DELIVERIES allows: such suspects are delivered one by one, the next after
the one before was acknowledged. The one that ends the process again is alone past the bound, and it alone is buried.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any, cast

import redis

from app import metrics
from app.fleet.frames import CameraFrame, read_entry
from app.fleet.inhand import InHand
from app.fleet.keys import Keys
from app.fleet.tally import Tally
from app.settings import FleetSettings

DEAD_MAXLEN = 1000
_MOST = 100
_EXAMINED = 10
"""Pending entries that XAUTOCLAIM looks at, for each one that it may claim."""
_BEGINNING = "0-0"


class Reclaimer:
    """Goes over this worker's streams now and then. Used by one thread."""

    def __init__(
        self,
        client: redis.Redis,
        name: str,
        keys: Keys,
        fleet: FleetSettings,
        in_hand: InHand,
        tally: Tally,
    ) -> None:
        self._client = client
        self._name = name
        self._keys, self._group = keys, keys.group
        self._fleet = fleet
        self._in_hand = in_hand
        self._tally = tally
        self._places: deque[tuple[str, str]] = deque()
        """Streams that are still to be gone over, and from which entry on."""
        self._suspects: deque[tuple[str, str]] = deque()
        """Stream and entry of those whose next delivery is the last; claimed, not yet delivered."""
        self._suspect: tuple[str, str] = ("", "")
        """The one that was delivered last."""
        # redis-py would keep the ids alone of an answer with JUSTID.
        client.set_response_callback("XAUTOCLAIM", lambda answer, **_: answer)

    @property
    def busy(self) -> bool:
        """Whether there is something to be claimed now."""
        return bool(self._places) or (bool(self._suspects) and self._suspect not in self._in_hand)

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
            known = one["name"].decode(errors="replace") in workers
            gone = not known and one["idle"] > 2 * self._fleet.fleet_reclaim_idle_ms
            if gone and one["pending"] == 0:
                self._client.xgroup_delconsumer(stream, self._group, one["name"])

    def claim(self, room: int) -> list[CameraFrame]:
        """Some of what was left behind, `room` frames at most; empty does not mean that all is done.

        Raises:
            redis.RedisError: Redis is away, or the stream is gone.
        """
        if not self._places:
            return self._next_suspect()
        stream, start = self._places.popleft()
        held, idle_ms, count = self._in_hand.entries(), self._fleet.fleet_reclaim_idle_ms, min(room, _MOST)
        pipe = self._client.pipeline(transaction=True)
        pipe.xpending_range(stream, self._group, start, "+", _EXAMINED * count, idle=idle_ms)
        # With JUSTID they are taken over, not delivered: what each one's next delivery means is looked at first.
        pipe.xautoclaim(stream, self._group, self._name, idle_ms, start, count, justid=True)
        idle, (following, entries, trimmed) = pipe.execute()
        if following.decode() != _BEGINNING:
            self._places.appendleft((stream, following.decode()))
        # Redis has taken what was trimmed off the pending list itself, whoever has it. What is not idle, or was in hand
        # here when Redis was asked, is answered and counted by the worker that has it.
        left = {one["message_id"] for one in idle}
        self._give_up("trimmed", sum(one in left and (stream, one.decode()) not in held for one in trimmed))
        return self._sift(stream, [entry for entry in entries if (stream, entry.decode()) not in held])

    def _sift(self, stream: str, found: list[bytes]) -> list[CameraFrame]:
        """Those that may be delivered together; suspects are noted, and what had its last delivery is buried."""
        pipe = self._client.pipeline(transaction=False)
        for entry in found:
            pipe.xpending_range(stream, self._group, entry, entry, 1)
        together: list[bytes] = []
        most = self._fleet.fleet_max_deliveries
        for entry, pending in zip(found, pipe.execute() if found else (), strict=True):
            if not pending:
                continue  # its worker was only slow, and has just acknowledged it
            deliveries = pending[0]["times_delivered"]
            if deliveries >= most:
                for _, fields in self._deliver(stream, [entry]):
                    self._bury(stream, entry, fields, deliveries + 1)
            elif deliveries == most - 1:
                self._suspects.append((stream, entry.decode()))
            else:
                together.append(entry)
        return self._frames(stream, together)

    def _next_suspect(self) -> list[CameraFrame]:
        """One of them, unless others have it by now."""
        while self._suspects:
            stream, entry = self._suspects.popleft()
            if not self._client.xpending_range(stream, self._group, entry, entry, 1, consumername=self._name):
                continue  # this worker stood still for long, and another one claimed it
            if frames := self._frames(stream, [entry.encode()]):
                self._suspect = (stream, entry)
                return frames
        return []

    def _frames(self, stream: str, entries: list[bytes]) -> list[CameraFrame]:
        found = self._deliver(stream, entries)
        arrived = time.perf_counter()
        metrics.FLEET_RECLAIMED.inc(len(found))
        return [read_entry(self._keys.prefix, stream, *one, arrived=arrived, claimed=True) for one in found]

    def _deliver(self, stream: str, entries: list[bytes]) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """The entries with what is in them, counted as one more delivery of each."""
        if not entries:
            return []
        answer = self._client.xclaim(stream, self._group, self._name, 0, cast("Any", entries))
        found = cast("list[tuple[bytes, dict[bytes, bytes]]]", answer)
        self._give_up("trimmed", len(entries) - len(found))  # since they were claimed; Redis forgot them with that
        return found

    def _bury(self, stream: str, entry: bytes, fields: dict[bytes, bytes], deliveries: int) -> None:
        """Written to the dead letters and acknowledged at once, or neither."""
        most = self._fleet.fleet_max_deliveries
        why = f"delivered {deliveries} times, never acknowledged: its workers ended on it (FLEET_MAX_DELIVERIES={most})"
        letter: dict[Any, Any] = {**fields, b"stream": stream, b"entry_id": entry, b"deliveries": deliveries}
        pipe = self._client.pipeline(transaction=True)
        pipe.xadd(self._keys.dead, letter | {b"error": why}, maxlen=DEAD_MAXLEN, approximate=True)
        pipe.xack(stream, self._group, entry)
        pipe.execute()
        metrics.FLEET_DEAD_LETTERS.inc()
        self._give_up("dead_letter", 1)

    def _give_up(self, reason: str, count: int) -> None:
        if count:
            self._tally.received(count)
            self._tally.dropped(reason, count)

    def keep(self) -> None:
        """Tells Redis that what has long been in hand, or waits for its last delivery, is looked after: nobody is to
        claim it.

        Raises:
            redis.ConnectionError: Redis is away.
        """
        held = self._in_hand.older_than(self._fleet.fleet_reclaim_idle_ms / 3000)
        for stream, entry in self._suspects:
            held.setdefault(stream, []).append(entry)
        pipe = self._client.pipeline(transaction=False)
        for stream, entries in held.items():
            pipe.xclaim(stream, self._group, self._name, 0, cast("Any", entries), justid=True)
        if held:
            pipe.execute(raise_on_error=False)
