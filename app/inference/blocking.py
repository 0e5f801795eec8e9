"""An inference client whose calls block, for threads that analyse one frame at a time without an event loop."""

from __future__ import annotations

import time
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from app import metrics
from app.errors import InferenceError
from app.inference.client import ModelSpec, Reply
from app.inference.requests import description_failure, failure, infer_method, outputs, plain_request, read_spec
from app.inference.shared_memory import DTYPES, Buffer
from app.settings import TritonSettings

_PROBE_DEADLINE_S = 2.0
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Otherwise gRPC would use http_proxy for loopback, too.
    ("grpc.enable_http_proxy", 0),
]


class BlockingClient:
    """Thread-safe. There is no concurrency limit: each calling thread has one request in flight."""

    def __init__(self, url: str, settings: TritonSettings) -> None:
        self.url = url
        self._settings = settings
        self._channel = grpc.insecure_channel(url, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer = infer_method(self._channel)

    @property
    def up(self) -> bool:
        """Whether the server says that it is ready; asks it with each access."""
        try:
            answer = self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=_PROBE_DEADLINE_S)
        except grpc.RpcError:
            metrics.INFERENCE_UP.set(0)
            return False
        metrics.INFERENCE_UP.set(1)
        return bool(answer.ready)

    def close(self) -> None:
        self._channel.close()

    async def describe(self, model: str) -> ModelSpec | None:
        """See `InferenceClient.describe`, whose signature it has. It blocks and never awaits."""
        name: dict[str, Any] = {"name": model}
        try:
            if not self._stub.ModelReady(service_pb2.ModelReadyRequest(**name), timeout=_PROBE_DEADLINE_S).ready:
                return None
            about = self._stub.ModelMetadata(service_pb2.ModelMetadataRequest(**name), timeout=_PROBE_DEADLINE_S)
            answer = self._stub.ModelConfig(service_pb2.ModelConfigRequest(**name), timeout=_PROBE_DEADLINE_S)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                return None
            raise description_failure(self._failure(model, error)) from None
        return read_spec(model, about, answer.config)  # `batched` does not matter: callers send one image at a time

    def infer(self, model: ModelSpec, buffer: Buffer) -> Reply:
        """Runs `model` on the buffer as its only input; blocks until the answer.

        Raises:
            InferenceTimeout: the deadline passed.
            InferenceUnavailable: the server cannot be reached.
            InferenceError: the server refused this request.
        """
        metrics.IN_FLIGHT.inc()
        sent = time.perf_counter()
        try:
            request = plain_request(model, buffer.array)
            answer = self._infer(request, timeout=self._settings.triton_deadline_s)
            return Reply(outputs(answer, model, buffer, {}), gate_s=0.0, infer_s=time.perf_counter() - sent)
        except grpc.RpcError as error:
            raise self._failure(model.name, error) from None
        finally:
            metrics.IN_FLIGHT.dec()

    def _failure(self, model: str, error: Any) -> InferenceError:
        return failure(model, error, url=self.url, deadline_s=self._settings.triton_deadline_s)


def empty(shape: tuple[int, ...], dtype: str) -> Buffer:
    """Heap memory for one request's input; `dtype` is Triton's name, as UINT8."""
    return Buffer(np.empty(shape, DTYPES[dtype]), None, None)
