"""Which worker reads which cameras, and which of them one read asks for. Pure.

A camera has one worker at a time, so that what its stream remembers (tracks, the last picture) stays in one place and
its frames stay in order. All workers compute the same answer from the same lists; nobody has to lead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

STREAMS_A_READ = 32
"""Streams in one XREAD: enough that the command's own cost is small, few enough that each frame is soon here."""
_QUARTER = 4
_ROWS = 1024
"""Cameras that are scored at once: their scores for a thousand workers take 8 MB."""


def stable(*words: str) -> int:
    """A hash that is the same in every process: Python's own is salted."""
    return int.from_bytes(blake2b("\0".join(words).encode(), digest_size=8).digest())


def assign(cameras: Iterable[str], workers: Collection[str]) -> dict[str, str]:
    """The worker of every camera: rendezvous hashing (Thaler and Ravishankar 1998) with bounded loads (Mirrokni,
    Thorup and Zadimoghaddam 2016).

    A camera goes to the worker that scores highest with it and has room; cameras choose in the order of their hashes.
    A worker has room for a quarter more than its even share, so that few cameras get anything but their first choice:
    a camera that comes or goes moves no other as a rule, and a worker that comes or goes its own and very few besides.
    """
    ordered = sorted(cameras, key=stable)
    if not workers:
        return {}
    names = sorted(workers)
    camera_hashes = np.array([stable(camera) for camera in ordered], np.uint64)
    worker_hashes = np.array([stable("worker", worker) for worker in names], np.uint64)
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
    """Most cameras of each worker: a quarter more than the even share, rounded up; the even share alone while a quarter
    of it is less than a camera.

    Were the quarter rounded up for all workers at once, one camera more would now and then give room to every worker,
    and cameras that had been turned away would come back to all of them. So the workers get it one after the other, by
    their hashes, over the first quarter of a step.
    """
    count = len(workers)
    if cameras < _QUARTER * count:
        return [-(-cameras // count)] * count
    least, part = divmod((_QUARTER + 1) * cameras, _QUARTER * count)
    further = set(sorted(workers, key=lambda worker: stable("room", worker))[:part])
    return [least + (worker in further) for worker in workers]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): each bit of the result hangs on every bit given."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def spread(streams: Iterable[str], most: int) -> list[tuple[str, ...]]:
    """Streams in shards of the same size, give or take one: one for every `STREAMS_A_READ`, `most` at most; none is
    empty. In the order of their hashes, so that cameras whose names are alike are not read together.
    """
    given = sorted(streams, key=stable)
    count = min(most, -(-len(given) // STREAMS_A_READ))
    cuts = [len(given) * shard // count for shard in range(count + 1)] if count else []
    return [tuple(given[begin:end]) for begin, end in pairwise(cuts)]


class Turns:
    """Whose turn it is to be read: the shards round robin, and within one all its streams before the next.

    Redis' COUNT is for each stream: what is asked for, streams times count, never exceeds what may come. It is the same
    for all streams of a round, whatever the size of their shards, or some cameras would have more than their share.
    """

    def __init__(self, shards: Sequence[tuple[str, ...]]) -> None:
        self._shards = shards
        self._streams = sum(map(len, shards))
        self._shard = self._stream = 0

    def __len__(self) -> int:
        """Streams."""
        return self._streams

    def next(self, free: int) -> tuple[tuple[str, ...], int]:
        """Streams to ask and how many frames of each, so that `free` frames at most can come. `free` is at least 1."""
        shard = self._shards[self._shard]
        asked = shard[self._stream : self._stream + free]
        self._stream += len(asked)
        if self._stream == len(shard):
            self._shard, self._stream = (self._shard + 1) % len(self._shards), 0
        return asked, max(1, free // self._streams)
