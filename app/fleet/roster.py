"""Which cameras there are, which workers, and so which cameras are to be this worker's.

Whoever reads asks a roster to `look`, and then for `streams`: how cameras find their workers is known to nobody else.
When a camera may be read, once its worker before has let go of it, is a matter of its lease.

Workers write themselves into a sorted set, scored by when they count as gone; cameras are those that ingest names, and
whatever streams carry the prefix. One worker looks for these, the first by name, and tells the others: going through
all keys takes time of Redis' one thread, the more of it the more else it holds. Redis' own clock is used throughout.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import orjson
import redis

from app.fleet.connection import answers_of, is_barred, is_outage, write
from app.fleet.keys import Keys, camera_ids
from app.fleet.shards import assign
from app.settings import FleetSettings

log = logging.getLogger(__name__)

_MISSED_LOOKS = 3
"""Looks that a worker may miss before its cameras go to others."""
_LEAST_LASTING_MS = 2000.0
"""However often it looks: a machine that is busy with something else makes a worker silent for a second."""
_FOUND_LOOKS = 100
"""Looks after which Redis forgets what a worker found that is no more; by then another one has found it."""
_IDS = 1000
"""Cameras in one command: a script, which it is in a full Redis, has room for some thousands of words."""


def lasting_ms(fleet: FleetSettings) -> float:
    """How long after a worker was last heard of its cameras stay its own."""
    return max(_LEAST_LASTING_MS, _MISSED_LOOKS * fleet.fleet_discover_s * 1000)


class Roster:
    """Used by one thread."""

    def __init__(
        self,
        client: redis.Redis,
        name: str,
        keys: Keys,
        fleet: FleetSettings,
        away: Callable[[], dict[str, str]] = dict,
    ) -> None:
        """`away`: what this worker cannot reach, by name, each with why; told with every look."""
        self._client = client
        self._name = name
        self._keys = keys
        self._away = away
        self._found_ms = max(1, round(_FOUND_LOOKS * fleet.fleet_discover_s * 1000))
        self._lasting_ms = lasting_ms(fleet)
        self._looked: float | None = None
        self._clock_ms = time.time() * 1000 - time.monotonic() * 1000
        """Redis' clock over our monotonic one, at the last look."""
        self._seen: tuple[frozenset[str], frozenset[str]] | None = None
        self._mine: frozenset[str] = frozenset()
        """Streams of this worker's cameras, whether or not they can be read."""
        self._grouped: set[str] = set()
        self._wrong: list[bytes] = []
        """Names that are no camera's, at the last look; said once."""
        self._unusable: set[str] = set()
        """Those that could not be read at the last look; said once."""
        self.barred = False
        """Whether the account may not touch some of them."""
        self.workers: frozenset[str] = frozenset()
        self.streams: frozenset[str] = frozenset()
        """Of this worker's cameras; each has the consumer group."""
        self.known: frozenset[str] = frozenset()
        """Streams of all cameras."""

    @property
    def leads(self) -> bool:
        """Whether this worker does what one is to do for all: the first by name."""
        return self._name == min(self.workers, default=self._name)

    @property
    def now_ms(self) -> float:
        """Epoch milliseconds by Redis' clock."""
        return time.monotonic() * 1000 + self._clock_ms

    def look(self) -> bool:
        """Signs on again and looks around; whether this worker's streams are others now.

        After a long silence nothing changes at the first look: where Redis was away, or stood still, all workers were
        silent, and each must have the time to sign on again before the others share its cameras.

        Raises:
            redis.RedisError: Redis is away.
        """
        before = time.monotonic()
        silent = self._looked is not None and (before - self._looked) * 1000 > self._lasting_ms / 2
        seconds, microseconds = self._client.time()
        now_ms = seconds * 1000 + microseconds / 1000
        self._clock_ms = now_ms - time.monotonic() * 1000
        self._looked = before
        keys, away = self._keys, self._away()
        trouble = ("HSET", keys.away, self._name, orjson.dumps(away)) if away else ("HDEL", keys.away, self._name)
        write(self._client, [("ZADD", keys.workers, now_ms + self._lasting_ms, self._name), trouble])
        pipe = self._client.pipeline(transaction=False)
        pipe.zremrangebyscore(keys.workers, "-inf", now_ms)
        pipe.zrange(keys.workers, 0, -1)
        pipe.smembers(keys.cameras)
        pipe.smembers(keys.found)
        pipe.hkeys(keys.away)
        _, workers, named, found, troubled = pipe.execute()
        self.workers = frozenset(worker.decode(errors="replace") for worker in workers)
        if self.leads:
            if gone := set(troubled) - set(workers):
                self._client.hdel(keys.away, *gone)
            found = self._streaming(found)
        known, wrong = camera_ids(named | found)
        self._say(wrong)
        self.known = frozenset(map(keys.stream, known))
        seen = frozenset(known), self.workers
        if seen != self._seen and not silent:
            owners = assign(known, self.workers)
            self._mine = frozenset(keys.stream(camera) for camera, owner in owners.items() if owner == self._name)
            self._seen = seen
        return self._group_up(self._mine)

    def _streaming(self, before: set[bytes]) -> set[bytes]:
        """Cameras whose streams are there, whoever fills them; written down for the other workers."""
        keys = self._keys
        found = keys.cameras_among(self._client.scan_iter(match=keys.pattern, count=1000, _type="stream"))
        if gone := before - found:
            self._client.srem(keys.found, *gone)
        if ids := [*found]:
            parts = [ids[at : at + _IDS] for at in range(0, len(ids), _IDS)]
            adding = [("SADD", keys.found, *part) for part in parts]
            write(self._client, [*adding, ("PEXPIRE", keys.found, self._found_ms)])
        return found

    def _say(self, wrong: list[bytes]) -> None:
        if wrong and wrong != self._wrong:
            log.error("%d streams or cameras are left out, their names are not UTF-8: %r", len(wrong), wrong[0])
        self._wrong = wrong

    def _group_up(self, streams: frozenset[str]) -> bool:
        """Makes the consumer group where it is missing, from the first entry on; whether the streams changed."""
        self._grouped &= streams
        self._unusable &= streams
        barred: list[redis.RedisError] = []
        missing = sorted(streams - self._grouped)
        commands = [("XGROUP", "CREATE", stream, self._keys.group, "0", "MKSTREAM") for stream in missing]
        for stream, answer in zip(missing, answers_of(self._client, commands), strict=True):
            if not isinstance(answer, redis.RedisError) or "BUSYGROUP" in str(answer):
                self._grouped.add(stream)
                self._unusable.discard(stream)
            elif is_outage(answer):
                raise answer
            else:
                if is_barred(answer):
                    barred.append(answer)
                if stream not in self._unusable:
                    self._unusable.add(stream)
                    log.error("the stream %s cannot be read: %s; it is tried again at every look", stream, answer)
        usable = streams & self._grouped
        if barred and not usable:
            raise barred[0]
        self.barred = bool(barred)
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
        self._client.zrem(self._keys.workers, self._name)
        self._client.hdel(self._keys.away, self._name)
