"""A worker's source without models and Kafka: frames are answered by the test."""

from __future__ import annotations

from collections.abc import Callable

import redis as redis_library

from app.fleet.frames import CameraFrame
from app.fleet.inhand import InHand
from app.fleet.source import Source
from app.fleet.tally import Tally
from app.settings import FleetSettings, RedisSettings
from tests.fleet.work import GROUP
from tests.support.redis import RedisServer

IDLE_MS = 1000
ROOM = 128


class Life:
    """A worker's source, from its start until its process is gone."""

    def __init__(self, server: RedisServer, name: str, **fleet) -> None:
        chosen = {
            "fleet_discover_s": 0.05,
            "frame_staleness_ms": 3_600_000,
            "fleet_reclaim_s": 0.1,
            "fleet_reclaim_idle_ms": IDLE_MS,
        }
        self.in_hand = InHand(ROOM)
        self.tally = Tally()
        settings = RedisSettings(redis_url=server.url), FleetSettings(**{**chosen, **fleet})
        self.source = Source(name, *settings, self.in_hand, self.tally)

    def read(self, room: int | None = None) -> list[CameraFrame]:
        return self.source.read(self.in_hand.room(1, 0.1) if room is None else room)

    def keep(self) -> None:
        """Renews its lease, as a worker that finishes what is in hand."""
        self.source._leases.keep()

    def answered(self, client: redis_library.Redis, frames: list[CameraFrame]) -> None:
        for frame in frames:
            client.xack(frame.origin.stream, GROUP, frame.origin.entry)
        if frames:
            self.in_hand.looked_at(frames)
        self.in_hand.settle([frame.origin for frame in frames])


Begin = Callable[..., Life]
