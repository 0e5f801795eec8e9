"""The Triton client: one grpc.aio channel, a concurrency limit, deadlines, reconnection, shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from app import metrics
from app.errors import ConfigurationError, InferenceError, InferenceTimeout, InferenceUnavailable
from app.inference.client import ModelSpec, Reply
from app.inference.requests import (
    Placed,
    description_failure,
    failure,
    infer_method,
    outputs,
    plain_request,
    read_spec,
    shared_request,
)
from app.inference.shared_memory import Buffer, SharedMemory
from app.limits import backoff_s
from app.settings import TritonSettings

log = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Otherwise gRPC would use http_proxy for loopback, too.
    ("grpc.enable_http_proxy", 0),
    # By default, channels to the same address share connections; ours must end with its client.
    ("grpc.use_local_subchannel_pool", 1),
]
_LEFT_OPEN = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""Errors after which the server may still work on the request. It sends every other error when it is done with it."""
_REST_S = 60.0
"""Seconds for which the memory of such a request stays out of use, or four deadlines if that is longer. The server
drops cancelled requests unless it works on them already; a hung server has been restarted by then, with new memory.
"""
_PROBE_INTERVAL_S = 5.0
"""Seconds between two probes of a server that answers."""
_PROBE_DEADLINE_S = 2.0
"""Seconds that a probe, or a request for a description, may take."""
_RECONNECT_S = (0.1, 2.0)
"""Seconds of the first wait between two probes of a server that is away, and of the longest."""


