"""The Triton client: one grpc.aio channel, a concurrency limit, deadlines, reconnection, shared memory.

The end of the file is Triton's protocol without I/O: descriptions, requests, answers and errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from app import metrics
from app.errors import ConfigurationError, InferenceError, InferenceTimeout, InferenceUnavailable
from app.inference.client import ModelSpec, Reply, TensorSpec
from app.inference.shared_memory import DTYPES, Buffer, SharedMemory, output_bytes
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
PROBE_INTERVAL_S = 5.0
"""Seconds between two probes of a server that answers."""
PROBE_DEADLINE_S = 2.0
"""Seconds that a probe, or a request for a description, may take."""
_RECONNECT_S = (0.1, 2.0)
"""Seconds of the first wait between two probes of a server that is away, and of the longest."""
_RAW = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
_RAW_TAG = bytes([_RAW << 3 | 2])  # wire type 2: a length, then so many bytes

Placed = dict[str, tuple[int, tuple[int, ...]]]
"""Outputs in shared memory: name -> (bytes from the start of the slot, shape)."""


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
            ready = await self._stub.ModelReady(service_pb2.ModelReadyRequest(**name), timeout=PROBE_DEADLINE_S)
            if not ready.ready:
                return None
            metadata = await self._stub.ModelMetadata(
                service_pb2.ModelMetadataRequest(**name), timeout=PROBE_DEADLINE_S
            )
            answer = await self._stub.ModelConfig(service_pb2.ModelConfigRequest(**name), timeout=PROBE_DEADLINE_S)
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
            answer = await self._stub.ModelConfig(request, timeout=PROBE_DEADLINE_S)
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
        key = (model.name, model.version, model.chosen, len(buffer.array), buffer.cursor)
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
                async with asyncio.timeout(backoff_s(failures, *_RECONNECT_S) or PROBE_INTERVAL_S):
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
            answer = await self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=PROBE_DEADLINE_S)
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


# --- the protocol without I/O: descriptions, requests, answers, errors ---
# A request's tensors lie in shared memory or in the message itself.


def read_spec(name: str, metadata: Any, config: Any, *, batched: bool = False) -> ModelSpec:
    """Makes a model's description from the server's metadata and configuration of it (protobuf messages).

    A model that takes exactly one image may have outputs without a batch dimension, boxes `[objects, 4]` and lists
    `[objects]`, as those of torchvision. They are described, and later returned, as `[1, objects, ...]`.
    """
    single = config.max_batch_size == 0 and all(t.shape[:1] == [1] for t in metadata.inputs)
    return ModelSpec(
        name=name,
        version=max(metadata.versions, key=int, default=""),
        inputs=tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in metadata.inputs),
        outputs=tuple(
            TensorSpec(t.name, t.datatype, (1, *t.shape) if single and t.shape in ([-1], [-1, 4]) else tuple(t.shape))
            for t in metadata.outputs
        ),
        max_batch=max(1, config.max_batch_size),
        batched=batched,
        parameters={key: value.string_value for key, value in config.parameters.items()},
    )


def infer_method(channel: Any) -> Any:
    """ModelInfer on a channel of grpc.aio, for serialized requests: their fixed part is written only once."""
    return channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )


def plain_request(model: ModelSpec, array: NDArray[Any]) -> bytes:
    """A request that carries its pixels, copied once; a protobuf message would copy them again when it is serialized.

    The pixels' field follows the other fields; protobuf accepts fields in any order
    (https://protobuf.dev/programming-guides/encoding/).
    """
    tensor = model.inputs[0]
    head = _head(model.name, tensor.name, tensor.dtype, array.shape, model.chosen)
    return b"".join((head, _RAW_TAG, _varint(array.nbytes), np.ascontiguousarray(array).data))


@lru_cache(maxsize=256)
def _head(model: str, tensor: str, dtype: str, shape: tuple[int, ...], chosen: str) -> bytes:
    """A serialized request without its pixels. `chosen`: the outputs that are wanted, comma-separated; empty: all."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=tensor, datatype=dtype).shape.extend(shape)
    for name in chosen.split(",") if chosen else ():
        request.outputs.add(name=name)
    serialized: bytes = request.SerializeToString()
    return serialized


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def shared_request(model: ModelSpec, buffer: Buffer) -> tuple[bytes, Placed, int]:
    """A request whose input, and outputs if they fit, are in the buffer's slot.

    Returns:
        The serialized request, the places of its outputs, and the new `cursor`, at which the next request's outputs may
        begin.
    """
    slot = buffer.slot
    assert slot is not None
    array, region = buffer.array, slot.region
    request = service_pb2.ModelInferRequest(model_name=model.name)
    tensor = request.inputs.add(name=model.inputs[0].name, datatype=model.inputs[0].dtype)
    tensor.shape.extend(array.shape)
    _place(tensor, region.name, slot.offset, array.nbytes)
    shapes = {t.name: (array.shape[0], *t.shape[1:]) for t in model.outputs}
    size = output_bytes([(t.dtype, shapes[t.name]) for t in model.outputs])
    if size is None or buffer.cursor + size > region.slot_bytes:
        # An open shape, or too large: the outputs come in the answer.
        for name in model.chosen.split(",") if model.chosen else ():
            request.outputs.add(name=name)
        return request.SerializeToString(), {}, buffer.cursor
    placed: Placed = {}
    cursor = buffer.cursor
    for output in model.outputs:
        used = output_bytes([(output.dtype, shapes[output.name])])
        assert used is not None
        _place(request.outputs.add(name=output.name), region.name, slot.offset + cursor, used)
        placed[output.name] = (cursor, shapes[output.name])
        cursor += used
    return request.SerializeToString(), placed, cursor


def _place(tensor: Any, region: str, offset: int, size: int) -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def outputs(answer: Any, model: ModelSpec, buffer: Buffer, placed: Placed) -> dict[str, NDArray[Any]]:
    """The answer's tensors by name: views of the slot, or of the message that carried them.

    Raises:
        InferenceError: an output is missing, or has a type that we do not read or another shape. Triton leaves
            outputs out of an ensemble's answer, without an error, after a process of one of its models restarted.
    """
    out: dict[str, NDArray[Any]] = {}
    raw = iter(answer.raw_output_contents)
    for tensor in answer.outputs:
        dtype = DTYPES.get(tensor.datatype)
        if dtype is None:
            raise InferenceError(
                f"{answer.model_name}: output {tensor.name} is {tensor.datatype}; known: {', '.join(DTYPES)}"
            )
        shape = tuple(tensor.shape)
        count = math.prod(shape)
        try:
            if tensor.name in placed:
                assert buffer.slot is not None
                offset = buffer.slot.offset + placed[tensor.name][0]
                out[tensor.name] = np.frombuffer(buffer.slot.region.memory, dtype, count, offset).reshape(shape)
            else:
                out[tensor.name] = np.frombuffer(next(raw, b""), dtype).reshape(shape)
        except ValueError:
            raise InferenceError(
                f"{answer.model_name}: output {tensor.name!r} holds less or more than its shape {list(shape)}"
            ) from None
    count = len(buffer.array)
    for expected in model.outputs:
        found = out.get(expected.name)
        if found is None:
            raise InferenceError(f"{answer.model_name}: the answer lacks its output {expected.name!r}")
        if len(found.shape) == len(expected.shape) - 1 and expected.shape[0] == 1 == count:
            found = out[expected.name] = found[None]  # see `read_spec`
        if not _fits(found.shape, (count, *expected.shape[1:])):
            raise InferenceError(
                f"{answer.model_name}: output {expected.name!r} is {list(found.shape)} for {count} images; "
                f"want {[count, *expected.shape[1:]]}"
            )
    return out


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(b in (-1, a) for a, b in zip(shape, wanted, strict=True))


def failure(model: str, error: Any, *, url: str, deadline_s: float) -> InferenceError:
    """Counts an error of gRPC and returns the error to raise for it."""
    details = error.details() or error.code().name
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        metrics.INFERENCE_ERRORS.labels("timeout").inc()
        return InferenceTimeout(f"{model}: no answer within TRITON_DEADLINE_S={deadline_s:g} seconds")
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        metrics.INFERENCE_ERRORS.labels("unavailable").inc()
        return InferenceUnavailable(f"Triton at {url}: {details}")
    metrics.INFERENCE_ERRORS.labels("refused").inc()
    return InferenceError(f"{model}: {details}")


def description_failure(error: InferenceError) -> InferenceError:
    """The error to raise when a description fails: a server that is too busy to describe a model counts as away."""
    if isinstance(error, InferenceTimeout):
        return InferenceUnavailable("the server did not describe its models in time")
    return error
