"""Memory for requests' inputs and outputs: regions that Triton has mapped, lent out in slots; or plain heap memory.

A client registers a region when it needs more memory, and drops all regions when the server restarts. The name of a
region is unlinked as soon as Triton has mapped it, so that a killed service leaves nothing in /dev/shm. No name is ever
used twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import mmap
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from app.errors import ConfigurationError
from app.inference.client import ModelSpec

log = logging.getLogger(__name__)

DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype(np.uint8),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
}
"""Triton's names of the types that we read and write; whole numbers are only read."""
PREFIX = "sightline"
_PAGE = 4096
SHM = "/dev/shm"
_DEADLINE_S = 2.0
_BUDGET = 256 * 1024 * 1024
"""Bytes of all regions of one client."""
_STEP = _BUDGET // 16
"""Bytes that a pool grows by, or one slot if that is larger: small batches that are needed once must leave memory for
large ones."""
_SLOTS = 32
"""Greatest number of slots in one region."""


def region_name() -> str:
    """A name that is never used twice. It contains host, process id and start time, by which `orphaned` judges it."""
    return f"{PREFIX}-{socket.gethostname()}-{os.getpid()}.{_started(os.getpid())}-{uuid.uuid4().hex}"


def _started(pid: int) -> str:
    """When a process began, in clock ticks from the start of the machine; `0` if that is unknown.

    A container that was killed and restarted has the same host name and process id, but another start time.
    """
    try:
        # Field 22 of proc(5)'s stat; the second field may hold spaces and ends with the last parenthesis.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"


def orphaned(name: str) -> bool:
    """Whether a process of this host that has ended registered the region of this name."""
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
    """Removes regions from /dev/shm whose process on this host was killed before Triton had mapped them."""
    try:
        names = os.listdir(SHM)
    except OSError:
        return
    for name in filter(orphaned, names):
        with contextlib.suppress(OSError):
            os.unlink(f"{SHM}/{name}")


