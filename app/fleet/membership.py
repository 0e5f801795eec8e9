"""The fleet's workers and cameras, the assignment of cameras to workers, and the order in which a worker reads them.

Workers write themselves into a sorted set, scored by the time at which they count as gone. Cameras are those that
ingest has registered, and all other streams with the fleet's prefix. Every worker computes the same assignment from the
same two lists, so that no worker has to coordinate it. `leases.py` decides when a worker may read an assigned camera.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import orjson
import redis
from numpy.typing import NDArray

from app.fleet.connection import execute_all, execute_each, is_forbidden, is_outage
from app.fleet.streams import Keys, split_camera_ids
from app.settings import FleetSettings

log = logging.getLogger(__name__)

_MISSED_REFRESHES = 3
"""Refreshes that a worker may miss before its cameras go to others."""
_LEAST_LEASE_MS = 2000.0
"""Shortest lease, however often workers refresh: a busy machine can silence a worker for a second."""
_FOUND_REFRESHES = 100
"""Refreshes after which Redis forgets the streams that a dead leader found; by then the next leader has found them."""
_IDS = 1000
"""Cameras in one command: a full Redis runs it as a script, which takes a few thousand arguments at most."""
STREAMS_PER_READ = 32
"""Streams in one XREAD: enough to share the command's own cost, few enough that each frame arrives soon."""
_QUARTER = 4
_ROWS = 1024
"""Cameras that are scored at once: their scores for a thousand workers take 8 MB."""


def lease_ms(fleet: FleetSettings) -> float:
    """How long a silent worker keeps its cameras."""
    return max(_LEAST_LEASE_MS, _MISSED_REFRESHES * fleet.fleet_discover_s * 1000)


