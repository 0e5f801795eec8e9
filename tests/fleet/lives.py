"""A worker's consumer without models and Kafka: the test itself finishes the frames."""

from __future__ import annotations

from collections.abc import Callable

import redis as redis_library

from app.fleet.connection import connect
from app.fleet.consumer import Consumer
from app.fleet.in_flight import InFlight, MetricsBuffer
from app.fleet.leases import Leases
from app.fleet.membership import lease_ms
from app.fleet.streams import CameraFrame, Keys
from app.settings import FleetSettings, RedisSettings
from tests.fleet.work import GROUP
from tests.support.redis import RedisServer

IDLE_MS = 1000
ROOM = 128


class Life:
    """A worker's consumer, from its start until its process is gone."""

    def __init__(self, server: RedisServer, name: str, **fleet) -> None:
        chosen = {
            "fleet_discover_s": 0.05,
            "frame_staleness_ms": 3_600_000,
            "fleet_reclaim_s": 0.1,
            "fleet_reclaim_idle_ms": IDLE_MS,
        }
        self.in_flight = InFlight(ROOM)
        self.counts = MetricsBuffer()
        self._settings, self._fleet = RedisSettings(redis_url=server.url), FleetSettings(**{**chosen, **fleet})
        self.consumer = Consumer(name, self._settings, self._fleet, self.in_flight, self.counts)

    def read(self, room: int | None = None) -> list[CameraFrame]:
        return self.consumer.read(self.in_flight.room(1, 0.1) if room is None else room)

    def keep(self) -> None:
        """Renews its lease, as a worker does that finishes its frames in flight."""
        with connect(self._settings) as client:
            Leases(client, self.consumer.name, Keys.of(self._settings), lease_ms(self._fleet)).keep()

    def answered(self, client: redis_library.Redis, frames: list[CameraFrame]) -> None:
        for frame in frames:
            client.xack(frame.origin.stream, GROUP, frame.origin.entry)
        if frames:
            self.in_flight.analyzed(frames)
        self.in_flight.acknowledged([frame.origin for frame in frames])


Begin = Callable[..., Life]
