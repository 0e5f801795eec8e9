"""Frames out of Redis Streams: one consumer of the workers' group, over the streams of its own cameras.

Blocking; used by one thread, which is what feeds the event loop in `async` and the pool in `sync`.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any, cast

import redis

from app import metrics
from app.errors import ConfigurationError
from app.fleet.connection import AWAY, Outage, connect, require_version
from app.fleet.frames import CameraFrame, read_entry
from app.fleet.inhand import InHand
from app.fleet.keys import Keys
from app.fleet.lag import Looks
from app.fleet.reclaim import Reclaimer
from app.fleet.roster import Roster
from app.fleet.shards import Turns, spread
from app.fleet.tally import Tally
from app.settings import FleetSettings, RedisSettings

log = logging.getLogger(__name__)

_ALONE_MS = 100
"""Longest wait of a read that asks all streams at once."""
_AMONG_MS = 10
"""The same of one that asks a part of them, once a whole round has brought nothing."""


def consumer_name() -> str:
    """A name that no other worker has, nor an earlier life of this one."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class Source:
    """The streams of this worker's cameras. Whatever `read` hands out is in `in_hand` until it is acknowledged.

    Args:
        on_streams: called with the streams whenever they are others.
    """

    def __init__(
        self,
        name: str,
        settings: RedisSettings,
        fleet: FleetSettings,
        in_hand: InHand,
        tally: Tally,
        *,
        on_streams: Callable[[frozenset[str]], None] | None = None,
    ) -> None:
        self.name = name
        keys = Keys.of(settings)
        self._prefix, self._group = keys.prefix, keys.group
        self._fleet = fleet
        self._in_hand = in_hand
        self._tally = tally
        self._on_streams = on_streams
        self._client = connect(settings)
        self._roster = Roster(self._client, name, keys, fleet)
        self._reclaimer = Reclaimer(self._client, name, keys, fleet, in_hand, tally)
        self._looks = Looks(keys)
        self._outage = Outage("frames")
        self._turns = Turns(())
        self._unanswered = 0
        """Streams asked in a row that had nothing."""
        self._next_look = self._next_reclaim = self._next_keep = 0.0
        self.lag = 0
        """Frames that waited in Redis at the last look."""

    @property
    def up(self) -> bool:
        """Whether Redis answered last."""
        return self._outage.over

    def check(self) -> None:
        """Asks the server who it is. One that is away is no error: it is waited for.

        Raises:
            ConfigurationError: this Redis will not do.
        """
        try:
            require_version(self._client)
        except redis.AuthenticationError as error:
            raise ConfigurationError(f"REDIS_URL: {error}; want redis://user:password@host:6379") from None
        except redis.RedisError as error:
            self._outage.again(error)

    def read(self, room: int) -> list[CameraFrame]:
        """New frames, `room` at most, in the order of their streams; waits a moment for the first. Never raises for
        an outage of Redis: it waits a moment, too.

        `room` may be 0: the worker's name is kept alive and its cameras are kept up with all the same.
        """
        if self._outage.resting:
            time.sleep(0.02)
            return []
        try:
            frames = self._next(room)
        except AWAY as error:
            self._outage.again(error)
            self._client.connection_pool.disconnect()
            return []
        except redis.ResponseError as error:
            self._refused(error)
            return []
        self._outage.ended()
        if frames:
            self._in_hand.take(frame.origin for frame in frames)
            self._tally.received(len(frames))
        return frames

    def _next(self, room: int) -> list[CameraFrame]:
        now = time.monotonic()
        if now >= self._next_look:
            self._look_around(now)
        if now >= self._next_keep:
            self._reclaimer.keep()
            self._next_keep = now + self._fleet.fleet_reclaim_idle_ms / 6000
        if now >= self._next_reclaim:
            self._reclaimer.begin(self._roster.streams, self._roster.workers)
            self._next_reclaim = now + self._fleet.fleet_reclaim_s
        if not room:
            return []
        if self._reclaimer.busy:
            return self._reclaimer.claim(room)
        if not len(self._turns):
            time.sleep(0.05)
            return []
        return self._read_group(room)

    def _look_around(self, now: float) -> None:
        changed = self._roster.look()
        cameras = [stream.removeprefix(self._prefix) for stream in self._roster.streams]
        self.lag = sum(look.lag or 0 for look in self._looks.read(self._client, cameras).values())
        metrics.FLEET_LAG.set(self.lag)
        self._next_look = now + self._fleet.fleet_discover_s
        if not changed:
            return
        streams = self._roster.streams
        self._turns = Turns(spread(streams, self._fleet.fleet_shards))
        self._unanswered = 0
        metrics.FLEET_CAMERAS.set(len(streams))
        self._next_reclaim = 0.0  # what came to us may bring what its last worker left
        log.info("%s reads %d cameras; workers signed on: %d", self.name, len(streams), len(self._roster.workers))
        if self._on_streams is not None:
            self._on_streams(streams)

    def _read_group(self, room: int) -> list[CameraFrame]:
        streams, count = self._turns.next(room)
        everything = len(self._roster.streams)
        if len(streams) == everything:
            wait_ms = _ALONE_MS
        else:
            # Waiting for some streams would keep the others waiting: only once none of them had anything.
            wait_ms = _AMONG_MS if self._unanswered >= everything else 0
        answer = self._client.xreadgroup(
            self._group,
            self.name,
            dict.fromkeys(streams, ">"),
            count=count,
            block=wait_ms or None,
        )
        arrived = time.perf_counter()
        frames = [
            read_entry(self._prefix, stream.decode(), entry, fields, arrived=arrived)
            for stream, entries in cast("list[Any]", answer or [])
            for entry, fields in entries
        ]
        self._unanswered = 0 if frames else self._unanswered + len(streams)
        return frames

    def _refused(self, error: redis.ResponseError) -> None:
        """The group is gone after a restart without persistence, or a stream was deleted, or replaced, under us."""
        text = str(error)
        if any(word in text for word in ("NOGROUP", "UNBLOCKED", "no such key", "WRONGTYPE")):
            log.warning("Redis has lost streams or groups; they are looked for anew: %s", text)
            self._roster.forget_groups()
            self._next_look = 0.0
            return
        self._outage.again(error)  # READONLY, OOM and the like: waited out, and told once
        self._client.connection_pool.disconnect()  # after a failover the name may stand for another server

    def sign_off(self) -> None:
        """Nothing more is read: the cameras go to others, while this worker finishes what is in hand."""
        try:
            self._roster.leave()
        except redis.RedisError as error:
            log.warning("Redis is away while signing off; the name %s expires by itself: %s", self.name, error)

    def leave(self) -> None:
        """Ends, after `sign_off`; the consumer is deleted where it left nothing pending."""
        try:
            for stream in self._roster.streams:
                pending = self._client.xpending_range(stream, self._group, "-", "+", 1, consumername=self.name)
                if not pending:
                    self._client.xgroup_delconsumer(stream, self._group, self.name)
        except redis.RedisError as error:
            log.warning("Redis is away at the end; it keeps the empty consumer %s for a while: %s", self.name, error)
        finally:
            self._client.close()