class Region:
    """One shared-memory object, cut into equal slots.

    Raises:
        OSError: there is no shared memory, or not enough of it.
    """

    def __init__(self, slot_bytes: int, slots: int) -> None:
        self.name = region_name()
        self.slot_bytes = -(-slot_bytes // _PAGE) * _PAGE
        self.slots = slots
        self.size = self.slot_bytes * slots
        self._path = f"{SHM}/{self.name}"
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
    """A part of a region: the input first, then space for outputs."""

    region: Region
    offset: int
    requests: dict[tuple[str, str, str, int, int], Any] = field(default_factory=dict)
    """Serialized requests for this slot, by model, version, batch size and output offset; they never change."""
    borders: dict[int, object] = field(default_factory=dict)
    """Index in the batch -> the placement of the last painted border. The code that fills the input maintains it."""


class Buffer:
    """Memory for one request's input, shared with the server if that works.

    A buffer counts its holders: the owner, which calls `release` once, also after an error, and every request in
    flight. So an early release never lets the server read a later frame's pixels.
    """

    __slots__ = ("_holders", "_pool", "_rest_s", "array", "cursor", "slot")

    def __init__(self, array: NDArray[Any], pool: Pool | None, slot: Slot | None) -> None:
        self.array = array
        """The input tensor, of the shape and dtype asked for. It still contains the last user's data."""
        self._holders = 1
        self._rest_s = 0.0
        self._pool = pool
        self.slot = slot
        self.cursor = 0
        """Where the next request's outputs go, in bytes from the start of the slot."""
        if pool is not None:
            # After the input of a full batch, also if this one is smaller, so that the other images' borders are kept.
            self.cursor = pool.input_bytes

    def hold(self) -> None:
        """Adds a holder, which must call `release` once."""
        self._holders += 1

    def rest(self, seconds: float) -> None:
        """Keeps the memory out of use for `seconds` after the last `release`, because a request was abandoned, and the
        server may still work on it and write its answer.
        """
        self._rest_s = max(self._rest_s, seconds)

    def release(self) -> None:
        """Removes a holder; the last one returns the memory to its pool."""
        self._holders -= 1
        if self._holders == 0 and self._pool is not None and self.slot is not None:
            self._pool.put(self.slot, self._rest_s)
        assert self._holders >= 0, "a buffer was released twice"


def pooled_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the slots that serve a batch of this shape: its size rounded up to a power of two.

    A fleet's batches have all sizes. A pool for each size would split the memory into slots that are rarely used.
    """
    return 1 << (shape[0] - 1).bit_length(), *shape[1:]


@dataclass(slots=True)
class Pool:
    """Free slots for inputs of one shape, or of smaller batches."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    output_bytes: int
    free: deque[Slot] = field(default_factory=deque)
    resting: list[tuple[float, Slot]] = field(default_factory=list)
    """Slots that the server may still write into, each with the monotonic time until which it stays out of use."""
    growing: bool = False
    full: bool = False
    """Whether a warning that the pool can grow no more has been logged."""
    input_bytes: int = field(init=False)
    """Bytes of the input of a full batch."""

    def __post_init__(self) -> None:
        self.input_bytes = math.prod(self.shape) * self.dtype.itemsize

    @property
    def slot_bytes(self) -> int:
        """Bytes that one slot needs, for the input and the outputs of a full batch."""
        return self.input_bytes + self.output_bytes

    def add(self, region: Region) -> None:
        """Adds all slots of a region, as free ones."""
        self.free.extend(Slot(region, index * region.slot_bytes) for index in range(region.slots))

    def put(self, slot: Slot, rest_s: float = 0.0) -> None:
        """Takes a slot back, and keeps it out of use for `rest_s` seconds."""
        if rest_s:
            self.resting.append((time.monotonic() + rest_s, slot))
        else:
            self.free.append(slot)

    def take(self, count: int) -> Buffer:
        """A slot's memory for `count` images; heap memory if no slot is free."""
        shape = (count, *self.shape[1:])
        if self.resting and not self.free:
            now = time.monotonic()
            self.free.extend(slot for until, slot in self.resting if until <= now)
            self.resting = [(until, slot) for until, slot in self.resting if until > now]
        if not self.free:
            return Buffer(np.empty(shape, self.dtype), None, None)
        slot = self.free.pop()  # the slot used last, because its pages are still in the cache
        array = np.frombuffer(slot.region.memory, self.dtype, math.prod(shape), slot.offset)
        return Buffer(array.reshape(shape), self, slot)


def output_bytes(shapes: list[tuple[str, tuple[int, ...]]]) -> int | None:
    """Bytes of outputs of these (dtype, shape), each at an 8-byte boundary; None if a shape is open."""
    total = 0
    for dtype, shape in shapes:
        if dtype not in DTYPES or any(size < 0 for size in shape):
            return None
        total += -(-math.prod(shape) * DTYPES[dtype].itemsize // 8) * 8
    return total


def item_bytes(spec: ModelSpec) -> int:
    """Bytes of all outputs for a batch of one; 0 if they are not known beforehand."""
    return output_bytes([(t.dtype, (1, *t.shape[1:])) for t in spec.outputs]) or 0


class SharedMemory:
    """The regions of one client, in pools by the shape of their slots.

    Args:
        stub: the server's gRPC methods.
        url: the server's address, for messages.
        mode: TRITON_SHM.
        calls: the requests in flight: until one ends, Triton may write into its slot.
    """

    def __init__(self, stub: Any, url: str, mode: Literal["auto", "off", "on"], calls: set[asyncio.Task[Any]]) -> None:
        self._stub = stub
        self._url = url
        self._mode = mode
        self._calls = calls
        self._works = mode != "off"
        self._pools: dict[tuple[tuple[int, ...], str], Pool] = {}
        self._mapped: list[Region] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._models: dict[str, tuple[ModelSpec, bool]] = {}

    @property
    def works(self) -> bool:
        """Whether tensors go through shared memory, as far as is known now."""
        return self._works

    def __contains__(self, region: Region) -> bool:
        """Whether the server has mapped the region since its last start."""
        return region in self._mapped

    def reserve_outputs(self, spec: ModelSpec, *, alone: bool) -> None:
        """Makes new slots large enough for a model's outputs.

        Args:
            alone: no other model gets the same buffer, as with an ensemble.
        """
        self._models[spec.name] = spec, alone

    def buffer(self, shape: tuple[int, ...], dtype: str, *, grow: bool) -> Buffer:
        """Memory for one request. If no slot is free and the pool may `grow`, more is mapped soon. Never waits."""
        slot_shape = pooled_shape(shape)
        pool = self._pools.get((slot_shape, dtype))
        if pool is None:
            pool = Pool(slot_shape, DTYPES[dtype], slot_shape[0] * self._output_bytes(slot_shape[1:], dtype))
            self._pools[slot_shape, dtype] = pool
        buffer = pool.take(shape[0])
        if buffer.slot is None and grow and self._works and not pool.growing:
            pool.growing = True
            self._start(self._grow(pool))
        return buffer

    def _output_bytes(self, image: tuple[int, ...], dtype: str) -> int:
        """Bytes of outputs for one image of this shape: an ensemble's, or those of all other models on one buffer."""
        sizes = [(item_bytes(spec), alone) for spec, alone in self._models.values() if _takes(spec, image, dtype)]
        alone_bytes = max((size for size, alone in sizes if alone), default=0)
        return max(alone_bytes, sum(size for size, alone in sizes if not alone))

    async def connected(self) -> None:
        """Drops all regions, because a server that has restarted has mapped none; tests whether it can map memory,
        unless TRITON_SHM=off.

        Raises:
            ConfigurationError: TRITON_SHM=on, and the server cannot map our memory.
        """
        if self._mapped:
            self._start(self._unregister_all([*self._mapped]))
        self._mapped.clear()
        self._pools.clear()  # slots still held are dropped when released
        if self._mode != "off":
            await self._try()

    async def close(self, *, up: bool) -> None:
        """Unregisters all regions if the server is `up`."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if up:
            for region in self._mapped:
                await self._unregister(region.name)
        self._pools.clear()

    async def _try(self) -> None:
        self._works = True
        try:
            await self._unregister_orphans()
        except grpc.aio.AioRpcError as error:
            log.debug("unregistering orphans: %s", error.details())
        trial = await self._map(4096, 1)
        if trial is not None:
            self._mapped.remove(trial)
            await self._unregister(trial.name)
        elif self._mode == "on":
            raise ConfigurationError(
                f"TRITON_SHM='on': Triton at {self._url} cannot map this process's shared memory; "
                "both need one host and one /dev/shm (docker: ipc: host), or set TRITON_SHM=auto"
            )

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _grow(self, pool: Pool) -> None:
        try:
            slots = max(1, min(_SLOTS, _STEP // pool.slot_bytes))
            if sum(region.size for region in self._mapped) + slots * pool.slot_bytes > _BUDGET:
                self._log_full(pool)
                return  # other requests use heap memory
            region = await self._map(pool.slot_bytes, slots)
            if region is not None:
                pool.add(region)
        finally:
            pool.growing = False

    def _log_full(self, pool: Pool) -> None:
        if not pool.full:
            pool.full = True
            log.warning(
                "the %d MiB shared with Triton are used up: more batches of %d (%.1f MB each) go over gRPC",
                _BUDGET >> 20,
                pool.shape[0],
                pool.slot_bytes / 1e6,
            )

    async def _map(self, slot_bytes: int, slots: int) -> Region | None:
        """A region that Triton has mapped; None if that does not work (then it is not tried again)."""
        try:
            region = Region(slot_bytes, slots)
        except OSError as error:
            log.warning("no shared memory (%s): tensors go over gRPC", error)
            self._works = False
            return None
        # Before the call, so that `close` unregisters the region also if the call is interrupted.
        self._mapped.append(region)
        try:
            request = service_pb2.SystemSharedMemoryRegisterRequest(
                name=region.name, key=f"/{region.name}", offset=0, byte_size=region.size
            )
            await self._stub.SystemSharedMemoryRegister(request, timeout=_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                return None  # the server may still map it
            if region in self._mapped:
                self._mapped.remove(region)
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                log.info("Triton at %s cannot map our memory (%s): tensors go over gRPC", self._url, error.details())
                self._works = False
            return None
        finally:
            region.unlink()
        return region if region in self._mapped else None  # None: the server restarted in between

    async def _unregister(self, name: str) -> None:
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
        try:
            await self._stub.SystemSharedMemoryUnregister(request, timeout=_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            log.debug("unregister %s: %s", name, error.details())

    async def _unregister_all(self, regions: list[Region]) -> None:
        """Unregisters what was mapped before, because the server may be the same, and was only out of reach."""
        if self._calls:
            await asyncio.wait({*self._calls})  # at most until their deadlines; until then Triton may write there
        for region in regions:
            await self._unregister(region.name)

    async def _unregister_orphans(self) -> None:
        """Unregisters regions that killed processes of this host left registered."""
        status = await self._stub.SystemSharedMemoryStatus(
            service_pb2.SystemSharedMemoryStatusRequest(), timeout=_DEADLINE_S
        )
        for name in status.regions:
            if orphaned(name):
                await self._unregister(name)
        await asyncio.to_thread(unlink_orphans)


def _takes(spec: ModelSpec, image: tuple[int, ...], dtype: str) -> bool:
    """Whether an image of this shape and type may be the model's input."""
    return any(
        tensor.dtype == dtype
        and len(tensor.shape) == 1 + len(image)
        and all(size in (-1, side) for size, side in zip(tensor.shape[1:], image, strict=True))
        for tensor in spec.inputs
    )