class Membership:
    """This worker's view of the fleet. Used by one thread. All times are Redis' own."""

    def __init__(
        self,
        client: redis.Redis,
        name: str,
        keys: Keys,
        fleet: FleetSettings,
        away: Callable[[], dict[str, str]] = dict,
    ) -> None:
        """`away`: the services that this worker cannot reach, with the reason; published at every refresh."""
        self._client = client
        self._name = name
        self._keys = keys
        self._away = away
        self._found_ms = max(1, round(_FOUND_REFRESHES * fleet.fleet_discover_s * 1000))
        self._lease_ms = lease_ms(fleet)
        self._refreshed: float | None = None
        self._clock_ms = time.time() * 1000 - time.monotonic() * 1000
        """Redis' clock minus the monotonic clock, at the last refresh."""
        self._seen: tuple[frozenset[str], frozenset[str]] | None = None
        self._assigned: frozenset[str] = frozenset()
        """Streams of this worker's cameras, including those that cannot be read."""
        self._grouped: set[str] = set()
        self._wrong: list[bytes] = []
        """Names at the last refresh that are not valid camera ids; logged once."""
        self._unusable: set[str] = set()
        """Streams that could not be read at the last refresh; logged once."""
        self.forbidden = False
        """Whether the account may not access some of them."""
        self.workers: frozenset[str] = frozenset()
        self.streams: frozenset[str] = frozenset()
        """Streams of this worker's cameras that have the consumer group."""
        self.known: frozenset[str] = frozenset()
        """Streams of all cameras."""

    @property
    def leads(self) -> bool:
        """Whether this worker is the first by name, which does the work that one worker does for all."""
        return self._name == min(self.workers, default=self._name)

    @property
    def now_ms(self) -> float:
        """Epoch milliseconds by Redis' clock."""
        return time.monotonic() * 1000 + self._clock_ms

    def refresh(self) -> bool:
        """Signs on again and reads the lists; returns whether this worker's streams have changed.

        The first refresh after a long silence changes no assignment: if Redis was unreachable or stood still, all
        workers were silent, and each must have the time to sign on again before the others share its cameras.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        before = time.monotonic()
        silent = self._refreshed is not None and (before - self._refreshed) * 1000 > self._lease_ms / 2
        seconds, microseconds = self._client.time()
        now_ms = seconds * 1000 + microseconds / 1000
        self._clock_ms = now_ms - time.monotonic() * 1000
        self._refreshed = before
        keys, away = self._keys, self._away()
        publishing = ("HSET", keys.away, self._name, orjson.dumps(away)) if away else ("HDEL", keys.away, self._name)
        execute_all(self._client, [("ZADD", keys.workers, now_ms + self._lease_ms, self._name), publishing])
        pipe = self._client.pipeline(transaction=False)
        pipe.zremrangebyscore(keys.workers, "-inf", now_ms)
        pipe.zrange(keys.workers, 0, -1)
        pipe.smembers(keys.cameras)
        pipe.smembers(keys.found)
        pipe.hkeys(keys.away)
        _, workers, registered, found, publishers = pipe.execute()
        self.workers = frozenset(worker.decode(errors="replace") for worker in workers)
        if self.leads:
            if gone := set(publishers) - set(workers):
                self._client.hdel(keys.away, *gone)
            found = self._find_streams(found)
        known, wrong = split_camera_ids(registered | found)
        self._log_wrong(wrong)
        self.known = frozenset(map(keys.stream, known))
        seen = frozenset(known), self.workers
        if seen != self._seen and not silent:
            owners = assign(known, self.workers)
            self._assigned = frozenset(keys.stream(camera) for camera, owner in owners.items() if owner == self._name)
            self._seen = seen
        return self._create_groups(self._assigned)

    def _find_streams(self, before: set[bytes]) -> set[bytes]:
        """The cameras of all streams with the prefix; written to Redis for the other workers.

        Only the leader scans, because a scan takes time of Redis' single thread: the more keys, the more time.
        """
        keys = self._keys
        found = keys.cameras_of(self._client.scan_iter(match=keys.pattern, count=1000, _type="stream"))
        if gone := before - found:
            self._client.srem(keys.found, *gone)
        if ids := [*found]:
            parts = [ids[at : at + _IDS] for at in range(0, len(ids), _IDS)]
            adding = [("SADD", keys.found, *part) for part in parts]
            execute_all(self._client, [*adding, ("PEXPIRE", keys.found, self._found_ms)])
        return found

    def _log_wrong(self, wrong: list[bytes]) -> None:
        if wrong and wrong != self._wrong:
            log.error("%d streams or cameras are left out, their names are not UTF-8: %r", len(wrong), wrong[0])
        self._wrong = wrong

    def _create_groups(self, streams: frozenset[str]) -> bool:
        """Creates missing consumer groups, from the first entry on; returns whether `self.streams` has changed."""
        self._grouped &= streams
        self._unusable &= streams
        forbidden: list[redis.RedisError] = []
        missing = sorted(streams - self._grouped)
        commands = [("XGROUP", "CREATE", stream, self._keys.group, "0", "MKSTREAM") for stream in missing]
        for stream, answer in zip(missing, execute_each(self._client, commands), strict=True):
            if not isinstance(answer, redis.RedisError) or "BUSYGROUP" in str(answer):
                self._grouped.add(stream)
                self._unusable.discard(stream)
            elif is_outage(answer):
                raise answer
            else:
                if is_forbidden(answer):
                    forbidden.append(answer)
                if stream not in self._unusable:
                    self._unusable.add(stream)
                    log.error("the stream %s cannot be read: %s; it is tried again at every refresh", stream, answer)
        usable = streams & self._grouped
        if forbidden and not usable:
            raise forbidden[0]
        self.forbidden = bool(forbidden)
        changed = usable != self.streams
        self.streams = usable
        return changed

    def forget_groups(self) -> None:
        """Makes the next refresh create the groups again: Redis has lost some (a restart, or a deleted stream)."""
        self._grouped.clear()
        self._unusable.clear()
        self._seen = None

    def leave(self) -> None:
        """Signs off: the cameras go to others at their next refresh."""
        self._client.zrem(self._keys.workers, self._name)
        self._client.hdel(self._keys.away, self._name)


# --- the assignment of cameras to workers ---


def _stable_hash(*words: str) -> int:
    """A hash that is equal in every process; Python's own is salted."""
    return int.from_bytes(blake2b("\0".join(words).encode(), digest_size=8).digest())


