"""The singleton Triton client: one grpc.aio channel, a fair gate, deadlines, reconnection, shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from app import metrics
from app.errors import ConfigurationError, InferenceError, InferenceTimeout, InferenceUnavailable
from app.inference.client import ModelSpec, Reply
from app.inference.failures import failure, undescribed
from app.inference.gate import Gate
from app.inference.memory import Buffer
from app.inference.regions import Regions
from app.inference.requests import Placed, infer_method, outputs, plain_request, read_spec, shared_request
from app.settings import TritonSettings

log = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # gRPC takes http_proxy for loopback as well; Triton is a neighbour.
    ("grpc.enable_http_proxy", 0),
    # Channels to the same address share connections by default; ours must die with its client.
    ("grpc.use_local_subchannel_pool", 1),
]
_LEFT_OPEN = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What a request ends with that the server may still be at. All else it says itself, once it is done."""
_REST_S = 60.0
"""How long the memory of such a request is lent to nobody, or four deadlines where that is longer. The server drops
what nobody waits for any more unless it is at it already; a hung one has been started anew by then, with new memory.
"""
_PROBE_INTERVAL_S = 5.0
_PROBE_DEADLINE_S = 2.0


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
        self._regions = Regions(self._stub, url, settings.triton_shm, self._calls)

    @property
    def up(self) -> bool:
        return self._up

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def shared_memory(self) -> bool:
        """Whether tensors go through shared memory."""
        return self._regions.works and self._up

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
        await self._regions.close(up=self._up)
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
        self._regions.answers(spec, alone=model == self._settings.triton_ensemble)
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
        return self._regions.buffer(shape, dtype, grow=self._up)

    # --- requests ---

    async def infer(self, model: ModelSpec, buffer: Buffer, *, stream: str, deadline_s: float | None = None) -> Reply:
        """See `InferenceClient.infer`."""
        if not self._up:
            raise InferenceUnavailable(f"Triton at {self.url} does not answer")
        arrived = time.perf_counter()
        await self._gate.acquire(stream)
        gate_s = time.perf_counter() - arrived
        buffer.hold()
        # A task of its own, shielded: grpc.aio leaks when the awaiter of a call is cancelled
        # (https://github.com/grpc/grpc/issues/43360), and Triton may write into the slot until the call ends.
        call = asyncio.create_task(self._call(model, buffer, gate_s, deadline_s))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            call.add_done_callback(_forget)
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
            self._gate.release()

    def _request(self, model: ModelSpec, buffer: Buffer) -> tuple[bytes, Placed]:
        """The request, and where its outputs land in the slot: name -> (offset in the slot, shape)."""
        slot = buffer.slot
        if slot is None or slot.region not in self._regions:
            # Memory that this life of the server has not mapped: the pixels travel in the message.
            if self._regions.works:
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
            self._lost_memory = away = True  # restarted between two probes: what was registered is forgotten
        if away:
            self._suspect.set()
        if deadline_s is not None and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            metrics.INFERENCE_ERRORS.labels("timeout").inc()
            return InferenceTimeout(f"{model}: no answer within {deadline_s:g} seconds")
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
        self._lost_memory = False
        await self._regions.connected()
        self._up = True
        self._generation += 1
        metrics.INFERENCE_UP.set(1)
        log.info("Triton at %s is ready (%s)", self.url, "shared memory" if self._regions.works else "gRPC tensors")
        if self._on_change is not None:
            self._on_change(True)


def _forget(call: asyncio.Task[Reply]) -> None:
    """The awaiter is gone: the answer, or the error, is dropped."""
    if not call.cancelled():
        call.exception()
