"""Input memory for requests: slots of shared-memory regions that Triton has mapped, or plain heap memory.

A region's name is unlinked as soon as Triton has it mapped, so that a killed service leaves nothing
in /dev/shm, and no name is ever used twice.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import socket
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype(np.uint8),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
}
PREFIX = "sightline"
_PAGE = 4096
_SHM = "/dev/shm"


def region_name() -> str:
    """A name no other process or life of this one has: host, pid and start tell whose it was when it is orphaned."""
    return f"{PREFIX}-{socket.gethostname()}-{os.getpid()}.{_started(os.getpid())}-{uuid.uuid4().hex}"


def _started(pid: int) -> str:
    """When a process began, in clock ticks since the machine did; `0` where that cannot be told.

    A container that was killed and restarted has the same host name and pid; this it has not.
    """
    try:
        # Field 22 of proc(5)'s stat; the second may hold spaces and ends with the last parenthesis.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"


def orphaned(name: str) -> bool:
    """Whether a region of this name was registered by a process of this host that is gone."""
    prefix, _, rest = name.partition("-")
    host, _, process = rest.rpartition("-")[0].rpartition("-")
    pid, _, started = process.partition(".")
    if prefix != PREFIX or host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return _started(int(pid)) != started


def unlink_orphans() -> None:
    """Frees what processes of this host left under a name: they were killed before Triton had it mapped."""
    try:
        names = os.listdir(_SHM)
    except OSError:
        return
    for name in filter(orphaned, names):
        with contextlib.suppress(OSError):
            os.unlink(f"{_SHM}/{name}")


class Region:
    """One shared-memory object, cut into equal slots."""

    def __init__(self, slot_bytes: int, slots: int) -> None:
        self.name = region_name()
        self.slot_bytes = -(-slot_bytes // _PAGE) * _PAGE
        self.slots = slots
        self.size = self.slot_bytes * slots
        self._path = f"{_SHM}/{self.name}"
        descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # Reserves the pages now: a full /dev/shm then fails here, not as a SIGBUS in the middle of a frame.
            os.posix_fallocate(descriptor, 0, self.size)
            self.memory = mmap.mmap(descriptor, self.size)
        except OSError:
            self.unlink()
            raise
        finally:
            os.close(descriptor)

    def unlink(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


@dataclass(slots=True)
class Slot:
    """A place in a region: the input first, then room for outputs."""

    region: Region
    offset: int
    requests: dict[tuple[str, str, int, int], Any] = field(default_factory=dict)
    """Requests written for this slot, by model, version, pictures and output offset: such a request never changes."""
    borders: dict[int, object] = field(default_factory=dict)
    """By picture of the batch: how it lay when its border was last painted. Whoever fills the input keeps it."""


class Buffer:
    """Memory for one request's input, shared with the server where that works.

    Counts its holders: the owner, who calls `release` once, also after an error, and every request in
    flight. Releasing early thus never lets the server read a later frame's pixels.
    """

    __slots__ = ("_array", "_holders", "_pool", "_rest_s", "cursor", "slot")

    def __init__(self, array: NDArray[Any], pool: Pool | None, slot: Slot | None) -> None:
        self._array = array
        self._holders = 1
        self._rest_s = 0.0
        self._pool = pool
        self.slot = slot
        self.cursor = 0
        """Where the next request's outputs go, bytes from the slot's start."""
        if pool is not None:
            # Behind the room of a whole batch, also of a smaller one: the other pictures' borders are kept.
            self.cursor = pool.input_bytes

    @property
    def array(self) -> NDArray[Any]:
        """The input tensor, of the shape and dtype asked for. Contents are what the last user left."""
        return self._array

    def hold(self) -> None:
        self._holders += 1

    def rest(self, seconds: float) -> None:
        """Its memory is lent to nobody for so long after the last `release`: a request was given up, and the server
        may still be at it, and write its answer.
        """
        self._rest_s = max(self._rest_s, seconds)

    def release(self) -> None:
        self._holders -= 1
        if self._holders == 0 and self._pool is not None and self.slot is not None:
            self._pool.put(self.slot, self._rest_s)
        assert self._holders >= 0, "a buffer was released twice"


def pooled_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the slots that serve a batch of this shape: its size rounded up to a power of two.

    Batches of a fleet come in all sizes; a pool for each would share out the memory in slots that wait for their like.
    """
    return 1 << (shape[0] - 1).bit_length(), *shape[1:]


@dataclass(slots=True)
class Pool:
    """Free slots for inputs of one shape, or fewer pictures of it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    output_bytes: int
    free: deque[Slot] = field(default_factory=deque)
    resting: list[tuple[float, Slot]] = field(default_factory=list)
    """Slots that the server may still write into, and until when they are kept for that; of the monotonic clock."""
    growing: bool = False
    full: bool = False
    """Whether it was said that it can grow no more."""

    @property
    def input_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def slot_bytes(self) -> int:
        return self.input_bytes + self.output_bytes

    def add(self, region: Region) -> None:
        self.free.extend(Slot(region, index * region.slot_bytes) for index in range(region.slots))

    def put(self, slot: Slot, rest_s: float = 0.0) -> None:
        """Takes a slot back, to be lent again after so long."""
        if rest_s:
            self.resting.append((time.monotonic() + rest_s, slot))
        else:
            self.free.append(slot)

    def take(self, count: int) -> Buffer:
        """A slot's memory for so many pictures; heap memory when none is free."""
        shape = (count, *self.shape[1:])
        if self.resting and not self.free:
            now = time.monotonic()
            self.free.extend(slot for until, slot in self.resting if until <= now)
            self.resting = [(until, slot) for until, slot in self.resting if until > now]
        if not self.free:
            return Buffer(np.empty(shape, self.dtype), None, None)
        slot = self.free.pop()  # the one used last: its pages are still in the cache
        array = np.frombuffer(slot.region.memory, self.dtype, math.prod(shape), slot.offset)
        return Buffer(array.reshape(shape), self, slot)


def output_bytes(shapes: list[tuple[str, tuple[int, ...]]]) -> int | None:
    """Bytes of outputs of these (dtype, shape), each at an 8-byte boundary; None where a shape is open."""
    total = 0
    for dtype, shape in shapes:
        if dtype not in DTYPES or any(size < 0 for size in shape):
            return None
        total += -(-math.prod(shape) * DTYPES[dtype].itemsize // 8) * 8
    return total
