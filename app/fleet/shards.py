"""Which worker reads which cameras, and which of them one read asks for. Pure.

A camera has one worker at a time, so that what its stream remembers (tracks, the last picture) stays in one place and
its frames stay in order. All workers compute the same answer from the same lists; nobody has to lead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b

STREAMS_A_READ = 32
"""Streams in one XREADGROUP: enough that the command's own cost is small, few enough that each frame is soon here."""


def stable(*words: str) -> int:
    """A hash that is the same in every process: Python's own is salted."""
    return int.from_bytes(blake2b("\0".join(words).encode(), digest_size=8).digest())


def assign(cameras: Iterable[str], workers: Collection[str]) -> dict[str, str]:
    """The worker of every camera: rendezvous hashing (Thaler and Ravishankar 1998) with bounded loads.

    No worker has more than its even share, rounded up. A worker that comes or goes moves its own cameras and a few of
    those that made room for them.
    """
    ordered = sorted(cameras, key=stable)
    if not workers:
        return {}
    room = dict.fromkeys(workers, -(-len(ordered) // len(workers)))
    owners = {}
    for camera in ordered:
        owner = max((worker for worker in workers if room[worker]), key=lambda worker: stable(worker, camera))
        room[owner] -= 1
        owners[camera] = owner
    return owners


def spread(streams: Iterable[str], most: int) -> list[tuple[str, ...]]:
    """Streams in shards by a stable hash: one for every `STREAMS_A_READ`, `most` at most; none is empty."""
    given = sorted(streams)
    count = min(most, -(-len(given) // STREAMS_A_READ))
    shards: list[list[str]] = [[] for _ in range(count)]
    for stream in given:
        shards[stable(stream) % count].append(stream)
    return [tuple(shard) for shard in shards if shard]


class Turns:
    """Whose turn it is to be read: the shards round robin, and within one all its streams before the next.

    Redis' COUNT is for each stream: what is asked for, streams times count, never exceeds what may come.
    """

    def __init__(self, shards: Sequence[tuple[str, ...]]) -> None:
        self._shards = shards
        self._shard = self._stream = 0

    def __len__(self) -> int:
        return len(self._shards)

    def next(self, free: int) -> tuple[tuple[str, ...], int]:
        """Streams to ask and how many frames of each, so that `free` frames at most can come. `free` is at least 1."""
        shard = self._shards[self._shard]
        asked = shard[self._stream : self._stream + free]
        self._stream += len(asked)
        if self._stream == len(shard):
            self._shard, self._stream = (self._shard + 1) % len(self._shards), 0
        return asked, free // len(asked)
