"""Memory that Triton has mapped: regions made as they are needed, lent out in slots, given up when it starts anew."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Literal

import grpc
from tritonclient.grpc import service_pb2

from app.errors import ConfigurationError
from app.inference.client import ModelSpec
from app.inference.memory import DTYPES, Buffer, Pool, Region, orphaned, pooled_shape, unlink_orphans
from app.inference.requests import item_bytes

log = logging.getLogger(__name__)

_DEADLINE_S = 2.0
_BUDGET = 256 * 1024 * 1024
_STEP = _BUDGET // 16
"""What a pool grows by, or a slot where that is larger: what small batches need once must not keep out large ones."""
_SLOTS = 32


class Regions:
    """Of one client.

    Args:
        stub: the server's methods.
        url: for messages.
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
        self._chores: set[asyncio.Task[None]] = set()
        self._models: dict[str, tuple[ModelSpec, bool]] = {}

    @property
    def works(self) -> bool:
        """Whether tensors go through shared memory, as far as is known."""
        return self._works

    def __contains__(self, region: Region) -> bool:
        """Whether this life of the server has mapped it."""
        return region in self._mapped

    def answers(self, spec: ModelSpec, *, alone: bool) -> None:
        """Makes room for what a model answers; `alone`: no other is asked about the same buffer, as of an ensemble."""
        self._models[spec.name] = spec, alone

    def buffer(self, shape: tuple[int, ...], dtype: str, *, grow: bool) -> Buffer:
        """Memory for one request; more of it is mapped soon where there was none and it may `grow`. Never waits."""
        room = pooled_shape(shape)
        pool = self._pools.get((room, dtype))
        if pool is None:
            pool = Pool(room, DTYPES[dtype], output_bytes=room[0] * self._output_bytes(room[1:], dtype))
            self._pools[room, dtype] = pool
        buffer = pool.take(shape[0])
        if buffer.slot is None and grow and self._works and not pool.growing:
            pool.growing = True
            self._do(self._grow(pool))
        return buffer

    def _output_bytes(self, picture: tuple[int, ...], dtype: str) -> int:
        """What may be answered to such a picture: by an ensemble, or by all others, as requests on one buffer."""
        told = [(item_bytes(spec), alone) for spec, alone in self._models.values() if _takes(spec, picture, dtype)]
        alone_bytes = max((size for size, alone in told if alone), default=0)
        return max(alone_bytes, sum(size for size, alone in told if not alone))

    async def connected(self) -> None:
        """A new life of the server has nothing mapped. Tries whether it can map our memory, unless that is off.

        Raises:
            ConfigurationError: TRITON_SHM=on, and it cannot.
        """
        if self._mapped:
            self._do(self._give_up([*self._mapped]))
        self._mapped.clear()
        self._pools.clear()  # slots still held are dropped when released
        if self._mode != "off":
            await self._try()

    async def close(self, *, up: bool) -> None:
        """Unregisters everything, where the server is there to be told."""
        await asyncio.gather(*self._chores, return_exceptions=True)
        if up:
            for region in self._mapped:
                await self._unregister(region.name)
        self._pools.clear()

    async def _try(self) -> None:
        self._works = True
        try:
            await self._sweep()
        except grpc.aio.AioRpcError as error:
            log.debug("sweep: %s", error.details())
        trial = await self._map(4096, 1)
        if trial is not None:
            self._mapped.remove(trial)
            await self._unregister(trial.name)
        elif self._mode == "on":
            raise ConfigurationError(
                f"TRITON_SHM='on': Triton at {self._url} cannot map this process's shared memory; "
                "both need one host and one /dev/shm (docker: ipc: host), or set TRITON_SHM=auto"
            )

    def _do(self, chore: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _grow(self, pool: Pool) -> None:
        try:
            slots = max(1, min(_SLOTS, _STEP // pool.slot_bytes))
            if sum(region.size for region in self._mapped) + slots * pool.slot_bytes > _BUDGET:
                self._say_full(pool)
                return  # heap memory serves the rest
            region = await self._map(pool.slot_bytes, slots)
            if region is not None:
                pool.add(region)
        finally:
            pool.growing = False

    def _say_full(self, pool: Pool) -> None:
        if not pool.full:
            pool.full = True
            log.warning(
                "the %d MiB shared with Triton are used up: more batches of %d (%.1f MB each) go over gRPC",
                _BUDGET >> 20,
                pool.shape[0],
                pool.slot_bytes / 1e6,
            )

    async def _map(self, slot_bytes: int, slots: int) -> Region | None:
        """A region that Triton has mapped; None where that does not work (then it is not tried again)."""
        try:
            region = Region(slot_bytes, slots)
        except OSError as error:
            log.warning("no shared memory (%s): tensors go over gRPC", error)
            self._works = False
            return None
        self._mapped.append(region)  # at once: whatever happens meanwhile, it is unregistered in the end
        try:
            request = service_pb2.SystemSharedMemoryRegisterRequest(
                name=region.name, key=f"/{region.name}", offset=0, byte_size=region.size
            )
            await self._stub.SystemSharedMemoryRegister(request, timeout=_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                return None  # the server may map it yet
            if region in self._mapped:
                self._mapped.remove(region)
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                log.info("Triton at %s cannot map our memory (%s): tensors go over gRPC", self._url, error.details())
                self._works = False
            return None
        finally:
            region.unlink()
        return region if region in self._mapped else None  # else the server came anew in between

    async def _unregister(self, name: str) -> None:
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
        try:
            await self._stub.SystemSharedMemoryUnregister(request, timeout=_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            log.debug("unregister %s: %s", name, error.details())

    async def _give_up(self, regions: list[Region]) -> None:
        """Unregisters what was mapped before, should the server be the same one still: it was out of reach only."""
        if self._calls:
            await asyncio.wait({*self._calls})  # their deadlines bound it; until then Triton writes there
        for region in regions:
            await self._unregister(region.name)

    async def _sweep(self) -> None:
        """Frees what processes of this host that were killed left registered."""
        status = await self._stub.SystemSharedMemoryStatus(
            service_pb2.SystemSharedMemoryStatusRequest(), timeout=_DEADLINE_S
        )
        for name in status.regions:
            if orphaned(name):
                await self._unregister(name)
        await asyncio.to_thread(unlink_orphans)


def _takes(spec: ModelSpec, picture: tuple[int, ...], dtype: str) -> bool:
    """Whether such a picture may be its input."""
    return any(
        tensor.dtype == dtype
        and len(tensor.shape) == 1 + len(picture)
        and all(size in (-1, side) for size, side in zip(tensor.shape[1:], picture, strict=True))
        for tensor in spec.inputs
    )
