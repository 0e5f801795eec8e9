"""Which cameras there are, which workers, and so which cameras are this worker's.

Workers write themselves into a sorted set, scored by when they count as gone; cameras are the members of
`fleet:cameras`, which ingest keeps, and whatever streams carry the prefix. Redis' own clock is used throughout.
"""

from __future__ import annotations

import logging

import redis

from app.fleet.shards import assign
from app.settings import FleetSettings, RedisSettings

log = logging.getLogger(__name__)

CAMERAS_KEY = "fleet:cameras"
DEAD = "dead"
"""The stream `frames:dead` holds what was given up; it is no camera."""
_MISSED_LOOKS = 3
"""Looks that a worker may miss before its cameras go to others."""


def workers_key(group: str) -> str:
    return f"fleet:workers:{group}"


class Roster:
    """Used by one thread."""

    def __init__(self, client: redis.Redis, name: str, settings: RedisSettings, fleet: FleetSettings) -> None:
        self._client = client
        self._name = name
        self._prefix = settings.fleet_stream_prefix
        self._group = settings.fleet_group
        self._lasting_ms = _MISSED_LOOKS * fleet.fleet_discover_s * 1000
        self._seen: tuple[frozenset[str], frozenset[str]] | None = None
        self._mine: frozenset[str] = frozenset()
        """Streams of this worker's cameras, whether or not they can be read."""
        self._grouped: set[str] = set()
        self._unusable: set[str] = set()
        """Those that could not be read at the last look; said once."""
        self.workers: frozenset[str] = frozenset()
        self.streams: frozenset[str] = frozenset()
        """Of this worker's cameras; each has the consumer group."""

    def look(self) -> bool:
        """Signs on again and looks around; whether this worker's streams are others now.

        Raises:
            redis.RedisError: Redis is away.
        """
        seconds, microseconds = self._client.time()
        now_ms = seconds * 1000 + microseconds / 1000
        pipe = self._client.pipeline()
        pipe.zadd(workers_key(self._group), {self._name: now_ms + self._lasting_ms})
        pipe.zremrangebyscore(workers_key(self._group), "-inf", now_ms)
        pipe.zrange(workers_key(self._group), 0, -1)
        pipe.smembers(CAMERAS_KEY)
        _, _, workers, cameras = pipe.execute()
        self.workers = frozenset(worker.decode() for worker in workers)
        known = {camera.decode() for camera in cameras} | self._streaming()
        known.discard(DEAD)
        seen = frozenset(known), self.workers
        if seen != self._seen:
            owners = assign(known, self.workers)
            self._mine = frozenset(self._prefix + camera for camera, owner in owners.items() if owner == self._name)
            self._seen = seen
        return self._group_up(self._mine)

    def _streaming(self) -> set[str]:
        """Cameras whose streams are there, whoever fills them."""
        pattern = _literal(self._prefix) + "*"
        found = self._client.scan_iter(match=pattern, count=1000, _type="stream")
        return {key.decode().removeprefix(self._prefix) for key in found}

    def _group_up(self, streams: frozenset[str]) -> bool:
        """Makes the consumer group where it is missing, from the first entry on; whether the streams changed."""
        self._grouped &= streams
        self._unusable &= streams
        missing = sorted(streams - self._grouped)
        pipe = self._client.pipeline(transaction=False)
        for stream in missing:
            pipe.xgroup_create(stream, self._group, id="0", mkstream=True)
        for stream, answer in zip(missing, pipe.execute(raise_on_error=False) if missing else (), strict=True):
            if answer is True or "BUSYGROUP" in str(answer):
                self._grouped.add(stream)
                self._unusable.discard(stream)
            elif isinstance(answer, redis.ConnectionError):
                raise answer
            elif stream not in self._unusable:
                self._unusable.add(stream)
                log.error("the stream %s cannot be read: %s; it is tried again at every look", stream, answer)
        usable = streams & self._grouped
        changed = usable != self.streams
        self.streams = usable
        return changed

    def forget_groups(self) -> None:
        """Redis lost groups (restarted empty, or a stream was deleted): the next look makes those that are wanted."""
        self._grouped.clear()
        self._unusable.clear()
        self._seen = None

    def leave(self) -> None:
        """Signs off: the cameras go to others at their next look."""
        self._client.zrem(workers_key(self._group), self._name)


def _literal(prefix: str) -> str:
    """The prefix for MATCH, whose own signs stand for themselves."""
    return "".join(f"\\{sign}" if sign in "*?[]\\^" else sign for sign in prefix)
