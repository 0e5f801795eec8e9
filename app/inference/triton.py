"""The singleton Triton client: one grpc.aio channel, a fair gate, deadlines, reconnection, shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from app import metrics
from app.errors import ConfigurationError, InferenceError, InferenceUnavailable
from app.inference.client import ModelSpec, Reply
from app.inference.failures import failure, undescribed
from app.inference.gate import Gate
from app.inference.memory import DTYPES, Buffer, Pool, Region, orphaned, pooled_shape, unlink_orphans
from app.inference.requests import Placed, infer_method, item_bytes, outputs, plain_request, read_spec, shared_request
from app.settings import TritonSettings

log = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Channels to the same address share connections by default; ours must die with its client.
    ("grpc.use_local_subchannel_pool", 1),
]
_PROBE_INTERVAL_S = 5.0
_PROBE_DEADLINE_S = 2.0
_SHM_BUDGET = 256 * 1024 * 1024
_SLOTS = 32


class TritonClient:
    """`InferenceClient` on a real Triton. Made inside a running event loop; `open` before use.

    Args:
        url: `host:port` of Triton's gRPC.
        on_change: called with True or False whenever the server comes or goes.
    """

    def __init__(self, url: str, settings: TritonSettings, *, on_change: Callable[[bool], None] | None = None) -> None:
        self.url = url
        self._settings = settings
        self._on_change = on_change
        self._gate = Gate(settings.triton_max_in_flight)
        self._channel = grpc.aio.insecure_channel(url, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer = infer_method(self._channel)
        self._up = False
        self._generation = 0
        self._suspect = asyncio.Event()
        self._lost_memory = False
        self._watchers: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[Reply]] = set()
        self._chores: set[asyncio.Task[None]] = set()
        self._pools: dict[tuple[tuple[int, ...], str], Pool] = {}
        self._regions: list[Region] = []
        self._output_bytes = 0
        self._shm = settings.triton_shm != "off"

    @property
    def up(self) -> bool:
        return self._up

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def shared_memory(self) -> bool:
        """Whether tensors go through shared memory."""
        return self._shm and self._up

    async def open(self) -> None:
        """Connects and begins to watch the server. A server that is away is no error: it is waited for.

        Raises:
            ConfigurationError: TRITON_SHM=on, and the server cannot map our memory.
        """
        if await self._probe():
            await self._connected()
        else:
            log.warning("Triton at %s does not answer yet; waiting for it", self.url)
            metrics.INFERENCE_UP.set(0)
        self._watchers = [
            asyncio.create_task(self._watch(), name="triton-watch"),
            asyncio.create_task(self._notice(), name="triton-notice"),
        ]

    async def close(self) -> None:
        """Lets the requests in flight end (their deadline bounds it), unregisters the memory, closes the channel."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        if self._calls:
            await asyncio.wait(self._calls, timeout=self._settings.triton_deadline_s + 1)
        await asyncio.gather(*self._chores, return_exceptions=True)
        if self._up:
            for region in self._regions:
                await self._unregister(region.name)
        self._pools.clear()
        await self._channel.close()

    # --- what a model looks like ---

    async def describe(self, model: str) -> ModelSpec | None:
        """See `InferenceClient.describe`."""
        try:
            named = {"name": model}
            ready = await self._stub.ModelReady(service_pb2.ModelReadyRequest(**named), timeout=_PROBE_DEADLINE_S)
            if not ready.ready:
                return None
            metadata = await self._stub.ModelMetadata(
                service_pb2.ModelMetadataRequest(**named), timeout=_PROBE_DEADLINE_S
            )
            answer = await self._stub.ModelConfig(service_pb2.ModelConfigRequest(**named), timeout=_PROBE_DEADLINE_S)
            batched = await self._batched(answer.config)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                return None
            raise undescribed(self._failure(model, error)) from None
        spec = read_spec(model, metadata, answer.config, batched=batched)
        self._output_bytes = max(self._output_bytes, item_bytes(spec))
        return spec

    async def _batched(self, config: Any) -> bool:
        """Whether the server puts requests to a model together itself; of an ensemble, to each of its parts."""
        parts = {step.model_name for step in config.ensemble_scheduling.step}
        if not parts:
            return bool(config.HasField("dynamic_batching"))
        for part in parts:
            asked = service_pb2.ModelConfigRequest(name=part)
            answer = await self._stub.ModelConfig(asked, timeout=_PROBE_DEADLINE_S)
            if not await self._batched(answer.config):
                return False
        return True

    # --- memory ---

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """See `InferenceClient.buffer`."""
        room = pooled_shape(shape)
        pool = self._pools.get((room, dtype))
        if pool is None:
            # Twice the room: detection and pose of one picture may be two requests on one buffer.
            pool = Pool(room, DTYPES[dtype], output_bytes=2 * self._output_bytes * room[0])
            self._pools[room, dtype] = pool
        if not pool.free and self._shm and self._up and not pool.growing:
            pool.growing = True
            self._do(self._grow(pool))
        return pool.take(shape[0])

    def _do(self, chore: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _grow(self, pool: Pool) -> None:
        try:
            slots = max(1, min(_SLOTS, _SHM_BUDGET // 4 // pool.slot_bytes))
            if sum(region.size for region in self._regions) + slots * pool.slot_bytes > _SHM_BUDGET:
                return  # heap memory serves the rest
            region = await self._map(pool.slot_bytes, slots)
            if region is not None:
                pool.add(region)
        finally:
            pool.growing = False

    async def _map(self, slot_bytes: int, slots: int) -> Region | None:
        """A region that Triton has mapped; None where that does not work (then it is not tried again)."""
        try:
            region = Region(slot_bytes, slots)
        except OSError as error:
            log.warning("no shared memory (%s): tensors go over gRPC", error)
            self._shm = False
            return None
        self._regions.append(region)  # at once: whatever happens meanwhile, it is unregistered in the end
        try:
            request = service_pb2.SystemSharedMemoryRegisterRequest(
                name=region.name, key=f"/{region.name}", offset=0, byte_size=region.size
            )
            await self._stub.SystemSharedMemoryRegister(request, timeout=_PROBE_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                return None  # the server may map it yet
            if region in self._regions:
                self._regions.remove(region)
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                log.info("Triton at %s cannot map our memory (%s): tensors go over gRPC", self.url, error.details())
                self._shm = False
            return None
        finally:
            region.unlink()
        return region if region in self._regions else None  # else the server came anew in between

    async def _unregister(self, name: str) -> None:
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
        try:
            await self._stub.SystemSharedMemoryUnregister(request, timeout=_PROBE_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            log.debug("unregister %s: %s", name, error.details())

    async def _give_up(self, regions: Sequence[Region]) -> None:
        """Unregisters what was mapped before, should the server be the same one still: it was out of reach only."""
        if self._calls:
            await asyncio.wait({*self._calls})  # their deadlines bound it; until then Triton writes there
        for region in regions:
            await self._unregister(region.name)

    async def _sweep(self) -> None:
        """Frees what processes of this host that were killed left registered."""
        status = await self._stub.SystemSharedMemoryStatus(
            service_pb2.SystemSharedMemoryStatusRequest(), timeout=_PROBE_DEADLINE_S
        )
        for name in status.regions:
            if orphaned(name):
                await self._unregister(name)
        await asyncio.to_thread(unlink_orphans)

    # --- requests ---

    async def infer(self, model: ModelSpec, buffer: Buffer, *, stream: str) -> Reply:
        """See `InferenceClient.infer`."""
        if not self._up:
            raise InferenceUnavailable(f"Triton at {self.url} does not answer")
        arrived = time.perf_counter()
        await self._gate.acquire(stream)
        gate_s = time.perf_counter() - arrived
        buffer.hold()
        # A task of its own, shielded: grpc.aio leaks when the awaiter of a call is cancelled
        # (https://github.com/grpc/grpc/issues/43360), and Triton may write into the slot until the call ends.
        call = asyncio.create_task(self._call(model, buffer, gate_s))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            call.add_done_callback(_forget)
            raise

    async def _call(self, model: ModelSpec, buffer: Buffer, gate_s: float) -> Reply:
        metrics.IN_FLIGHT.inc()
        sent = time.perf_counter()
        try:
            request, placed = self._request(model, buffer)
            answer = await self._infer(request, timeout=self._settings.triton_deadline_s)
            infer_s = time.perf_counter() - sent
            return Reply(outputs(answer, buffer, placed), gate_s, infer_s)
        except grpc.aio.AioRpcError as error:
            raise self._failure(model.name, error) from None
        finally:
            metrics.IN_FLIGHT.dec()
            buffer.release()
            self._gate.release()

    def _request(self, model: ModelSpec, buffer: Buffer) -> tuple[bytes, Placed]:
        """The request, and where its outputs land in the slot: name -> (offset in the slot, shape)."""
        slot = buffer.slot
        if slot is None or slot.region not in self._regions:
            # Memory that this life of the server has not mapped: the pixels travel in the message.
            return plain_request(model, buffer.array), {}
        key = (model.name, model.version, len(buffer.array), buffer.cursor)
        cached = slot.requests.get(key)
        if cached is None:
            cached = slot.requests[key] = shared_request(model, buffer)
        request, placed, end = cached
        buffer.cursor = end
        return request, placed

    def _failure(self, model: str, error: grpc.aio.AioRpcError) -> InferenceError:
        away = error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        if not away and "shared memory region" in (error.details() or ""):
            self._lost_memory = away = True  # restarted between two probes: what was registered is forgotten
        if away:
            self._suspect.set()
        return failure(model, error, url=self.url, deadline_s=self._settings.triton_deadline_s)

    # --- whether it is there ---

    async def _watch(self) -> None:
        wait = _PROBE_INTERVAL_S
        while True:
            # Not `wait_for`: until Python 3.12 it forgets a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._suspect.wait()
            self._suspect.clear()
            if not await self._back():
                self._gone()
                wait = min(2.0, wait * 2 if wait < _PROBE_INTERVAL_S else 0.1)
                continue
            wait = _PROBE_INTERVAL_S
            await asyncio.sleep(0.05)  # a burst of failures asks once

    async def _notice(self) -> None:
        """Notices at once when the connection breaks: a quick restart would pass between two probes."""
        while True:
            state = self._channel.get_state()
            await self._channel.wait_for_state_change(state)
            if self._up and state == grpc.ChannelConnectivity.READY:
                self._lost_memory = True
                self._suspect.set()

    async def _back(self) -> bool:
        """Whether the server answers and, after it was away, could be connected to again."""
        if not await self._probe():
            return False
        try:
            if not self._up or self._lost_memory:
                await self._connected()
        except ConfigurationError as error:
            log.error("%s", error)
            return False
        return True

    async def _probe(self) -> bool:
        try:
            answer = await self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=_PROBE_DEADLINE_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    def _gone(self) -> None:
        if not self._up:
            return
        self._up = False
        metrics.INFERENCE_UP.set(0)
        log.warning("Triton at %s is gone; reconnecting", self.url)
        if self._on_change is not None:
            self._on_change(False)

    async def _connected(self) -> None:
        # A new life of the server has nothing mapped; slots still held are dropped when released.
        if self._regions:
            self._do(self._give_up([*self._regions]))
        self._regions.clear()
        self._pools.clear()
        self._lost_memory = False
        if self._settings.triton_shm != "off":
            await self._try_memory()
        self._up = True
        self._generation += 1
        metrics.INFERENCE_UP.set(1)
        log.info("Triton at %s is ready (%s)", self.url, "shared memory" if self._shm else "gRPC tensors")
        if self._on_change is not None:
            self._on_change(True)

    async def _try_memory(self) -> None:
        self._shm = True
        try:
            await self._sweep()
        except grpc.aio.AioRpcError as error:
            log.debug("sweep: %s", error.details())
        trial = await self._map(4096, 1)
        if trial is not None:
            self._regions.remove(trial)
            await self._unregister(trial.name)
        elif self._settings.triton_shm == "on":
            raise ConfigurationError(
                f"TRITON_SHM='on': Triton at {self.url} cannot map this process's shared memory; "
                "both need one host and one /dev/shm (docker: ipc: host), or set TRITON_SHM=auto"
            )


def _forget(call: asyncio.Task[Reply]) -> None:
    """The awaiter is gone: the answer, or the error, is dropped."""
    if not call.cancelled():
        call.exception()