class FairSemaphore:
    """The inference concurrency limit: a semaphore that is fair between streams.

    It serves waiting streams round robin, and each stream's requests first in, first out. With one queue for all, a
    stream with many waiting requests would hold up a stream with a single one. Bound to one event loop; not
    thread-safe.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return sum(map(len, self._waiting.values()))

    async def acquire(self, stream: str) -> None:
        """Waits until fewer than `size` requests hold the semaphore. A cancelled wait leaks nothing."""
        if self._free > 0:  # then no request waits: `release` hands a place on directly
            self._free -= 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(stream, deque()).append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()  # the place was granted in the same tick as the cancellation
            else:
                self._remove(stream, waiter)
            raise

    def release(self) -> None:
        """Gives the place to the next request, or back if none waits."""
        while self._waiting:
            stream, waiters = self._waiting.popitem(last=False)
            waiter = waiters.popleft()
            if waiters:
                self._waiting[stream] = waiters
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1

    def _remove(self, stream: str, waiter: asyncio.Future[None]) -> None:
        """Removes a cancelled request, so that it does not cost its stream a round."""
        waiters = self._waiting.get(stream)
        if waiters is None or waiter not in waiters:
            return
        waiters.remove(waiter)
        if not waiters:
            del self._waiting[stream]


class TritonClient:
    """`InferenceClient` on a real Triton. Create it inside a running event loop, and call `open` before use.

    Args:
        url: `host:port` of Triton's gRPC.
        on_change: called with True when the server becomes ready, with False when it is lost.
    """

    def __init__(self, url: str, settings: TritonSettings, *, on_change: Callable[[bool], None] | None = None) -> None:
        self.url = url
        self._settings = settings
        self._on_change = on_change
        self._concurrency = FairSemaphore(settings.triton_max_in_flight)
        self._channel = grpc.aio.insecure_channel(url, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer = infer_method(self._channel)
        self._up = False
        self._generation = 0
        self._suspect = asyncio.Event()
        self._lost_memory = False
        self._watchers: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[Reply]] = set()
        self._memory = SharedMemory(self._stub, url, settings.triton_shm, self._calls)

    @property
    def up(self) -> bool:
        """See `InferenceClient.up`."""
        return self._up

    @property
    def generation(self) -> int:
        """See `InferenceClient.generation`."""
        return self._generation

    @property
    def shared_memory(self) -> bool:
        """Whether tensors go through shared memory."""
        return self._memory.works and self._up

    async def open(self) -> None:
        """Connects and begins to watch the server. A server that is away is not an error: the client waits for it.

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
            asyncio.create_task(self._watch_channel(), name="triton-channel"),
        ]

    async def close(self) -> None:
        """Waits for requests in flight (at most until their deadline), unregisters the memory, closes the channel."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        if self._calls:
            await asyncio.wait(self._calls, timeout=self._settings.triton_deadline_s + 1)
        await self._memory.close(up=self._up)
        await self._channel.close()

    # --- descriptions of models ---

    async def describe(self, model: str) -> ModelSpec | None:
        """See `InferenceClient.describe`."""
        try:
            name = {"name": model}
            ready = await self._stub.ModelReady(service_pb2.ModelReadyRequest(**name), timeout=_PROBE_DEADLINE_S)
            if not ready.ready:
                return None
            metadata = await self._stub.ModelMetadata(
                service_pb2.ModelMetadataRequest(**name), timeout=_PROBE_DEADLINE_S
            )
            answer = await self._stub.ModelConfig(service_pb2.ModelConfigRequest(**name), timeout=_PROBE_DEADLINE_S)
            batched = await self._batched(answer.config)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                return None
            raise description_failure(self._failure(model, error)) from None
        spec = read_spec(model, metadata, answer.config, batched=batched)
        self._memory.reserve_outputs(spec, alone=model == self._settings.triton_ensemble)
        return spec

    async def _batched(self, config: Any) -> bool:
        """Whether the server batches requests to a model by itself; for an ensemble, to all of its parts."""
        parts = {step.model_name for step in config.ensemble_scheduling.step}
        if not parts:
            return bool(config.HasField("dynamic_batching"))
        for part in parts:
            request = service_pb2.ModelConfigRequest(name=part)
            answer = await self._stub.ModelConfig(request, timeout=_PROBE_DEADLINE_S)
            if not await self._batched(answer.config):
                return False
        return True

    # --- memory ---

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """See `InferenceClient.buffer`."""
        return self._memory.buffer(shape, dtype, grow=self._up)

    # --- requests ---

    async def infer(self, model: ModelSpec, buffer: Buffer, *, stream: str, deadline_s: float | None = None) -> Reply:
        """See `InferenceClient.infer`."""
        if not self._up:
            raise InferenceUnavailable(f"Triton at {self.url} does not answer")
        arrived = time.perf_counter()
        await self._concurrency.acquire(stream)
        gate_s = time.perf_counter() - arrived
        buffer.hold()
        # The call is a shielded task, because grpc.aio leaks if the awaiter of a call is cancelled
        # (https://github.com/grpc/grpc/issues/43360), and because Triton may write into the slot until the call ends.
        call = asyncio.create_task(self._call(model, buffer, gate_s, deadline_s))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            call.add_done_callback(_drop_result)
            raise

    async def _call(self, model: ModelSpec, buffer: Buffer, gate_s: float, deadline_s: float | None) -> Reply:
        metrics.IN_FLIGHT.inc()
        sent = time.perf_counter()
        try:
            request, placed = self._request(model, buffer)
            answer = await self._infer(request, timeout=deadline_s or self._settings.triton_deadline_s)
            infer_s = time.perf_counter() - sent
            return Reply(outputs(answer, model, buffer, placed), gate_s, infer_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in _LEFT_OPEN:
                buffer.rest(max(_REST_S, 4 * self._settings.triton_deadline_s))
            raise self._failure(model.name, error, deadline_s) from None
        finally:
            metrics.IN_FLIGHT.dec()
            buffer.release()
            self._concurrency.release()

    def _request(self, model: ModelSpec, buffer: Buffer) -> tuple[bytes, Placed]:
        """The serialized request, and the places of its outputs: name -> (bytes from the start of the slot, shape)."""
        slot = buffer.slot
        if slot is None or slot.region not in self._memory:
            # The server has not mapped this memory since its start: the request carries the pixels.
            if self._memory.works:
                metrics.INFERENCE_UNSHARED.inc()
            return plain_request(model, buffer.array), {}
        key = (model.name, model.version, len(buffer.array), buffer.cursor)
        cached = slot.requests.get(key)
        if cached is None:
            cached = slot.requests[key] = shared_request(model, buffer)
        request, placed, end = cached
        buffer.cursor = end
        return request, placed

    def _failure(self, model: str, error: grpc.aio.AioRpcError, deadline_s: float | None = None) -> InferenceError:
        away = error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        if not away and "shared memory region" in (error.details() or ""):
            self._lost_memory = away = True  # the server restarted between two probes and lost its registered regions
        if away:
            self._suspect.set()
        if deadline_s is not None and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            metrics.INFERENCE_ERRORS.labels("timeout").inc()
            return InferenceTimeout(f"{model}: no answer within {deadline_s:g} seconds")
        return failure(model, error, url=self.url, deadline_s=self._settings.triton_deadline_s)

    # --- whether the server answers ---

    async def _watch(self) -> None:
        failures = 0
        while True:
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s(failures, *_RECONNECT_S) or _PROBE_INTERVAL_S):
                    await self._suspect.wait()
            self._suspect.clear()
            if not await self._reachable():
                self._disconnected()
                failures += 1
                continue
            failures = 0
            await asyncio.sleep(0.05)  # so that a burst of failures causes one probe

    async def _watch_channel(self) -> None:
        """Notices at once if the connection breaks, because a quick restart could happen between two probes."""
        while True:
            state = self._channel.get_state()
            await self._channel.wait_for_state_change(state)
            if self._up and state == grpc.ChannelConnectivity.READY:
                self._lost_memory = True
                self._suspect.set()

    async def _reachable(self) -> bool:
        """Whether the server answers; connects again if it was away."""
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

    def _disconnected(self) -> None:
        if not self._up:
            return
        self._up = False
        metrics.INFERENCE_UP.set(0)
        log.warning("Triton at %s is gone; reconnecting", self.url)
        if self._on_change is not None:
            self._on_change(False)

    async def _connected(self) -> None:
        self._lost_memory = False
        await self._memory.connected()
        self._up = True
        self._generation += 1
        metrics.INFERENCE_UP.set(1)
        log.info("Triton at %s is ready (%s)", self.url, "shared memory" if self._memory.works else "gRPC tensors")
        if self._on_change is not None:
            self._on_change(True)


def _drop_result(call: asyncio.Task[Reply]) -> None:
    """Drops the answer or the error of a call whose awaiter was cancelled."""
    if not call.cancelled():
        call.exception()
