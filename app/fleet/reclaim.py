"""What others left pending in this worker's streams: given out again, given up after too many deliveries, or found to
be trimmed away.

Of a stream that was just acquired all that is pending is left behind: its worker before has lost it. It is given out
before anything newer of its camera, so that the camera's answers stay in order.

A frame that ends its worker's process leaves all that was in hand with it, each delivered once more. Which of them it
was shows at the last delivery that FLEET_MAX_DELIVERIES allows: such suspects are delivered one by one, the next after
the one before was acknowledged. The one that ends the process again is alone past the bound, and it alone is buried.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

import redis

from app import metrics
from app.fleet.frames import CameraFrame, read_entry
from app.fleet.inhand import InHand
from app.fleet.keys import Keys
from app.fleet.leases import Leases
from app.fleet.tally import Tally
from app.settings import FleetSettings

DEAD_MAXLEN = 1000
_MOST = 100
_BEGINNING = "-"


class Reclaimer:
    """Goes over streams that this worker holds. Used by one thread.

    Args:
        epoch_of: the epoch that a stream is held with.
    """

    def __init__(
        self,
        client: redis.Redis,
        leases: Leases,
        keys: Keys,
        fleet: FleetSettings,
        in_hand: InHand,
        tally: Tally,
        *,
        epoch_of: Callable[[str], int],
    ) -> None:
        self._client = client
        self._leases = leases
        self._keys, self._group = keys, keys.group
        self._fleet = fleet
        self._in_hand = in_hand
        self._tally = tally
        self._epoch_of = epoch_of
        self._places: deque[tuple[str, str, int]] = deque()
        """Streams that are still to be gone over, from which entry on, and how long an entry must have been idle."""
        self._suspects: deque[tuple[str, str]] = deque()
        """Stream and entry of those whose next delivery is the last."""
        self._suspect: tuple[str, str] = ("", "")
        """The one that was delivered last."""

    @property
    def busy(self) -> bool:
        """Whether there is something to be given out now."""
        return bool(self._places) or (bool(self._suspects) and self._suspect not in self._in_hand)

    def unfinished(self) -> Collection[str]:
        """Streams of which something left behind is still to come, or is to be answered alone."""
        found = {stream for stream, _, idle_ms in self._places if not idle_ms}
        found.update(stream for stream, _ in self._suspects)
        if self._suspect in self._in_hand:
            found.add(self._suspect[0])
        return found

    def take_over(self, streams: Iterable[str]) -> None:
        """All that is pending in these, and not in hand, is to be given out: their workers before have lost them."""
        self._places.extend((stream, _BEGINNING, 0) for stream in streams)

    def let_go(self, streams: Collection[str]) -> None:
        """These are another worker's now."""
        self._places = deque(place for place in self._places if place[0] not in streams)
        self._suspects = deque(one for one in self._suspects if one[0] not in streams)

    def look_over(self, streams: Iterable[str], workers: frozenset[str]) -> None:
        """Notes streams with more pending than is in this worker's hands: what somebody outside the fleet read and has
        left for FLEET_RECLAIM_IDLE_MS, or what an answer of Redis was lost with. Forgets consumers long gone.

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
        noted = {stream for stream, _, _ in self._places}
        for stream, pending, consumers in zip(asked, answers[::2], answers[1::2], strict=True):
            if pending["pending"] > ours.get(stream, 0) and stream not in noted:
                self._places.append((stream, _BEGINNING, self._fleet.fleet_reclaim_idle_ms))
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
        stream, start, idle_ms = self._places.popleft()
        count = min(room, _MOST)
        held = self._in_hand.entries()  # before Redis is asked: what is acknowledged meanwhile was not left behind
        found: Any = self._client.xpending_range(stream, self._group, start, "+", count, idle=idle_ms or None)
        if len(found) == count:
            self._places.appendleft((stream, f"({found[-1]['message_id'].decode()}", idle_ms))
        left = [one for one in found if (stream, one["message_id"].decode()) not in held]
        return self._sift(stream, left)

    def _sift(self, stream: str, left: list[dict[str, Any]]) -> list[CameraFrame]:
        """Those that may be delivered together; suspects are noted, and what had its last delivery is buried."""
        together: list[bytes] = []
        most = self._fleet.fleet_max_deliveries
        suspects = {entry for of, entry in self._suspects if of == stream}
        for one in left:
            entry, deliveries = one["message_id"], one["times_delivered"]
            if deliveries >= most:
                for _, fields in self._deliver(stream, [entry]):
                    self._bury(stream, entry, fields, deliveries + 1)
            elif suspects or deliveries == most - 1:
                # What comes after one in its camera waits for it, however often it was delivered itself.
                if entry.decode() not in suspects:
                    suspects.add(entry.decode())
                    self._suspects.append((stream, entry.decode()))
            else:
                together.append(entry)
        return self._frames(stream, together)

    def _next_suspect(self) -> list[CameraFrame]:
        """One of them, unless it is done with by now."""
        while self._suspects:
            stream, entry = self._suspects.popleft()
            if not self._client.xpending_range(stream, self._group, entry, entry, 1):
                continue
            if frames := self._frames(stream, [entry.encode()]):
                self._suspect = (stream, entry)
                return frames
        return []

    def _frames(self, stream: str, entries: list[bytes]) -> list[CameraFrame]:
        found = self._deliver(stream, entries)
        arrived, epoch = time.perf_counter(), self._epoch_of(stream)
        metrics.FLEET_RECLAIMED.inc(len(found))
        prefix = self._keys.prefix
        return [read_entry(prefix, stream, *one, arrived=arrived, epoch=epoch, claimed=True) for one in found]

    def _deliver(self, stream: str, entries: list[bytes]) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """The entries with what is in them, counted as one more delivery of each; none where the camera is another
        worker's by now.
        """
        if not entries:
            return []
        found = self._leases.claim(stream, self._epoch_of(stream), entries)
        if found is None:
            self.let_go({stream})
            return []
        self._give_up("trimmed", len(entries) - len(found))
        return found

    def _bury(self, stream: str, entry: bytes, fields: dict[bytes, bytes], deliveries: int) -> None:
        """Written to the dead letters and acknowledged at once, or neither."""
        most = self._fleet.fleet_max_deliveries
        why = f"delivered {deliveries} times, never acknowledged: its workers ended on it (FLEET_MAX_DELIVERIES={most})"
        letter = {**fields, b"stream": stream, b"entry_id": entry, b"deliveries": deliveries, b"error": why}
        if self._leases.bury(stream, self._epoch_of(stream), entry, letter, DEAD_MAXLEN):
            metrics.FLEET_DEAD_LETTERS.inc()
            self._give_up("dead_letter", 1)

    def _give_up(self, reason: str, count: int) -> None:
        if count:
            self._tally.received(count)
            self._tally.dropped(reason, count)