def assign(cameras: Iterable[str], workers: Collection[str]) -> dict[str, str]:
    """The worker of every camera: rendezvous hashing (Thaler and Ravishankar 1998) with bounded loads (Mirrokni,
    Thorup and Zadimoghaddam 2016).

    A camera goes to the worker with the highest score for it among those below their limit; cameras choose in the order
    of their hashes. A worker's limit is a quarter above its even share, so that few cameras get another worker than
    their first choice: as a rule, a camera that comes or goes moves no other camera, and a worker that comes or goes
    moves its own cameras and very few others. A camera has one worker at a time, so that its stream memory (tracks, the
    last image) stays in one process and its frames stay in order.
    """
    ordered = sorted(cameras, key=_stable_hash)
    if not workers:
        return {}
    names = sorted(workers)
    camera_hashes = np.array([_stable_hash(camera) for camera in ordered], np.uint64)
    worker_hashes = np.array([_stable_hash("worker", worker) for worker in names], np.uint64)
    room = _room(len(ordered), names)
    full = np.array(room) == 0
    owners = {}
    for first in range(0, len(ordered), _ROWS):
        scores = _mixed(camera_hashes[first : first + _ROWS, None] ^ worker_hashes)
        favourites = scores.argmax(axis=1).tolist()
        for row, camera in enumerate(ordered[first : first + _ROWS]):
            owner = favourites[row]
            if not room[owner]:
                owner = int(np.where(full, 0, scores[row]).argmax())
            room[owner] -= 1
            full[owner] = not room[owner]
            owners[camera] = names[owner]
    return owners


def _room(cameras: int, workers: Sequence[str]) -> list[int]:
    """Most cameras of each worker: a quarter more than the even share, rounded up; only the even share while a quarter
    of it is less than one camera.

    If the quarter were rounded up for all workers at once, one more camera would sometimes raise every worker's limit,
    and each would take back cameras that had gone elsewhere. So the limits grow one worker after the other, in the
    order of their hashes, over the first quarter of a step.
    """
    count = len(workers)
    if cameras < _QUARTER * count:
        return [-(-cameras // count)] * count
    least, part = divmod((_QUARTER + 1) * cameras, _QUARTER * count)
    further = set(sorted(workers, key=lambda worker: _stable_hash("room", worker))[:part])
    return [least + (worker in further) for worker in workers]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): each bit of the result depends on every bit of the
    input.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


# --- the order of reading ---


def split_shards(streams: Iterable[str], most: int) -> list[tuple[str, ...]]:
    """Streams in shards of equal size, plus or minus one: one for every `STREAMS_PER_READ`, `most` at most, none empty.

    They are ordered by hash, so that cameras with similar names are not read together.
    """
    ordered = sorted(streams, key=_stable_hash)
    count = min(most, -(-len(ordered) // STREAMS_PER_READ))
    cuts = [len(ordered) * shard // count for shard in range(count + 1)] if count else []
    return [tuple(ordered[begin:end]) for begin, end in pairwise(cuts)]


class ReadSchedule:
    """Which streams the next read asks for: the shards round robin, and all streams of a shard before the next shard.

    Redis' COUNT applies to each stream, so streams times count never exceeds `room`. The count is equal for all
    streams of a round, whatever the size of their shards, because otherwise some cameras would get more than their
    share.
    """

    def __init__(self, shards: Sequence[tuple[str, ...]]) -> None:
        self._shards = shards
        self._streams = sum(map(len, shards))
        self._shard = self._stream = 0

    def __len__(self) -> int:
        """Streams."""
        return self._streams

    def next(self, room: int) -> tuple[tuple[str, ...], int]:
        """The streams to read and the count for each, so that at most `room` frames (at least 1) can come."""
        shard = self._shards[self._shard]
        asked = shard[self._stream : self._stream + room]
        self._stream += len(asked)
        if self._stream == len(shard):
            self._shard, self._stream = (self._shard + 1) % len(self._shards), 0
        return asked, max(1, room // self._streams)
